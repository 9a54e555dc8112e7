//! A peer of our own making: speaks TLS to 15008 with whatever certificate, name and transport a test gives it. In: a
//! [`Stranger`]. Out: what the far agent made of it.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mesh_tests::world::netns;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use crate::shop::Shop;

/// A certificate chain and its key; none: no client certificate.
pub(crate) type Presented = Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>;

/// A TLS connection to an agent.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

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

/// Dials an agent from a namespace, as whom it likes. It offers to resume every session, and early data.
#[derive(Clone)]
pub(crate) struct Stranger {
    config: Arc<ClientConfig>,
    netns: String,
}

impl Stranger {
    /// Dials from node 1, outside of any pod.
    pub(crate) fn on_node_1(shop: &Shop, presented: Presented, alpn: &str) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer));
        let mut config = match presented {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config.resumption = Resumption::in_memory_sessions(16).tls12_resumption(Tls12Resumption::Disabled);
        config.enable_early_data = true;
        Ok(Self { config: Arc::new(config), netns: shop.mesh.world.node(1).netns.clone() })
    }

    /// Connects to `to`, naming `sni`, and shakes hands.
    pub(crate) fn connect(&self, to: SocketAddr, sni: &str) -> Result<Tls> {
        let (config, name) = (Arc::clone(&self.config), ServerName::try_from(sni.to_owned())?);
        netns::inside(&self.netns, move || {
            let mut tcp =
                TcpStream::connect_timeout(&to, Duration::from_secs(3)).context("connect to 15008")?;
            tcp.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut client = ClientConnection::new(config, name)?;
            client.complete_io(&mut tcp)?;
            Ok(StreamOwned::new(client, tcp))
        })?
    }

    /// Shakes hands, says `hello`, and tells what came back: bytes mean that it was let in.
    pub(crate) fn knock(&self, to: SocketAddr, hello: &[u8]) -> Result<String> {
        let mut stream = match self.connect(to, "any.invalid") {
            Ok(stream) => stream,
            Err(error) => return Ok(error.to_string()),
        };
        let mut answer = [0; 64];
        let outcome = stream.write_all(hello).and_then(|()| stream.read(&mut answer));
        Ok(match outcome {
            Ok(0) => "closed".to_owned(),
            Ok(read) => format!("let in: {read} bytes"),
            Err(error) => error.to_string(),
        })
    }
}

/// The preface of HTTP/2 with settings: a server that has let the peer in answers with its own.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What an agent answered to an OPEN or CONNECT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// OPENED, or 200.
    Opened,
    /// REFUSED with this code, or another status.
    Refused(u8),
}

/// REFUSED: the destination is not an application of the pod (docs/wire.md).
pub(crate) const BAD_DESTINATION: Answer = Answer::Refused(2);

/// Sends OPEN on a `ferromesh/1` connection and reads the answer.
pub(crate) fn open(tls: &mut Tls, destination: SocketAddr, client: SocketAddr) -> Result<Answer> {
    let mut payload = address(destination);
    payload.extend(address(client));
    let mut frame = vec![1];
    frame.extend(&u32::try_from(payload.len())?.to_be_bytes()[1..]);
    frame.extend(payload);
    tls.write_all(&frame)?;
    tls.flush()?;
    let (kind, answer) = read_frame(tls)?;
    match (kind, answer.first()) {
        (2, None) => Ok(Answer::Opened),
        (3, Some(code)) => Ok(Answer::Refused(*code)),
        _ => bail!("the frame {kind} {answer:?} came for an answer"),
    }
}

/// Reads one frame of `ferromesh/1`.
pub(crate) fn read_frame(tls: &mut Tls) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 4];
    tls.read_exact(&mut header)?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]);
    let mut payload = vec![0; length as usize];
    tls.read_exact(&mut payload)?;
    Ok((header[0], payload))
}

fn address(of: SocketAddr) -> Vec<u8> {
    let (family, mut octets) = match of.ip() {
        IpAddr::V4(ip) => (4, ip.octets().to_vec()),
        IpAddr::V6(ip) => (6, ip.octets().to_vec()),
    };
    octets.insert(0, family);
    octets.extend(of.port().to_be_bytes());
    octets
}

/// Sends CONNECT on an HTTP/2 connection (stream 1) and reads the answer: 400 counts as [`BAD_DESTINATION`].
pub(crate) fn connect_h2(tls: &mut Tls, destination: &str, client: &str) -> Result<Answer> {
    let forwarded = format!("for=\"{client}\"");
    let mut block = Vec::new();
    for (name, value) in [(":method", "CONNECT"), (":authority", destination), ("forwarded", &forwarded)] {
        // A literal without indexing, nothing compressed.
        block.extend([0, u8::try_from(name.len())?]);
        block.extend(name.bytes());
        block.push(u8::try_from(value.len())?);
        block.extend(value.bytes());
    }
    let mut hello = PREFACE.to_vec();
    hello.extend(&u32::try_from(block.len())?.to_be_bytes()[1..]);
    // HEADERS with END_HEADERS on stream 1.
    hello.extend([1, 4, 0, 0, 0, 1]);
    hello.extend(block);
    tls.write_all(&hello)?;
    tls.flush()?;
    loop {
        let mut header = [0; 9];
        tls.read_exact(&mut header)?;
        let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        tls.read_exact(&mut payload)?;
        match (header[3], payload.first()) {
            // Indexes 8 and 12 of HPACK's static table: 200 and 400.
            (1, Some(0x88)) => return Ok(Answer::Opened),
            (1, Some(0x8c)) => return Ok(BAD_DESTINATION),
            (1, _) => return Ok(Answer::Refused(0)),
            (3 | 7, _) => bail!("the stream or connection was ended: {header:?} {payload:?}"),
            _ => {}
        }
    }
}

/// An authority: its certificate in DER, and its key.
pub(crate) struct Authority {
    chain: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// The mesh's own authority, as it lies in the controller's folder.
pub(crate) fn mesh_authority(shop: &Shop) -> Result<Authority> {
    let folder = shop.mesh.world.files.join("controller/ca");
    let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| format!("read {name}"));
    let key = KeyPair::from_pem(&read("intermediate.key")?)?;
    let certificate = read("intermediate.pem")?;
    let chain = rustls::pki_types::pem::PemObject::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<CertificateDer<'static>>, _>>()
        .map_err(|error| anyhow!("{error:?}"))?;
    Ok(Authority { chain, issuer: Issuer::from_ca_cert_pem(&certificate, key)? })
}

pub(crate) fn other_authority() -> Result<Authority> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "another authority");
    let certificate = params.self_signed(&key)?;
    Ok(Authority { chain: vec![certificate.der().clone()], issuer: Issuer::new(params, key) })
}

/// A leaf with these URI names; `expired` puts its end into the past.
pub(crate) fn leaf(authority: &Authority, uris: &[&str], expired: bool) -> Result<Presented> {
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
