//! Certificates for the tests, good and bad.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_agent::identify::{Svid, provider};
use mesh_core::identity::SpiffeId;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

/// A root and its key.
pub(crate) struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: CertificateDer<'static>,
}

/// What a leaf says.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) from: Duration,
    pub(crate) until: SystemTime,
    pub(crate) generation: u64,
}

impl Leaf {
    pub(crate) fn of(identity: &str) -> Self {
        Self {
            uris: vec![identity.into()],
            from: Duration::from_secs(3600),
            until: SystemTime::now() + Duration::from_secs(3600),
            generation: 1,
        }
    }
}

impl Root {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// An SVID as `leaf` says; `identity` is what the holder believes to be.
    pub(crate) fn svid(&self, identity: &str, leaf: &Leaf) -> Arc<Svid> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names =
            leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
        params.not_before = (leaf.until - leaf.from - Duration::from_secs(3600)).into();
        params.not_after = leaf.until.into();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = provider().key_provider.load_private_key(der).unwrap();
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signer);
        Arc::new(Svid {
            identity: SpiffeId::parse(identity).unwrap(),
            key: Arc::new(certified),
            not_before: SystemTime::now(),
            // What the holder believes: an expired one must be caught by the other side.
            not_after: leaf.until.max(SystemTime::now() + Duration::from_secs(3600)),
            generation: leaf.generation,
        })
    }
}

pub(crate) fn trust(roots: &[&Root]) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.certificate.clone()).unwrap();
    }
    Arc::new(store)
}
