//! Peers that must not get in: each speaks TLS to 15008 with something wrong about its certificate, is refused, counted,
//! and harms nobody else.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::world::netns;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::shop::{Shop, echoed};

/// A certificate chain and its key; none: no client certificate.
type Presented = Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>;

/// Takes any server: it is the server's judgement that is tested.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 must not be offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shakes hands, writes, and tells what came back: bytes mean that it was let in.
fn knock(shop: &Shop, presented: Presented) -> Result<String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match presented {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let to = SocketAddr::new(shop.api.v4.into(), 15008);
    let node = shop.mesh.world.node(1).netns.clone();
    netns::inside(&node, move || {
        let tcp = TcpStream::connect_timeout(&to, Duration::from_secs(3)).context("connect to 15008")?;
        tcp.set_read_timeout(Some(Duration::from_secs(3)))?;
        let client = ClientConnection::new(Arc::new(config), ServerName::try_from("any.invalid")?)?;
        let mut stream = StreamOwned::new(client, tcp);
        let mut answer = [0; 64];
        // The preface of HTTP/2: a server that has let the peer in answers with its settings.
        let outcome = stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .and_then(|()| stream.read(&mut answer));
        Ok(match outcome {
            Ok(0) => "closed".to_owned(),
            Ok(read) => format!("let in: {read} bytes"),
            Err(error) => error.to_string(),
        })
    })?
}

/// An authority: its certificate in DER and PEM, and its key.
struct Authority {
    chain: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// The mesh's own authority, as it lies in the controller's folder.
fn mesh_authority(shop: &Shop) -> Result<Authority> {
    let folder = shop.mesh.world.files.join("controller/ca");
    let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| format!("read {name}"));
    let key = KeyPair::from_pem(&read("intermediate.key")?)?;
    let certificate = read("intermediate.pem")?;
    let chain = rustls::pki_types::pem::PemObject::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<CertificateDer<'static>>, _>>()
        .map_err(|error| anyhow!("{error:?}"))?;
    Ok(Authority { chain, issuer: Issuer::from_ca_cert_pem(&certificate, key)? })
}

fn other_authority() -> Result<Authority> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "another authority");
    let certificate = params.self_signed(&key)?;
    Ok(Authority { chain: vec![certificate.der().clone()], issuer: Issuer::new(params, key) })
}

/// A leaf with these URI names; `expired` puts its end into the past.
fn leaf(authority: &Authority, uris: &[&str], expired: bool) -> Result<Presented> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    for uri in uris {
        params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
    }
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(if expired { 2021 } else { 2090 }, 1, 1);
    let certificate = params.signed_by(&key, &authority.issuer)?;
    let mut chain = vec![certificate.der().clone()];
    chain.extend(authority.chain.iter().cloned());
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow!("{error}"))?;
    Ok(Some((chain, key)))
}

#[test]
fn a_peer_with_anything_wrong_about_its_certificate_is_refused_and_counted() -> Result<()> {
    let shop = Shop::open()?;
    let web = shop.web.spiffe_id();
    let (own, other) = (mesh_authority(&shop)?, other_authority()?);
    // The way in is open: else the refusals below would prove nothing.
    let let_in = knock(&shop, leaf(&own, &[&web], false)?)?;
    ensure!(let_in.starts_with("let in"), "a good certificate was refused: {let_in}\n{}", shop.mesh.logs());
    let cases: [(&str, Presented); 6] = [
        ("no certificate", None),
        ("an expired one", leaf(&own, &[&web], true)?),
        ("one of another root", leaf(&other, &[&web], false)?),
        ("one with two URI names", leaf(&own, &[&web, "spiffe://cluster.local/ns/shop/sa/api"], false)?),
        ("one without a URI name", leaf(&own, &[], false)?),
        ("one of another trust domain", leaf(&own, &["spiffe://elsewhere.local/ns/shop/sa/web"], false)?),
    ];
    for (name, presented) in cases {
        let before = refused(&shop)?;
        let outcome = knock(&shop, presented)?;
        ensure!(!outcome.starts_with("let in"), "{name}: {outcome}");
        shop.mesh.in_force(&format!("{name} to be counted"), || {
            ensure!(refused(&shop)? >= before + 1.0, "refusals stay {before}");
            Ok(())
        })?;
    }
    echoed(&shop.ask()?)
}

/// How many handshakes node 2's agent has refused.
fn refused(shop: &Shop) -> Result<f64> {
    Ok(shop.mesh.metrics(2)?.sum("ferromesh_handshake_failures_total", &[]))
}

#[test]
fn a_pod_outside_of_the_mesh_cannot_speak_to_the_agents_ports() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    for port in [15001, 15006] {
        let told = shop.ask_from(&outsider, &shop.api.at(port))?;
        ensure!(told["received"].as_str().unwrap_or_default().is_empty(), "{port}: {told}");
    }
    echoed(&shop.ask()?)
}
