//! Two agents without kernel programs: a dialler and an acceptor on loopback, a client and an application at the ends.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_agent::authorize::{Cut, CutHandle};
use mesh_agent::identify::{Svid, SvidStore};
use mesh_agent::intercept::PodNet;
use mesh_agent::sys::face_application;
use mesh_agent::transport::{
    Acceptor, AcceptorSettings, Admit, Admitted, Connect, Dialer, DialerSettings, Drain, DrainHandle, End,
    Open, OpenError, Protocol, Refusal, Relayed, ServeError, Target, TransportPreference, Tunnel, Watch,
};
use mesh_core::identity::SpiffeId;
use mesh_core::model::{MtlsMode, MtlsModes, Owner, Workload, WorkloadUid};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use crate::pki::{Leaf, Root, trust};

pub(crate) const CLIENT: &str = "spiffe://mesh.test/ns/shop/sa/web";
pub(crate) const SERVER: &str = "spiffe://mesh.test/ns/shop/sa/api";
pub(crate) const BOTH: [TransportPreference; 2] =
    [TransportPreference::FerromeshOnly, TransportPreference::HboneOnly];

/// Runs `test` on one worker, at most a minute.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limited =
        async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    LocalSet::new().block_on(&runtime, limited);
}

/// Dials the test's acceptor, whatever the address is.
#[derive(Debug)]
pub(crate) struct Loopback {
    pub(crate) to: Cell<SocketAddr>,
    pub(crate) dials: Cell<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Way(pub(crate) Rc<Loopback>);

impl Connect for Way {
    async fn connect(&self, _pod: &PodNet, _address: SocketAddr) -> io::Result<TcpStream> {
        self.0.dials.set(self.0.dials.get() + 1);
        TcpStream::connect(self.0.to.get()).await
    }
}

/// Admits everything unless told otherwise, and remembers.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) app: SocketAddr,
    pub(crate) refuse: RefCell<Option<Refusal>>,
    pub(crate) opens: RefCell<Vec<(SpiffeId, Protocol, Open)>>,
    pub(crate) ended: RefCell<Vec<Relayed>>,
    pub(crate) cuts: RefCell<Vec<CutHandle>>,
}

impl Admit for Gate {
    type Record = ();

    async fn admit(&self, peer: &SpiffeId, protocol: Protocol, open: Open) -> Result<Admitted<()>, Refusal> {
        self.opens.borrow_mut().push((peer.clone(), protocol, open));
        if let Some(refusal) = self.refuse.borrow().clone() {
            return Err(refusal);
        }
        let app = TcpStream::connect(self.app).await.unwrap();
        face_application(&app).unwrap();
        let (handle, cut) = Cut::pair();
        self.cuts.borrow_mut().push(handle);
        Ok(Admitted { app, watch: Watch::uncounted(cut), record: () })
    }

    fn unreadable(&self, peer: &SpiffeId, protocol: Protocol, reason: &str) {
        panic!("{peer} over {protocol:?}: {reason}");
    }

    fn ended(&self, _record: (), relayed: Relayed) {
        self.ended.borrow_mut().push(relayed);
    }
}

/// Everything between a client and an application.
pub(crate) struct World {
    pub(crate) root: Root,
    /// The dialling side's.
    pub(crate) store: Arc<SvidStore>,
    /// The accepting side's.
    pub(crate) far_store: Arc<SvidStore>,
    pub(crate) way: Rc<Loopback>,
    pub(crate) dialer: Rc<Dialer<Way>>,
    pub(crate) gate: Rc<Gate>,
    pub(crate) app: TcpListener,
    pub(crate) served: Rc<RefCell<Vec<Result<(), ServeError>>>>,
    pub(crate) drain: DrainHandle,
    pub(crate) acceptor: JoinHandle<()>,
    pub(crate) client_svid: Arc<Svid>,
    near: TcpListener,
}

impl World {
    pub(crate) async fn new(preference: TransportPreference) -> Self {
        let root = Root::new("one");
        let svid = root.svid(SERVER, &Leaf::of(SERVER));
        Self::with(preference, root, svid).await
    }

    /// `server_svid` is what the acceptor shows.
    pub(crate) async fn with(preference: TransportPreference, root: Root, server_svid: Arc<Svid>) -> Self {
        let [store, far_store] = [(); 2].map(|()| {
            let store = Arc::new(SvidStore::new());
            store.set_roots(trust(&[&root]));
            store
        });
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = Rc::new(Gate {
            app: app.local_addr().unwrap(),
            refuse: RefCell::default(),
            opens: RefCell::default(),
            ended: RefCell::default(),
            cuts: RefCell::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Rc::new(Loopback { to: Cell::new(listener.local_addr().unwrap()), dials: Cell::new(0) });
        let settings = DialerSettings { preference, ..DialerSettings::default() };
        let dialer = Dialer::new(Arc::clone(&store), settings, Way(Rc::clone(&way)));
        let acceptor = Acceptor::new(Arc::clone(&far_store), AcceptorSettings::default());
        let (drain, draining) = Drain::pair();
        let served = Rc::new(RefCell::new(Vec::new()));
        let acceptor = spawn_local(accept(
            listener,
            acceptor,
            server_svid,
            Rc::clone(&gate),
            draining,
            Rc::clone(&served),
        ));
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // As the agent's listeners in a pod: accepted sockets inherit it.
        face_application(&near).unwrap();
        let client_svid = root.svid(CLIENT, &Leaf::of(CLIENT));
        Self { root, store, far_store, way, dialer, gate, app, served, drain, acceptor, client_svid, near }
    }

    pub(crate) fn target(&self) -> Target {
        self.target_as(&self.client_svid, "pod-web")
    }

    pub(crate) fn target_as(&self, svid: &Arc<Svid>, pod: &str) -> Target {
        let uid = |text: &str| WorkloadUid(text.into());
        Target {
            source_pod: Arc::new(PodNet::unintercepted(uid(pod), vec!["127.0.0.1".parse().unwrap()])),
            svid: Arc::clone(svid),
            workload: Arc::new(workload(uid("pod-api"))),
            open: Open {
                destination: "10.0.0.7:8080".parse().unwrap(),
                client: "10.0.0.3:40000".parse().unwrap(),
            },
            patience: Duration::MAX,
        }
    }

    /// A client and the socket at which the agent accepted it.
    pub(crate) async fn client(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.near.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        (client, self.near.accept().await.unwrap().0)
    }

    /// One connection through the mesh: the client's end, and the relay that carries it.
    pub(crate) async fn begin(&self) -> (TcpStream, JoinHandle<Relayed>) {
        let tunnel = self.dialer.connect(&self.target()).await.unwrap();
        self.begin_on(tunnel).await
    }

    pub(crate) async fn begin_on(&self, tunnel: Tunnel<Way>) -> (TcpStream, JoinHandle<Relayed>) {
        let (client, near) = self.client().await;
        (client, spawn_local(tunnel.relay(near, Bytes::new(), Watch::uncounted(Cut::pair().1))))
    }

    /// As [`World::begin`], with the application's end.
    pub(crate) async fn pair(&self) -> (TcpStream, TcpStream, JoinHandle<Relayed>) {
        let (client, relay) = self.begin().await;
        let app = self.app.accept().await.unwrap().0;
        app.set_nodelay(true).unwrap();
        (client, app, relay)
    }

    pub(crate) async fn connect_error(&self) -> OpenError {
        self.dialer.connect(&self.target()).await.expect_err("it connected")
    }

    /// How the accepting side's `n`th relay ended.
    pub(crate) async fn ended(&self, n: usize) -> String {
        until(|| self.gate.ended.borrow().len() > n).await;
        format!("{:?}", self.gate.ended.borrow()[n].end)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Rc<Acceptor>,
    svid: Arc<Svid>,
    gate: Rc<Gate>,
    drain: Drain,
    served: Rc<RefCell<Vec<Result<(), ServeError>>>>,
) {
    // Dropping the set ends what is served: an agent that dies.
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let (io, _) = listener.accept().await.unwrap();
        let (acceptor, svid, gate) = (Rc::clone(&acceptor), Arc::clone(&svid), Rc::clone(&gate));
        let (drain, served) = (drain.clone(), Rc::clone(&served));
        tasks.spawn_local(async move {
            let outcome = acceptor.serve(io, &svid, gate, drain).await;
            served.borrow_mut().push(outcome);
        });
    }
}

fn workload(uid: WorkloadUid) -> Workload {
    Workload {
        uid,
        name: "api-0".into(),
        identity: SpiffeId::parse(SERVER).unwrap(),
        node: "two".into(),
        addresses: vec!["10.0.0.7".parse().unwrap()],
        enrolled: true,
        owner: Owner { kind: "Pod".into(), name: "api-0".into() },
        mtls: MtlsModes { default: MtlsMode::Strict, by_port: Default::default() },
        policies: Vec::new(),
        served: Default::default(),
        agent_lost_after: None,
        connect: None,
        probes: Default::default(),
        unit: None,
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The kind of an end, without its text.
pub(crate) fn kind(end: &End) -> &'static str {
    match end {
        End::Finished => "finished",
        End::ResetByNear => "reset-by-near",
        End::ResetByFar => "reset-by-far",
        End::TunnelLost(_) => "tunnel-lost",
        End::Cut(_) => "cut",
        End::Refused { .. } => "refused",
    }
}

/// Closes with RST.
pub(crate) fn reset(stream: TcpStream) {
    mesh_agent::transport::near::reset(stream);
}

/// Expects RST at the next read.
pub(crate) async fn expect_reset(stream: &mut TcpStream) {
    use tokio::io::AsyncReadExt;
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.expect_err("FIN came instead of RST");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}
