//! A controller for tests: the real protocol over real TLS on loopback, driven message by message, and an agent's
//! control plane that is connected to it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use mesh_agent::control::admin::{Admin, AdminSocket, Local};
use mesh_agent::control::{
    Backoff, Control, ControlSettings, Controller, Listener, LookupSettings, NodeIdentity, NodeSettings,
};
use mesh_agent::identify::SvidStore;
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::certificate_authority_server::CertificateAuthorityServer;
use mesh_api::proto::discovery_server::{Discovery, DiscoveryServer};
use mesh_api::proto::{self, AgentMessage, ControllerMessage, Hello, Resource};
use mesh_core::identity::TrustDomain;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

mod ca;

pub(crate) use ca::Ca;

const LIMIT: Duration = Duration::from_secs(10);
const TOKEN: &str = "good token";

/// Who the controller proves to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// The controller.
    True,
    /// One with the right name under another root.
    OtherRoot,
    /// One with another name under the right root.
    OtherName,
}

/// A controller, and the control plane of node `n1`.
pub(crate) struct Rig {
    pub(crate) ca: Arc<Ca>,
    pub(crate) control: Control,
    address: SocketAddr,
    streams: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<ServerStream>>>,
    folder: Arc<tempfile::TempDir>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_as(Server::True).await
    }

    pub(crate) async fn start_as(server: Server) -> Self {
        let (ca, strange) = (Arc::new(Ca::new()), Ca::new());
        let (issuer, name) = match server {
            Server::True => (&*ca, mesh_agent::control::CONTROLLER_NAME),
            Server::OtherRoot => (&strange, mesh_agent::control::CONTROLLER_NAME),
            Server::OtherName => (&*ca, "elsewhere.example"),
        };
        let (chain, key) = issuer.server(name);
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(chain, key))
            .client_ca_root(Certificate::from_pem(ca.root_pem() + &ca.next_root_pem()))
            .client_auth_optional(true);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, streams) = mpsc::unbounded_channel();
        let serving = tonic::transport::Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(DiscoveryServer::new(Streams { opened }))
            .add_service(CertificateAuthorityServer::from_arc(Arc::clone(&ca)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { serving.await.unwrap() });
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let control = Control::new(&node(folder.path()), Arc::new(SvidStore::new()), &settings());
        let streams = Arc::new(tokio::sync::Mutex::new(streams));
        Self { ca, control, address, streams, folder, tasks: vec![task] }
    }

    /// The same rig under another handle, so that it can be prepared before it runs.
    pub(crate) fn clone_handles(&self) -> Self {
        Self {
            ca: Arc::clone(&self.ca),
            control: self.control.clone(),
            address: self.address,
            streams: Arc::clone(&self.streams),
            folder: Arc::clone(&self.folder),
            tasks: Vec::new(),
        }
    }

    /// The same node after its agent ended: nothing in memory, the same state directory. The controller goes on.
    pub(crate) fn restarted(mut self) -> Self {
        let control = Control::new(&node(self.folder.path()), Arc::new(SvidStore::new()), &settings());
        let tasks = std::mem::take(&mut self.tasks);
        tasks.iter().skip(1).for_each(JoinHandle::abort);
        let mut restarted = self.clone_handles();
        restarted.control = control;
        restarted.tasks = tasks.into_iter().take(1).collect();
        restarted
    }

    /// The snapshot on the node's disk.
    pub(crate) fn kept_file(&self) -> PathBuf {
        self.node_with_token().state_dir.join("snapshot")
    }

    /// How the agent reaches the controller, anew.
    pub(crate) fn controller(&self) -> Arc<Controller> {
        let url = format!("https://{}", self.address);
        let roots = self.ca.root_pem();
        Controller::new(&url, "root.pem", roots.as_bytes(), Arc::clone(&self.control.svids)).unwrap()
    }

    /// Settings of node `n1` with a good token.
    pub(crate) fn node_with_token(&self) -> NodeSettings {
        let token = self.folder.path().join("token");
        std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
        NodeSettings { token_file: Some(token), ..node(self.folder.path()) }
    }

    /// Joins and starts the control plane.
    pub(crate) async fn run(&mut self) {
        self.run_as(self.node_with_token()).await;
    }

    pub(crate) async fn run_as(&mut self, node: NodeSettings) {
        let controller = self.controller();
        let identity = NodeIdentity::obtain(&controller, &node).await.unwrap();
        let control = self.control.clone();
        self.tasks.push(tokio::spawn(async move {
            control.run(controller, node, identity, settings()).await;
        }));
    }

    /// The next discovery stream that the agent opens.
    pub(crate) async fn stream(&mut self) -> ServerStream {
        let mut streams = self.streams.lock().await;
        within("a stream", streams.recv()).await.unwrap()
    }

    /// Serves the administration socket; where it is.
    pub(crate) async fn admin(&self) -> PathBuf {
        let path = self.folder.path().join("admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        let admin = Admin::new(node(self.folder.path()), self.control.clone(), Arc::new(Kernel));
        tokio::spawn(admin.serve(socket));
        path
    }
}

fn node(folder: &Path) -> NodeSettings {
    NodeSettings {
        node: "n1".to_owned(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        state_dir: folder.join("state"),
        token_file: None,
    }
}

fn settings() -> ControlSettings {
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
    let lookup = LookupSettings { idle: Duration::from_secs(5), ..LookupSettings::default() };
    ControlSettings { stream_backoff: backoff.clone(), sign_backoff: backoff, lookup }
}

struct Kernel;

impl Local for Kernel {
    fn pods(&self) -> Value {
        serde_json::json!([])
    }

    fn listener(&self, _: SocketAddr) -> Listener {
        Listener::Elsewhere
    }

    fn problems(&self) -> Vec<String> {
        vec!["a problem of the kernel side".to_owned()]
    }

    fn on_node_network(&self) -> Vec<String> {
        Vec::new()
    }

    fn plaintext(&self) -> Value {
        serde_json::json!({ "peers": [] })
    }

    fn missing(&self) -> Vec<String> {
        Vec::new()
    }

    fn check(&self) -> Value {
        serde_json::json!([])
    }
}

/// Awaits `what`, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {LIMIT:?}"),
    }
}

/// Waits until `holds`.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// One discovery stream, as the controller has it.
pub(crate) struct ServerStream {
    inbound: Streaming<AgentMessage>,
    outbound: mpsc::Sender<Result<ControllerMessage, Status>>,
    pub(crate) node_certificate: Vec<u8>,
}

impl ServerStream {
    pub(crate) async fn send(&self, message: ControllerMessage) {
        self.outbound.send(Ok(message)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Kind {
        within("a message", self.inbound.message()).await.unwrap().unwrap().kind.unwrap()
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.next().await {
            Kind::Hello(hello) => hello,
            other => panic!("{other:?} is not Hello"),
        }
    }

    /// The answer to `version`; reports of certificates may come before it.
    pub(crate) async fn ack(&mut self, version: u64) -> String {
        self.acknowledged(version).await.error
    }

    pub(crate) async fn acknowledged(&mut self, version: u64) -> proto::Ack {
        loop {
            match self.next().await {
                Kind::Ack(ack) if ack.version == version => return ack,
                Kind::Ack(_) => {}
                other => panic!("{other:?} is not Ack"),
            }
        }
    }

    pub(crate) async fn subscribed(&mut self) -> Vec<Vec<u8>> {
        loop {
            match self.next().await {
                Kind::Subscribe(subscribe) => return subscribe.addresses,
                Kind::Ack(_) => {}
                other => panic!("{other:?} is not Subscribe"),
            }
        }
    }
}

struct Streams {
    opened: mpsc::UnboundedSender<ServerStream>,
}

#[tonic::async_trait]
impl Discovery for Streams {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<ControllerMessage, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let info = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let certificates = info.and_then(|info| info.peer_certs());
        let Some(certificate) = certificates.and_then(|c| c.first().map(|c| c.to_vec())) else {
            return Err(Status::unauthenticated("no node certificate"));
        };
        let (outbound, messages) = mpsc::channel(8);
        let stream = ServerStream { inbound: request.into_inner(), outbound, node_certificate: certificate };
        self.opened.send(stream).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

/// A delta that changes nothing.
pub(crate) fn message(version: u64) -> ControllerMessage {
    ControllerMessage { version, trust_domain: "cluster.local".into(), ..Default::default() }
}

/// An enrolled pod of namespace `shop` with a service account of the same name.
pub(crate) fn workload(name: &str, node: &str, address: [u8; 4]) -> Resource {
    let workload = proto::Workload {
        uid: format!("uid-{name}"),
        name: name.to_owned(),
        spiffe_id: format!("spiffe://cluster.local/ns/shop/sa/{name}"),
        node: node.to_owned(),
        addresses: vec![address.to_vec()],
        enrolled: true,
        ..Default::default()
    };
    Resource { kind: Some(proto::resource::Kind::Workload(workload)) }
}

/// A policy of namespace `shop` whose rules name the service account `db`.
pub(crate) fn policy(name: &str, action: i32) -> Resource {
    let from =
        vec![proto::Source { principals: vec!["cluster.local/ns/shop/sa/db".into()], ..Default::default() }];
    let policy = proto::AuthorizationPolicy {
        name: Some(proto::NamespacedName { namespace: "shop".into(), name: name.into() }),
        action,
        rules: vec![proto::Rule { from, to: vec![] }],
    };
    Resource { kind: Some(proto::resource::Kind::Policy(policy)) }
}

/// A service of namespace `shop` with one port and one endpoint, which has address 10.2.0.1.
pub(crate) fn service(name: &str, vip: [u8; 4], ports: (u32, u32), uid: &str) -> Resource {
    let endpoint = proto::Endpoint {
        workload_uid: uid.to_owned(),
        address: vec![10, 2, 0, 1],
        node: "n2".to_owned(),
        health: proto::EndpointHealth::Ready.into(),
        ports: [ports].into(),
    };
    let service = proto::Service {
        name: Some(proto::NamespacedName { namespace: "shop".into(), name: name.into() }),
        vips: vec![vip.to_vec()],
        ports: vec![proto::ServicePort { name: String::new(), port: ports.0 }],
        endpoints: vec![endpoint],
        ..Default::default()
    };
    Resource { kind: Some(proto::resource::Kind::Service(service)) }
}

/// `GET` over the administration socket.
pub(crate) async fn get(socket: &Path, target: &str) -> (u16, Value) {
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(target).header("host", "agent").body(Empty::<bytes::Bytes>::new());
    let response = within("an answer", sender.send_request(request.unwrap())).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}
