//! The controller's own certificates and the verifier of its callers; both follow the CA's files.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;

use crate::ca::{Authority, CaError, Profile, Roots, SERVER_NAME, StateDir, TrustFiles, admin_id};
use crate::object::Status;

const SERVER_TTL: Duration = Duration::from_secs(24 * 3600);
const ADMIN_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA failed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// rustls refused the configuration.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The trusted roots make no verifier.
    #[error("the trust bundle: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What a TLS connection needs, as of now.
#[derive(Clone, Debug)]
pub struct TlsState {
    /// The roots that are trusted.
    pub roots: Roots,
    /// Tells one set of roots from another: agents repeat it when they trust them.
    pub roots_id: Arc<[u8]>,
    /// What the authority signs under.
    pub issuer: CertificateDer<'static>,
    /// Verifies callers against them; each call is verified anew, so that an open connection outlives neither its
    /// certificate nor its root.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// The listener's configuration.
    pub server: Arc<ServerConfig>,
    /// What is wrong with the files.
    pub statuses: Vec<Status>,
}

/// Keeps [`TlsState`] and the operator's certificate fresh.
#[derive(Debug)]
pub struct Credentials {
    authority: Arc<Authority>,
    state: StateDir,
    trust: TrustFiles,
    told: Option<Status>,
    renew_server: SystemTime,
    renew_admin: SystemTime,
    feed: watch::Sender<Arc<TlsState>>,
}

impl Credentials {
    /// Issues the first certificates.
    pub fn new(authority: Arc<Authority>, state: StateDir, now: SystemTime) -> Result<Self, TlsError> {
        let trust = TrustFiles::open(state.ca()?);
        let first = tls_state(&authority, &trust, now)?;
        write_admin(&authority, &state, now)?;
        Ok(Self {
            authority,
            state,
            trust,
            told: None,
            renew_server: now + SERVER_TTL / 2,
            renew_admin: now + ADMIN_TTL / 2,
            feed: watch::Sender::new(Arc::new(first)),
        })
    }

    /// Where changes are seen.
    pub fn subscribe(&self) -> watch::Receiver<Arc<TlsState>> {
        self.feed.subscribe()
    }

    /// As of now.
    pub fn now(&self) -> Arc<TlsState> {
        Arc::clone(&self.feed.borrow())
    }

    /// When the intermediate ends.
    pub fn intermediate_ends(&self) -> SystemTime {
        self.authority.ends()
    }

    /// Looks at the files and the clock, and takes up what else is to be told; called every few seconds.
    pub fn refresh(&mut self, now: SystemTime, told: Option<Status>) -> Result<(), TlsError> {
        let reissued = self.authority.refresh(now)?;
        let trust_changed = self.trust.refresh();
        let told_changed = std::mem::replace(&mut self.told, told.clone()) != told;
        if reissued || trust_changed || told_changed || now >= self.renew_server {
            let mut fresh = tls_state(&self.authority, &self.trust, now)?;
            fresh.statuses.extend(told);
            self.renew_server = now + SERVER_TTL / 2;
            self.feed.send_replace(Arc::new(fresh));
        }
        if reissued || now >= self.renew_admin {
            write_admin(&self.authority, &self.state, now)?;
            self.renew_admin = now + ADMIN_TTL / 2;
        }
        Ok(())
    }
}

fn tls_state(authority: &Authority, trust: &TrustFiles, now: SystemTime) -> Result<TlsState, TlsError> {
    let mut store = RootCertStore::empty();
    for root in trust.roots().iter() {
        store.add(root.clone())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::from)?;
    let signed = authority.sign(&key, Profile::Server(SERVER_NAME.into()), SERVER_TTL, now)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(signed.chain, key)?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsState {
        roots: Arc::clone(trust.roots()),
        roots_id: id_of(trust.roots()),
        issuer: authority.signs_under(),
        verifier,
        server: Arc::new(server),
        statuses: trust.statuses().to_vec(),
    })
}

fn id_of(roots: &[CertificateDer<'_>]) -> Arc<[u8]> {
    let whole: Vec<u8> = roots.iter().flat_map(|der| der.iter().copied()).collect();
    // Cut: it is compared with what this controller sent, and trusted by nobody.
    digest(&SHA256, &whole).as_ref()[..16].into()
}

/// Writes the operator's certificate to `admin/cert.pem` beside `admin/key.pem`. The key stays, so that whoever reads the
/// two while this runs gets a pair.
fn write_admin(authority: &Authority, state: &StateDir, now: SystemTime) -> Result<(), CaError> {
    let key = state.admin_key()?;
    let profile = Profile::Spiffe(admin_id(authority.trust_domain()));
    let signed = authority.sign(&key, profile, ADMIN_TTL, now)?;
    let chain: Vec<_> = signed.chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.to_vec())).collect();
    state.write_admin_certificate(&pem::encode_many(&chain))
}
