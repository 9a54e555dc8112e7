//! Looks addresses up at the controller on first use, so that an agent holds only what its pods talk to.

use std::net::IpAddr;

/// Why an address could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// No answer within the limit (the controller is away, or slow).
    #[error("the controller did not answer for {0} in time")]
    Timeout(IpAddr),
}

/// Handle of the data plane to the discovery client.
#[derive(Clone, Debug)]
pub struct Lookup {}

impl Lookup {
    /// Returns when the published snapshot says what `address` is. At most 5 s; misses are counted. Marks the address as
    /// used, so that it is not dropped as idle.
    pub async fn ensure(&self, address: IpAddr) -> Result<(), LookupError> {
        unimplemented!("{address}")
    }
}
