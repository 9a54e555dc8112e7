//! One key, its signing request, and the check of what the controller signed: the chain comes in, a certificate that can
//! be used goes out. A chain for another key or another name is refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identify::provider;

/// Why a key or certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The key or its request could not be made.
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The chain is empty.
    #[error("the controller sent no certificate")]
    Empty,
    /// The leaf is not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// It is for another key, or of a kind that rustls does not take.
    #[error("the certificate does not fit the key: {0}")]
    Unfit(#[from] rustls::Error),
    /// The URI SAN is not the one that was asked for.
    #[error("the certificate names {found:?}, {expected} was asked for")]
    WrongName {
        /// What was asked for.
        expected: String,
        /// Every URI SAN in it.
        found: Vec<String>,
    },
    /// It is over already.
    #[error("the certificate ended at {0}")]
    Expired(String),
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) key: Arc<CertifiedKey>,
    /// The private key as bytes: `key` does not give it out.
    pub(super) pkcs8: Arc<PrivatePkcs8KeyDer<'static>>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// A new ECDSA P-256 key.
pub(super) fn new_key() -> Result<KeyPair, CertificateError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// A signing request that carries nothing but the public key.
pub(super) fn request(key: &KeyPair) -> Result<Vec<u8>, CertificateError> {
    Ok(CertificateParams::default().serialize_request(key)?.der().to_vec())
}

/// Checks a chain (leaf first) for `key` and the one URI SAN `name`.
pub(super) fn accept(
    key_pkcs8: Vec<u8>,
    chain: Vec<Vec<u8>>,
    name: &str,
    now: SystemTime,
) -> Result<Issued, CertificateError> {
    let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(CertificateDer::from).collect();
    let leaf = chain.first().ok_or(CertificateError::Empty)?;
    let (not_before, not_after) = check(leaf, name)?;
    if not_after <= now {
        return Err(CertificateError::Expired(rfc3339(not_after)));
    }
    let pkcs8 = PrivatePkcs8KeyDer::from(key_pkcs8);
    let key = PrivateKeyDer::Pkcs8(pkcs8.clone_key());
    let key = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
    Ok(Issued { key, pkcs8: Arc::new(pkcs8), not_before, not_after })
}

fn check(leaf: &CertificateDer<'_>, name: &str) -> Result<(SystemTime, SystemTime), CertificateError> {
    let malformed = |e: &dyn std::fmt::Display| CertificateError::Malformed(e.to_string());
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| malformed(&e))?;
    let names = certificate.subject_alternative_name().map_err(|e| malformed(&e))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let found: Vec<String> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        })
        .collect();
    if found != [name] {
        return Err(CertificateError::WrongName { expected: name.to_owned(), found });
    }
    let validity = certificate.validity();
    Ok((time_of(validity.not_before.timestamp()), time_of(validity.not_after.timestamp())))
}

fn time_of(unix: i64) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    UNIX_EPOCH.checked_add(seconds).unwrap_or(UNIX_EPOCH)
}

/// Seconds since 1970, as the protocol has them.
pub(in crate::control) fn unix_seconds(time: SystemTime) -> i64 {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A time as people read it, to the second.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let (format, unix) = (&time::format_description::well_known::Rfc3339, unix_seconds(time));
    let date = time::OffsetDateTime::from_unix_timestamp(unix).ok();
    date.and_then(|date| date.format(format).ok()).unwrap_or_else(|| unix.to_string())
}
