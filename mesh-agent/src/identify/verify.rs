//! The verifier of peers, for both sides. A certificate chain comes in; first the path to a trusted root is validated,
//! then exactly one URI SAN must be a workload identity of our trust domain, and the dialler also requires the identity
//! that it expects. Host names and SNI play no part.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_core::identity::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::HandshakeFailure;
use super::provider::provider;

/// What a peer's leaf certificate says, once its path has been validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Who it is.
    pub identity: SpiffeId,
    /// Until when.
    pub not_after: SystemTime,
}

/// Reads the identity out of a leaf certificate. The path must have been validated before.
pub fn peer_certificate(
    leaf: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Result<PeerCertificate, HandshakeFailure> {
    let bad = |what: &dyn std::fmt::Display| HandshakeFailure::BadCertificate(what.to_string());
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|e| bad(&e))?;
    let names = certificate.subject_alternative_name().map_err(|e| bad(&e))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = match (uris.next(), uris.next()) {
        (Some(uri), None) => uri,
        (None, _) => return Err(HandshakeFailure::SanCount(0)),
        (Some(_), Some(_)) => return Err(HandshakeFailure::SanCount(2 + uris.count())),
    };
    let identity = SpiffeId::parse(uri).map_err(|e| HandshakeFailure::NotSpiffe(e.to_string()))?;
    if identity.trust_domain() != trust_domain {
        return Err(HandshakeFailure::OtherTrustDomain(identity.trust_domain().clone()));
    }
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = UNIX_EPOCH.checked_add(Duration::from_secs(not_after)).ok_or_else(|| bad(&"notAfter"))?;
    Ok(PeerCertificate { identity, not_after })
}

/// What a peer was in the handshake: its certificate must be good for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

/// Verifies the path of a chain (leaf first) again, as after a change of the trust bundle.
pub(super) fn verify_again(
    role: Role,
    roots: Arc<RootCertStore>,
    chain: &[CertificateDer<'_>],
) -> Result<(), HandshakeFailure> {
    let (leaf, rest) = chain.split_first().ok_or(HandshakeFailure::NoCertificate)?;
    let verified = match role {
        Role::Client => client_path(roots)?.verify_client_cert(leaf, rest, UnixTime::now()).map(drop),
        Role::Server => server_path(&roots, leaf, rest, UnixTime::now()),
    };
    verified.map_err(|e| HandshakeFailure::from_rustls(&e))
}

/// Whether the path of `chain` (leaf first) ends at `root`.
pub fn is_signed_under(chain: &[CertificateDer<'_>], root: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    let (Ok(()), Some((leaf, rest))) = (roots.add(root.clone()), chain.split_first()) else { return false };
    server_path(&roots, leaf, rest, UnixTime::now()).is_ok()
}

fn client_path(roots: Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, HandshakeFailure> {
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .clear_root_hint_subjects()
        .build()
        .map_err(|e| HandshakeFailure::Config(e.to_string()))
}

fn server_path(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let leaf = ParsedCertificate::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, algorithms)
}

/// The part of both verifiers that proves possession of the key: signatures of TLS 1.3, by the provider's algorithms.
macro_rules! tls13_signatures_only {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Verifies servers: the dialler's side.
#[derive(Debug)]
pub struct ServerVerifier {
    roots: Arc<RootCertStore>,
    trust_domain: TrustDomain,
    expected: SpiffeId,
}

impl ServerVerifier {
    /// Accepts only a server that proves to be `expected`.
    pub fn new(roots: Arc<RootCertStore>, trust_domain: TrustDomain, expected: SpiffeId) -> Self {
        Self { roots, trust_domain, expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        server_path(&self.roots, end_entity, intermediates, now)?;
        let peer = peer_certificate(end_entity, &self.trust_domain).map_err(HandshakeFailure::into_rustls)?;
        if peer.identity != self.expected {
            let expected = self.expected.clone();
            return Err(HandshakeFailure::WrongIdentity { expected, found: peer.identity }.into_rustls());
        }
        Ok(ServerCertVerified::assertion())
    }

    tls13_signatures_only!();
}

/// Verifies clients: the accepting side.
#[derive(Debug)]
pub struct ClientVerifier {
    path: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientVerifier {
    /// Accepts every client that proves an identity of `trust_domain` under one of `roots`.
    pub fn new(roots: Arc<RootCertStore>, trust_domain: TrustDomain) -> Result<Self, HandshakeFailure> {
        Ok(Self { path: client_path(roots)?, trust_domain })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Peers have one certificate each: naming the roots would only make the handshake longer.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.path.verify_client_cert(end_entity, intermediates, now)?;
        peer_certificate(end_entity, &self.trust_domain).map_err(HandshakeFailure::into_rustls)?;
        Ok(verified)
    }

    tls13_signatures_only!();
}
