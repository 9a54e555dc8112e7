//! Why a TLS handshake did not succeed, as something that can be counted. rustls errors come in, [`HandshakeFailure`]
//! goes out.

use std::io;
use std::sync::Arc;

use mesh_core::identity::{SpiffeId, TrustDomain};
use rustls::{AlertDescription, CertificateError, OtherError};

/// Why a handshake failed; [`HandshakeFailure::code`] is the metric label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeFailure {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The peer's certificate has expired.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate is not valid yet (a clock is wrong).
    #[error("the peer's certificate is not valid yet")]
    NotYetValid,
    /// No trusted root signed the peer's certificate.
    #[error("no trusted root signed the peer's certificate")]
    UnknownRoot,
    /// The peer's certificate does not have exactly one URI SAN.
    #[error("the peer's certificate has {0} URI SANs, not exactly one")]
    SanCount(usize),
    /// The peer's one URI SAN is not a workload's SPIFFE ID.
    #[error("the peer's URI SAN is not an identity: {0}")]
    NotSpiffe(String),
    /// The peer belongs to another trust domain.
    #[error("the peer is of the trust domain {0}, not ours")]
    OtherTrustDomain(TrustDomain),
    /// The server proved another identity than the endpoint has.
    #[error("expected {expected}, found {found}")]
    WrongIdentity {
        /// Who was to be there.
        expected: SpiffeId,
        /// Who was there.
        found: SpiffeId,
    },
    /// The peer's certificate is unusable for another reason.
    #[error("the peer's certificate is bad: {0}")]
    BadCertificate(String),
    /// The peer rejected us with a TLS alert.
    #[error("the peer refused with the TLS alert {0}")]
    RefusedByPeer(String),
    /// Both sides speak TLS but share no transport.
    #[error("the peer shares none of our transports (ALPN)")]
    NoSharedTransport,
    /// What the peer sent is not the TLS that we speak.
    #[error("TLS error: {0}")]
    Protocol(String),
    /// The connection ended before the handshake did.
    #[error("the connection ended during the handshake: {0}")]
    Closed(String),
    /// It took too long.
    #[error("the handshake took too long")]
    Timeout,
    /// Our own SVID has expired and the CA gave no new one.
    #[error("our own certificate has expired")]
    OwnExpired,
    /// The TLS configuration could not be made (no root is trusted yet).
    #[error("no TLS configuration: {0}")]
    Config(String),
}

impl HandshakeFailure {
    /// The reason as one word, for metrics and response flags.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownRoot => "unknown_root",
            Self::SanCount(_) => "uri_san_count",
            Self::NotSpiffe(_) => "not_a_spiffe_id",
            Self::OtherTrustDomain(_) => "other_trust_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::BadCertificate(_) => "bad_certificate",
            Self::RefusedByPeer(_) => "refused_by_peer",
            Self::NoSharedTransport => "no_shared_transport",
            Self::Protocol(_) => "tls_error",
            Self::Closed(_) => "closed",
            Self::Timeout => "timeout",
            Self::OwnExpired => "own_certificate_expired",
            Self::Config(_) => "no_tls_config",
        }
    }

    /// Reads the reason out of what rustls reports.
    pub fn from_rustls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(reason) => Self::from_certificate(reason),
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
            | rustls::Error::NoApplicationProtocol => Self::NoSharedTransport,
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer(format!("{alert:?}")),
            other => Self::Protocol(other.to_string()),
        }
    }

    /// Reads the reason out of an I/O error, which may carry a rustls error.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => Self::from_rustls(tls),
            None => Self::Closed(error.to_string()),
        }
    }

    /// As a rustls error: what the verifier returns. [`HandshakeFailure::from_rustls`] finds it again.
    pub(crate) fn into_rustls(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }

    fn from_certificate(reason: &CertificateError) -> Self {
        match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownRoot,
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(typed) => typed.clone(),
                None => Self::BadCertificate(inner.to_string()),
            },
            other => Self::BadCertificate(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_reason_survives_the_way_through_rustls_and_io() {
        let reason = HandshakeFailure::SanCount(2);
        let io = io::Error::new(io::ErrorKind::InvalidData, reason.clone().into_rustls());
        assert_eq!(HandshakeFailure::from_io(&io), reason);
    }

    #[test]
    fn an_error_without_tls_is_a_closed_connection() {
        let io = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(HandshakeFailure::from_io(&io).code(), "closed");
    }
}
