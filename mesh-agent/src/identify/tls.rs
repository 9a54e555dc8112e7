//! The TLS configurations: TLS 1.3 only, aws-lc-rs, the hybrid post-quantum key exchange first, no tickets, no
//! resumption, no early data. An SVID and the trust bundle come in, rustls configurations go out.

use std::sync::{Arc, OnceLock};

use mesh_core::identity::SpiffeId;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};

use super::verify::{ClientVerifier, ServerVerifier};
use super::{HandshakeFailure, Svid, Trust};

/// The one cryptography provider of the data plane.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = default_provider();
        provider.kx_groups =
            vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        provider.cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(provider)
    }))
}

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
