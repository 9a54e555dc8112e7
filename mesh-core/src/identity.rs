//! Trust domains and SPIFFE IDs of the form `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
//!
//! Source: SPIFFE-ID specification, sections 2.1 to 2.3. Text comes in (from a certificate, a policy, the wire), a
//! checked value goes out; nothing else in the mesh compares identities as strings.

use std::fmt;
use std::sync::Arc;

/// The longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID, section 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// A trust domain name: lower-case letters, digits, dots, dashes and underscores.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks `name` against the SPIFFE character set and length.
    pub fn new(name: &str) -> Result<Self, IdentityError> {
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES {
            return Err(IdentityError::TrustDomain(name.into()));
        }
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if name.bytes().all(ok) {
            Ok(Self(name.into()))
        } else {
            Err(IdentityError::TrustDomain(name.into()))
        }
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The identity of a workload: a service account in a namespace of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    /// Builds an ID from its parts; each path segment must be non-empty and of the SPIFFE character set.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        segment(namespace)?;
        segment(service_account)?;
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// Parses `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>` and nothing else.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(IdentityError::TooLong(text.len()));
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let mut parts = rest.split('/');
        let trust_domain = TrustDomain::new(parts.next().unwrap_or_default())?;
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(trust_domain, namespace, account)
            }
            _ => Err(IdentityError::Path),
        }
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// Why a text is not an identity of this mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with spiffe://")]
    Scheme,
    /// The trust domain is empty, too long, or has a character that SPIFFE does not allow.
    #[error("{0:?} is not a trust domain: 1 to 255 of a-z, 0-9, '.', '-', '_'")]
    TrustDomain(String),
    /// The path is not `/ns/<namespace>/sa/<service-account>`.
    #[error("the path of a workload's SPIFFE ID is /ns/<namespace>/sa/<service-account>")]
    Path,
    /// A path segment is empty, `.` or `..`, or has a character that SPIFFE does not allow.
    #[error("{0:?} is not a SPIFFE path segment: letters, digits, '.', '-', '_', and neither '.' nor '..'")]
    Segment(String),
    /// Longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("{0} bytes are too long for a SPIFFE ID (2048 at most)")]
    TooLong(usize),
}

fn segment(text: &str) -> Result<(), IdentityError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(ok) {
        return Err(IdentityError::Segment(text.into()));
    }
    Ok(())
}
