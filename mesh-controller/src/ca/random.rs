//! Random names and tokens. In: how many bytes. Out: their text, or that the system has no randomness to give.

use aws_lc_rs::rand;

use super::CaError;

/// `N` random bytes as text.
pub(super) fn random_hex<const N: usize>() -> Result<String, CaError> {
    let mut bytes = [0_u8; N];
    rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
