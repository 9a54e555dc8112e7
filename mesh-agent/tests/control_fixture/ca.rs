//! A certificate authority for tests, with knobs: lifetimes, being away, signing the wrong name.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use mesh_api::proto::certificate_authority_server::CertificateAuthority;
use mesh_api::proto::{JoinRequest, RenewNodeRequest, SignWorkloadRequest, SignedCertificate, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
    SanType,
};
use time::{Duration, OffsetDateTime};
use tonic::{Request, Response, Status};

/// Signs everything with its root.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    next: CertifiedIssuer<'static, KeyPair>,
    /// Signs with the next root.
    pub(crate) rotated: AtomicBool,
    pub(crate) ttl_seconds: AtomicI64,
    pub(crate) node_ttl_seconds: AtomicI64,
    /// Refuses to sign for workloads.
    pub(crate) away: AtomicBool,
    /// Signs another identity than it was asked for.
    pub(crate) wrong_name: AtomicBool,
    pub(crate) joins: AtomicU32,
    pub(crate) renewals: AtomicU32,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let root = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        Self {
            issuer: root("first"),
            next: root("next"),
            rotated: AtomicBool::new(false),
            ttl_seconds: AtomicI64::new(3600),
            node_ttl_seconds: AtomicI64::new(3600),
            away: AtomicBool::new(false),
            wrong_name: AtomicBool::new(false),
            joins: AtomicU32::new(0),
            renewals: AtomicU32::new(0),
        }
    }

    pub(crate) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        let root = self.issuer.der().to_vec();
        TrustBundle { roots_der: vec![root.clone()], issuer_der: root, id: b"first".to_vec() }
    }

    /// Both roots; the next one signs when `rotated`.
    pub(crate) fn both(&self) -> TrustBundle {
        let roots_der = vec![self.issuer.der().to_vec(), self.next.der().to_vec()];
        TrustBundle { roots_der, issuer_der: self.signing().der().to_vec(), id: b"both".to_vec() }
    }

    pub(crate) fn next_root_pem(&self) -> String {
        self.next.pem()
    }

    fn signing(&self) -> &CertifiedIssuer<'static, KeyPair> {
        if self.rotated.load(Ordering::Relaxed) { &self.next } else { &self.issuer }
    }

    /// Chain and key of a server with this DNS name.
    pub(crate) fn server(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn sign(&self, csr: &[u8], uri: &str, ttl: i64) -> Response<SignedCertificate> {
        let csr = CertificateSigningRequestParams::from_der(&csr.to_vec().into()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(ttl);
        let leaf = params.signed_by(&csr.public_key, self.signing()).unwrap();
        Response::new(SignedCertificate {
            chain_der: vec![leaf.der().to_vec()],
            trust_bundle: Some(self.bundle()),
        })
    }

    fn sign_node(&self, csr: &[u8], node: &str) -> Response<SignedCertificate> {
        let uri = format!("spiffe://cluster.local/ns/ferromesh-system/sa/ferromesh-agent/node/{node}");
        self.sign(csr, &uri, self.node_ttl_seconds.load(Ordering::Relaxed))
    }
}

type Signed = Result<Response<SignedCertificate>, Status>;

#[tonic::async_trait]
impl CertificateAuthority for Ca {
    async fn join(&self, request: Request<JoinRequest>) -> Signed {
        let request = request.into_inner();
        if request.token != super::TOKEN {
            return Err(Status::unauthenticated("join token refused"));
        }
        self.joins.fetch_add(1, Ordering::Relaxed);
        Ok(self.sign_node(&request.csr_der, &request.node))
    }

    async fn renew_node(&self, request: Request<RenewNodeRequest>) -> Signed {
        if request.peer_certs().is_none() {
            return Err(Status::unauthenticated("no node certificate"));
        }
        self.renewals.fetch_add(1, Ordering::Relaxed);
        Ok(self.sign_node(&request.get_ref().csr_der, "n1"))
    }

    async fn sign_workload(&self, request: Request<SignWorkloadRequest>) -> Signed {
        if request.peer_certs().is_none() {
            return Err(Status::unauthenticated("no node certificate"));
        }
        if self.away.load(Ordering::Relaxed) {
            return Err(Status::unavailable("away"));
        }
        let request = request.into_inner();
        let wrong = self.wrong_name.load(Ordering::Relaxed);
        let uri = if wrong { "spiffe://cluster.local/ns/shop/sa/other" } else { &request.spiffe_id };
        Ok(self.sign(&request.csr_der, uri, self.ttl_seconds.load(Ordering::Relaxed)))
    }
}
