//! What the tests share: manifests in, compiled states or a running controller out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_api::proto::admin_client::AdminClient;
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::certificate_authority_client::CertificateAuthorityClient;
use mesh_api::proto::discovery_client::DiscoveryClient;
use mesh_api::proto::{self, AgentMessage, ControllerMessage};
use mesh_controller::ca::{SERVER_NAME, StateDir, TokenStore};
use mesh_controller::compile::{Compiled, compile};
use mesh_controller::index::Index;
use mesh_controller::object::{Origin, Status};
use mesh_controller::run::{Config, Controller};
use mesh_controller::watch::{Batch, Change, DirSource, Format, Outcome, parse};
use mesh_core::identity::TrustDomain;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub(crate) fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// The changes of manifests that must all be good.
pub(crate) fn changes(yaml: &str) -> Vec<Change> {
    let change = |outcome| match outcome {
        Outcome::Object { key, object, line, .. } => {
            Change::Apply(key, object, Origin::Place(format!("m.yaml:{line}").into()))
        }
        Outcome::Bad { line, message, .. } => panic!("line {line}: {message}"),
    };
    parse(Format::Yaml, yaml).into_iter().map(change).collect()
}

/// An index of manifests, as the `dir` source would fill it.
pub(crate) fn index_of(yaml: &str) -> Index {
    let mut index = Index::new(true);
    index.update(Batch { changes: changes(yaml), statuses: Vec::new() });
    index
}

pub(crate) fn compiled(yaml: &str) -> Compiled {
    compile(&index_of(yaml), &trust_domain(), 1, None)
}

pub(crate) fn namespace(name: &str, enrolled: bool) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{ferromesh.io/enrolled: \"{enrolled}\"}}\n"
    )
}

/// A running pod `shop/NAME` with the uid `uid-NAME` and the label `app=NAME`.
pub(crate) fn pod(name: &str, node: &str, ip: &str) -> String {
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  uid: uid-{name}
  labels: {{app: {name}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  containers:
    - name: main
      ports: [{{name: web, containerPort: 8080}}]
status:
  phase: Running
  podIPs: [{{ip: "{ip}"}}]
"#
    )
}

/// A WorkloadEntry `shop/NAME` with the label `app=NAME`, of the unit `NAME.service` with the service account `NAME`.
pub(crate) fn entry(name: &str, node: &str) -> String {
    format!(
        r#"---
apiVersion: ferromesh.io/v1alpha1
kind: WorkloadEntry
metadata:
  name: {name}
  namespace: shop
  labels: {{app: {name}}}
spec:
  node: {node}
  unit: {name}.service
  serviceAccount: {name}
"#
    )
}

pub(crate) fn status<'a>(statuses: &'a [Status], reason: &str) -> &'a Status {
    statuses.iter().find(|s| s.reason == reason).unwrap_or_else(|| panic!("no {reason} in {statuses:#?}"))
}

/// A controller over a folder of its own.
pub(crate) struct Harness {
    pub(crate) dir: tempfile::TempDir,
    change: fn(&mut Config),
    pub(crate) addr: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Harness {
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_with(files, tempfile::tempdir().unwrap(), |_| ()).await
    }

    /// In `dir`, with a configuration that `change` changes; its state folder is `dir/state`.
    pub(crate) async fn start_with(
        files: &[(&str, &str)],
        dir: tempfile::TempDir,
        change: fn(&mut Config),
    ) -> Self {
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("manifests").join(name), text).unwrap();
        }
        let (addr, task) = serve(dir.path(), change).await;
        Self { dir, change, addr, task }
    }

    /// Another controller over the same folders; the first one is gone at once.
    pub(crate) async fn restart(&mut self) {
        self.task.abort();
        (self.addr, self.task) = serve(self.dir.path(), self.change).await;
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Writes a manifest the way editors do: beside, then renamed over.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join("manifests").join(name);
        let fresh = path.with_extension("tmp");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    }

    pub(crate) async fn channel(&self, identity: Option<Identity>) -> Channel {
        let root = std::fs::read(self.state().join("ca/root.pem")).unwrap();
        let mut tls =
            ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(root));
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.addr)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    pub(crate) fn token(&self, node: &str, ttl: Duration) -> String {
        let store = TokenStore::open(&StateDir::open(self.state()).unwrap()).unwrap();
        store.create(node, ttl, SystemTime::now()).unwrap()
    }

    pub(crate) async fn ca(&self, identity: Option<Identity>) -> CertificateAuthorityClient<Channel> {
        CertificateAuthorityClient::new(self.channel(identity).await)
    }

    /// Joins as the agent of `node`.
    pub(crate) async fn join(&self, node: &str) -> Identity {
        let token = self.token(node, Duration::from_secs(60));
        let (key, csr_der) = request();
        let request = proto::JoinRequest { node: node.into(), token, csr_der };
        let signed = self.ca(None).await.join(request).await.unwrap().into_inner();
        Identity::from_pem(chain_pem(&signed.chain_der), key.serialize_pem())
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        let read = |name: &str| std::fs::read(self.state().join("admin").join(name)).unwrap();
        let identity = Identity::from_pem(read("cert.pem"), read("key.pem"));
        AdminClient::new(self.channel(Some(identity)).await)
    }

    pub(crate) async fn agent(&self, identity: Identity, addresses: &[&str]) -> Agent {
        let mut client = DiscoveryClient::new(self.channel(Some(identity)).await);
        let (outbound, messages) = mpsc::channel(8);
        let hello =
            proto::Hello { agent_version: "test".into(), addresses: bytes(addresses), certificates: vec![] };
        outbound.send(AgentMessage { kind: Some(Kind::Hello(hello)) }).await.unwrap();
        let inbound = client.stream(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Agent { outbound, inbound }
    }
}

async fn serve(dir: &Path, change: fn(&mut Config)) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let source = DirSource::new(dir.join("manifests"));
    let mut config = config(&dir.join("state"));
    change(&mut config);
    let controller = Controller::start(config, source).await.unwrap();
    let addr = controller.local_addr().unwrap();
    (addr, tokio::spawn(async move { controller.run(std::future::pending()).await.unwrap() }))
}

pub(crate) fn config(state_dir: &Path) -> Config {
    Config {
        state_dir: state_dir.into(),
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics: None,
        trust_domain: trust_domain(),
        svid_ttl: Duration::from_secs(60),
        node_ttl: Duration::from_secs(3600),
        reviewer: None,
        issuer_dir: None,
        shared: None,
        root_settle: Duration::from_secs(1),
        root_wait: Duration::from_secs(3600),
    }
}

pub(crate) struct Agent {
    pub(crate) outbound: mpsc::Sender<AgentMessage>,
    pub(crate) inbound: Streaming<ControllerMessage>,
}

impl Agent {
    pub(crate) async fn send(&self, kind: Kind) {
        self.outbound.send(AgentMessage { kind: Some(kind) }).await.unwrap();
    }

    pub(crate) async fn subscribe(&self, addresses: &[&str]) {
        self.send(Kind::Subscribe(proto::Subscribe { addresses: bytes(addresses) })).await;
    }

    pub(crate) async fn next(&mut self) -> ControllerMessage {
        let message = tokio::time::timeout(Duration::from_secs(10), self.inbound.message()).await;
        message.expect("no message within 10 s").unwrap().expect("the stream ended")
    }

    pub(crate) async fn silent(&mut self, limit: Duration) {
        if let Ok(message) = tokio::time::timeout(limit, self.inbound.message()).await {
            panic!("unexpected: {message:?}");
        }
    }
}

pub(crate) fn bytes(addresses: &[&str]) -> Vec<Vec<u8>> {
    addresses.iter().map(|a| mesh_api::addr::to_bytes(a.parse().unwrap())).collect()
}

fn unserved(at: &proto::SocketAddress) -> String {
    let ip = mesh_api::addr::from_bytes(&at.address).unwrap();
    format!("unserved:{}", SocketAddr::new(ip, u16::try_from(at.port).unwrap()))
}

fn udp(at: &proto::SocketAddress) -> String {
    unserved(at).replace("unserved", "udp")
}

/// The names of a message's upserts, sorted: `workload:uid`, `service:ns/name`, `policy:ns/name`, `absent:ip`,
/// `unserved:ip:port`, `udp:ip:port`.
pub(crate) fn upserts(message: &ControllerMessage) -> Vec<String> {
    use proto::resource::Kind as K;
    let named = |n: &Option<proto::NamespacedName>| {
        let n = n.as_ref().unwrap();
        format!("{}/{}", n.namespace, n.name)
    };
    let mut names: Vec<_> = message
        .upserts
        .iter()
        .map(|r| match r.kind.as_ref().unwrap() {
            K::Workload(w) => format!("workload:{}", w.uid),
            K::Service(s) => format!("service:{}", named(&s.name)),
            K::Policy(p) => format!("policy:{}", named(&p.name)),
            K::Absent(a) => format!("absent:{}", mesh_api::addr::from_bytes(a).unwrap()),
            K::Unserved(at) => unserved(at),
            K::Udp(target) => udp(target.address.as_ref().unwrap()),
        })
        .collect();
    names.sort();
    names
}

pub(crate) fn removes(message: &ControllerMessage) -> Vec<String> {
    use proto::resource_name::Kind as K;
    let mut names: Vec<_> = message
        .removes
        .iter()
        .map(|r| match r.kind.as_ref().unwrap() {
            K::WorkloadUid(uid) => format!("workload:{uid}"),
            K::Service(n) => format!("service:{}/{}", n.namespace, n.name),
            K::Policy(n) => format!("policy:{}/{}", n.namespace, n.name),
            K::Absent(a) => format!("absent:{}", mesh_api::addr::from_bytes(a).unwrap()),
            K::Unserved(at) => unserved(at),
            K::Udp(at) => udp(at),
        })
        .collect();
    names.sort();
    names
}

/// A fresh key and its certificate request, which asks for names that must not be given.
pub(crate) fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::new(vec!["evil.example".to_string()]).unwrap();
    let csr = params.serialize_request(&key).unwrap();
    (key, csr.der().to_vec())
}

pub(crate) fn chain_pem(chain: &[Vec<u8>]) -> String {
    let blocks: Vec<_> = chain.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone())).collect();
    pem::encode_many(&blocks)
}
