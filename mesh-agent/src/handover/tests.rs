//! The protocol between two agents in one process, over a real Unix socket and real listeners.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use mesh_api::encode;
use mesh_api::proto::TrustBundle;
use mesh_common::{PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND};
use mesh_core::snapshot::{Delta, Upsert};
use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::sync::mpsc;

use super::give::GivenUp;
use super::take::claim_as;
use super::wire::{Conversation, VERSION, join, split};
use super::*;
use crate::context::DataplaneConfig;
use crate::control::{Control, ControlSettings, ControlState, NodeSettings, PortableSvid};
use crate::dataplane::Dataplane;
use crate::identify::SvidStore;
use crate::intercept::{Answering, Holder, Inherited, NotAListener, PodEvent, PodListeners, PodNet};
use crate::{fixture, sys};

const LIMIT: Duration = Duration::from_secs(10);
const MAP: u32 = 77;

/// A control plane that has nothing yet.
fn control() -> Control {
    let node = NodeSettings {
        node: "n1".into(),
        trust_domain: fixture::trust_domain(),
        state_dir: PathBuf::new(),
        token_file: None,
    };
    Control::new(&node, Arc::new(SvidStore::new()), &ControlSettings::default())
}

/// A root and an SVID of the workload `web` under it.
fn svid() -> (Vec<u8>, PortableSvid) {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_der = root.self_signed(&root_key).unwrap().der().to_vec();
    let identity = "spiffe://cluster.local/ns/shop/sa/web".to_owned();
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().unwrap())];
    leaf.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
    let chain = vec![leaf.signed_by(&key, &Issuer::new(root, root_key)).unwrap().der().to_vec()];
    (root_der, PortableSvid { identity, key: PrivatePkcs8KeyDer::from(key.serialize_der()), chain })
}

/// A control plane that has a snapshot, a root, an SVID, and one address that it asked for.
fn filled() -> Control {
    let control = control();
    let (root, svid) = svid();
    let web = fixture::workload("web", Ipv4Addr::new(10, 0, 0, 1).into());
    let absent = Upsert::Absent([10, 9, 9, 9].into());
    let delta =
        Delta { version: 9, reset: true, upserts: vec![Upsert::Workload(web), absent], ..Delta::default() };
    let mut snapshot = encode::delta(&delta, &fixture::trust_domain());
    snapshot.trust_bundle = Some(TrustBundle { roots_der: vec![root], ..TrustBundle::default() });
    let addresses = vec![[10, 9, 9, 9].into()];
    control.import(ControlState { snapshot, svids: vec![svid], addresses }).unwrap();
    control
}

fn place() -> Place {
    Place {
        node: "n1".into(),
        trust_domain: "cluster.local".into(),
        pods_cgroup: "/cgroup".into(),
        pin_dir: "/pins".into(),
        metrics_addr: "[::]:15020".into(),
        admin_socket: "/run/agent.sock".into(),
    }
}

/// The running agent: a data plane with one pod, whose three listeners are on an address of their own.
struct Old {
    folder: tempfile::TempDir,
    dataplane: Dataplane,
    address: IpAddr,
    stop: Arc<AtomicBool>,
    holder: Holder,
    giver: Option<Giver>,
}

impl Old {
    async fn new(address: [u8; 4]) -> Self {
        let address = IpAddr::from(address);
        let ctx = fixture::context(fixture::published(Vec::new()), DataplaneConfig::default());
        let (events, inbox) = mpsc::channel(4);
        let dataplane = Dataplane::start(ctx, inbox).unwrap();
        let listen = |port| {
            let listener = TcpListener::bind(SocketAddr::new(address, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            vec![listener]
        };
        let listeners = PodListeners {
            outbound: listen(PORT_OUTBOUND),
            inbound: listen(PORT_INBOUND),
            mtls: listen(PORT_MTLS),
            held: None,
        };
        let mut net = PodNet::unintercepted(fixture::uid("web"), vec![address]);
        net.netns_cookie = sys::netns_cookie(&listeners.outbound[0]).unwrap();
        events.send(PodEvent::Up(Arc::new(net), listeners)).await.unwrap();
        // The interceptor of a running agent goes on.
        std::mem::forget(events);
        let (holder, stop) = (Holder::default(), Arc::new(AtomicBool::new(false)));
        let (paced, stopped) = (holder.clone(), Arc::clone(&stop));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                paced.pauses();
                thread::sleep(Duration::from_millis(1));
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let socket = HandoverSocket::bind(&folder.path().join("agent.handover")).unwrap();
        let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let admin = std::os::unix::net::UnixListener::bind(folder.path().join("admin.sock")).unwrap();
        let offer = Offer {
            place: place(),
            control: filled(),
            lender: dataplane.lender(),
            holder: holder.clone(),
            listeners_map: MAP,
            metrics: metrics.into(),
            admin: admin.into(),
        };
        let giver = Some(Giver::new(socket, offer));
        Self { folder, dataplane, address, stop, holder, giver }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.handover")
    }

    /// Begins to wait for a successor.
    fn wait(&mut self) -> tokio::task::JoinHandle<GivenUp> {
        let giver = self.giver.take().unwrap();
        tokio::spawn(giver.replaced())
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.dataplane.drain(Duration::ZERO).await;
    }
}

/// A blocking claim on a thread that may block.
async fn claimed(socket: PathBuf) -> Result<Option<(Claim, Estate)>, HandoverError> {
    tokio::task::spawn_blocking(move || claim(&socket, &place())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_gets_listeners_snapshot_and_keys_and_the_running_agent_ends_when_it_serves() {
    let mut old = Old::new([127, 77, 1, 1]).await;
    let mode = std::fs::metadata(old.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let giving = old.wait();
    let (claim, estate) = claimed(old.socket()).await.unwrap().unwrap();
    assert!(old.holder.is_held(), "the kernel is not left to the successor");
    assert_eq!((estate.pods.len(), estate.pods.listeners_map), (1, MAP));
    let new = control();
    new.import(estate.control).unwrap();
    let (before, after) = (filled().published.load(), new.published.load());
    assert_eq!(after.version, before.version);
    assert_eq!(after.workloads().count(), 1);
    let names: BTreeSet<String> = new.svids.all().keys().map(ToString::to_string).collect();
    assert_eq!(names, BTreeSet::from(["spiffe://cluster.local/ns/shop/sa/web".to_owned()]));
    assert_eq!(new.svids.trust().roots.len(), 1);
    assert!(new.status.not_ready().is_none());
    // It gives the same away in its turn, the private key too.
    let again = new.export().unwrap();
    assert_eq!(again.svids.len(), 1);
    assert_eq!(again.addresses, [IpAddr::from([10, 9, 9, 9])]);
    assert!(!giving.is_finished());
    let serving = tokio::task::spawn_blocking(move || claim.serving());
    giving.await.unwrap().done(&Answering::default()).await;
    serving.await.unwrap().unwrap();
    // The sockets live on in the successor when the running agent has gone.
    let (mut pods, address) = (estate.pods, old.address);
    old.end().await;
    let cookie = {
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sys::netns_cookie(&any).unwrap()
    };
    let listeners = pods.take(&fixture::uid("web"), cookie).unwrap();
    let mut client = TcpStream::connect((address, PORT_OUTBOUND)).unwrap();
    client.write_all(b"x").unwrap();
    listeners.outbound[0].set_nonblocking(false).unwrap();
    let (mut accepted, _) = listeners.outbound[0].accept().unwrap();
    accepted.read_exact(&mut [0]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_dies_or_is_of_another_version_or_place_changes_nothing() {
    let mut old = Old::new([127, 77, 1, 2]).await;
    let giving = old.wait();
    let socket = old.socket();
    // Died with everything in its hands.
    drop(claimed(socket.clone()).await.unwrap().unwrap());
    // Another version: the running agent says which one it has.
    let path = socket.clone();
    let preface = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(b"fm-hand").unwrap();
        stream.write_all(&[VERSION + 1]).unwrap();
        let mut answer = Vec::new();
        // The end of the conversation may come as a reset.
        let _reset = stream.read_to_end(&mut answer);
        answer
    });
    assert_eq!(preface.await.unwrap().last(), Some(&VERSION));
    // Another node's.
    let path = socket.clone();
    let elsewhere = Place { node: "n2".into(), ..place() };
    let refused = tokio::task::spawn_blocking(move || claim(&path, &elsewhere)).await.unwrap();
    assert!(matches!(refused, Err(HandoverError::Refused(_))), "{refused:?}");
    // The running agent is as it was: it keeps the kernel in step, accepts, and gives to the next that asks.
    tokio::time::timeout(LIMIT, async {
        while old.holder.is_held() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap();
    assert!(TcpStream::connect((old.address, PORT_OUTBOUND)).is_ok());
    assert!(!giving.is_finished());
    let (claim, _) = claimed(socket).await.unwrap().unwrap();
    let serving = tokio::task::spawn_blocking(move || claim.serving());
    giving.await.unwrap().done(&Answering::default()).await;
    serving.await.unwrap().unwrap();
    old.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_go_to_nobody_of_another_user_and_are_taken_from_nobody_else() {
    let mut old = Old::new([127, 77, 1, 3]).await;
    let socket = old.socket();
    let giver = old.giver.take().unwrap().run_by(own_user() + 1);
    let giving = tokio::spawn(giver.replaced());
    let refused = claimed(socket.clone()).await;
    assert!(refused.is_err(), "a stranger was given the keys");
    let stranger = own_user() + 1;
    let refused = tokio::task::spawn_blocking(move || claim_as(&socket, &place(), stranger)).await.unwrap();
    assert!(matches!(refused, Err(HandoverError::Stranger { .. })), "{refused:?}");
    giving.abort();
    old.end().await;
}

#[test]
fn without_a_running_agent_there_is_nothing_to_take() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.handover");
    assert!(claim(&path, &place()).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(claim(&path, &place()).unwrap().is_none(), "a killed agent left its socket");
}

#[test]
fn a_socket_that_is_not_the_pods_listener_is_refused() {
    let uid = || fixture::uid("web");
    let listener = TcpListener::bind("127.77.1.4:15001").unwrap();
    let cookie = sys::netns_cookie(&listener).unwrap();
    let outbound = |socket: &TcpListener| PodListeners {
        outbound: vec![socket.try_clone().unwrap()],
        ..PodListeners::default()
    };
    let mut inherited = Inherited::new(MAP);
    let other = inherited.add(uid(), cookie + 1, outbound(&listener));
    assert!(matches!(other, Err(NotAListener::Namespace(_))), "{other:?}");
    let elsewhere = TcpListener::bind("127.77.1.4:0").unwrap();
    let other = inherited.add(uid(), cookie, outbound(&elsewhere));
    assert!(matches!(other, Err(NotAListener::Port { .. })), "{other:?}");
    let stream = TcpStream::connect("127.77.1.4:15001").unwrap();
    let stream = TcpListener::from(std::os::fd::OwnedFd::from(stream));
    let other = inherited.add(uid(), cookie, outbound(&stream));
    assert!(matches!(other, Err(NotAListener::Kind(_))), "{other:?}");
    assert!(inherited.is_empty());
    inherited.add(uid(), cookie, outbound(&listener)).unwrap();
    assert!(inherited.take(&uid(), cookie + 1).is_none());
}

proptest! {
    #[test]
    fn any_bytes_from_the_other_agent_end_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&bytes).unwrap();
        drop(theirs);
        let mut conversation = Conversation::new(ours, LIMIT).unwrap();
        prop_assert!(estate::receive(&mut conversation).is_err());
    }

    #[test]
    fn parts_survive(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..32), 0..8)) {
        let joined = join(parts.iter().map(Vec::as_slice));
        let expected: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(split(&joined), Some(expected));
        if !joined.is_empty() {
            prop_assert_eq!(split(&joined[..joined.len() - 1]), None);
        }
    }
}
