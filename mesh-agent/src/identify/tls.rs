//! The TLS configurations: TLS 1.3 only, no tickets, no resumption, no early data. An SVID and the trust bundle come in, rustls
//! configurations go out.

use std::sync::Arc;

use mesh_core::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::provider::provider;
use super::verify::{ClientVerifier, ServerVerifier};
use super::{HandshakeFailure, Svid, Trust};

/// For the dialler: shows `svid` and accepts only `expected`.
pub fn client_config(
    svid: &Svid,
    trust: &Trust,
    expected: &SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, HandshakeFailure> {
    let trust_domain = svid.identity.trust_domain().clone();
    let verifier = ServerVerifier::new(Arc::clone(&trust.roots), trust_domain, expected.clone());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| HandshakeFailure::Config(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&svid.key))));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// For the accepting side: shows `svid` (the pod's, whatever the SNI says) and verifies clients by `verifier`.
pub fn server_config(
    svid: &Svid,
    verifier: Arc<ClientVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, HandshakeFailure> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| HandshakeFailure::Config(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&svid.key))));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}
