//! The flow of connections over real loopback sockets, without the kernel programs: what they would tell is given.

use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use mesh_core::model::{
    Affinity, Endpoint, EndpointHealth, MtlsMode, Service, ServiceName, ServicePort, TrafficScope, Workload,
};
use mesh_core::snapshot::Upsert;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::accept::Accepted;
use crate::authorize::CutReason;
use crate::carrier::Carrier;
use crate::context::DataplaneConfig;
use crate::fixture;
use crate::observe::{Named, Speaker};
use crate::{inbound, outbound};

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn context(upserts: Vec<Upsert>) -> Arc<Context> {
    let config = DataplaneConfig { workers: 2, svid_wait: Duration::from_millis(50), ..Default::default() };
    fixture::context(fixture::published(upserts), config)
}

fn pod(name: &str) -> Arc<PodState> {
    let net = PodNet::unintercepted(fixture::uid(name), vec![POD]);
    let most = Caps { connections: 100, handshakes: 100, dials_per_second: 10_000 };
    Arc::new(PodState::new(Arc::new(net), most))
}

/// A connection as the agent's listener would have accepted it; the other end is the client's.
async fn accepted(pod: &PodState, orig_dst: SocketAddr) -> (TcpStream, Accepted) {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (io, _) = listener.accept().await.unwrap();
    let from = SocketAddr::new(POD, 40_000);
    (client, Accepted { io, client: from, orig_dst, pod: Arc::clone(&pod.net) })
}

/// A server that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((LOOPBACK, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    address
}

async fn refusing() -> SocketAddr {
    TcpListener::bind((LOOPBACK, 0)).await.unwrap().local_addr().unwrap()
}

fn service(endpoints: &[SocketAddr]) -> Upsert {
    let endpoint = |at: &SocketAddr| Endpoint {
        workload: None,
        address: at.ip(),
        node: "".into(),
        health: EndpointHealth::Ready,
        ports: vec![(80, at.port())],
    };
    Upsert::Service(Service {
        name: ServiceName { namespace: "shop".into(), name: "db".into() },
        vips: vec![VIP],
        ports: vec![ServicePort { name: "".into(), port: 80 }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        scope: TrafficScope::Cluster,
        affinity: Affinity::None,
    })
}

fn web() -> Upsert {
    Upsert::Workload(fixture::workload("web", POD))
}

async fn is_reset(client: &mut TcpStream) -> bool {
    let mut byte = [0];
    matches!(client.read(&mut byte).await, Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

fn closed(ctx: &Context, flags: &str) -> usize {
    let (text, label) = (ctx.metrics.text().unwrap(), format!("response_flags=\"{flags}\""));
    text.lines()
        .filter(|l| l.starts_with("ferromesh_tcp_connections_closed_total{") && l.contains(&label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
        .sum()
}

async fn local<T>(work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, LocalSet::new().run_until(work)).await.unwrap()
}

async fn speaks(client: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    client.write_all(b"ping").await.is_ok()
        && client.read_exact(&mut answer).await.is_ok()
        && answer == *b"ping"
}

#[tokio::test]
async fn an_address_outside_the_mesh_is_carried_in_plaintext() {
    local(async {
        let ctx = context(vec![web(), Upsert::Absent(LOOPBACK)]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        let (mut client, accepted) = accepted(&pod, echo().await).await;
        let flow = spawn_local(async move { outbound::serve(&carrier, accepted, pod).await });
        assert!(speaks(&mut client).await);
        drop(client);
        flow.await.unwrap();
        assert_eq!(closed(&ctx, "-"), 1);
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_and_a_service_without_any_resets_the_client() {
    local(async {
        let (dead, alive) = (refusing().await, echo().await);
        let ctx = context(vec![web(), service(&[dead, alive]), Upsert::Absent(LOOPBACK)]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        // Loaded, so that the refusing endpoint is drawn first.
        let _busy: Vec<_> = (0..9).map(|_| ctx.balancer.enter(alive)).collect();
        let (mut client, taken) = accepted(&pod, SocketAddr::new(VIP, 80)).await;
        let flow = {
            let (carrier, pod) = (Rc::clone(&carrier), Arc::clone(&pod));
            spawn_local(async move { outbound::serve(&carrier, taken, pod).await })
        };
        assert!(speaks(&mut client).await);
        drop(client);
        flow.await.unwrap();

        fixture::publish(&ctx.published, vec![service(&[dead, refusing().await])]);
        let (mut client, taken) = accepted(&pod, SocketAddr::new(VIP, 80)).await;
        outbound::serve(&carrier, taken, Arc::clone(&pod)).await;
        assert!(is_reset(&mut client).await);
        assert_eq!(closed(&ctx, "connection_refused"), 1);

        for (port, flags) in [(81, "no_such_port"), (80, "no_endpoint")] {
            fixture::publish(&ctx.published, vec![service(&[])]);
            let (mut client, taken) = accepted(&pod, SocketAddr::new(VIP, port)).await;
            outbound::serve(&carrier, taken, Arc::clone(&pod)).await;
            assert!(is_reset(&mut client).await);
            assert_eq!(closed(&ctx, flags), 1, "{flags}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_enrolled_pod_is_never_dialled_in_plaintext_even_behind_a_service_that_names_no_pod() {
    local(async {
        let server = echo().await;
        let db = Upsert::Workload(fixture::workload("db", LOOPBACK));
        let ctx = context(vec![web(), db, service(&[server])]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        for dst in [server, SocketAddr::new(VIP, 80)] {
            let (mut client, taken) = accepted(&pod, dst).await;
            outbound::serve(&carrier, taken, Arc::clone(&pod)).await;
            assert!(is_reset(&mut client).await);
        }
        assert_eq!(closed(&ctx, "no_certificate"), 2, "a tunnel was the only way");
    })
    .await;
}

#[tokio::test]
async fn the_source_resets_what_policy_denies() {
    local(async {
        let server = echo().await;
        let db = Workload { policies: vec![fixture::policy_name()], ..fixture::workload("db", LOOPBACK) };
        let deny = Upsert::Policy(fixture::deny(server.port()));
        let ctx = context(vec![web(), deny, Upsert::Workload(db)]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        let (mut client, taken) = accepted(&pod, server).await;
        outbound::serve(&carrier, taken, pod).await;
        assert!(is_reset(&mut client).await);
        assert_eq!(closed(&ctx, "denied_by_policy"), 1);
    })
    .await;
}

#[tokio::test]
async fn plaintext_is_carried_under_permissive_and_reset_under_strict() {
    local(async {
        let mut web = fixture::workload("web", POD);
        let ctx = context(vec![Upsert::Workload(web.clone())]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        let app = echo().await;
        let (mut client, taken) = accepted(&pod, app).await;
        let flow = {
            let (carrier, pod) = (Rc::clone(&carrier), Arc::clone(&pod));
            spawn_local(async move { inbound::serve_plain(&carrier, taken, pod).await })
        };
        assert!(speaks(&mut client).await);
        drop(client);
        flow.await.unwrap();
        assert_eq!(closed(&ctx, "-"), 1);

        web.mtls.default = MtlsMode::Strict;
        fixture::publish(&ctx.published, vec![Upsert::Workload(web)]);
        let (mut client, taken) = accepted(&pod, app).await;
        inbound::serve_plain(&carrier, taken, pod).await;
        assert!(is_reset(&mut client).await);
        assert_eq!(closed(&ctx, "strict_mtls"), 1);
    })
    .await;
}

async fn until(holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), held).await.unwrap();
}

#[tokio::test]
async fn who_speaks_plaintext_is_listed_while_it_is_taken_and_the_name_of_the_client_is_not_waited_for() {
    local(async {
        let mut web = fixture::workload("web", POD);
        let ctx = context(vec![Upsert::Workload(web.clone())]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        let app = echo().await;
        let heard = || ctx.metrics.plaintext.list(&ctx.snapshot(), "n1", SystemTime::now());
        // Two clients at an address that nobody knows, then two when it is a pod's.
        for of in [None, Some("batch")] {
            for _ in 0..2 {
                let (mut client, taken) = accepted(&pod, app).await;
                let taken = Accepted { client: SocketAddr::new(VIP, 40_000), ..taken };
                let flow = {
                    let (carrier, pod) = (Rc::clone(&carrier), Arc::clone(&pod));
                    spawn_local(async move { inbound::serve_plain(&carrier, taken, pod).await })
                };
                assert!(speaks(&mut client).await);
                until(|| heard().iter().any(|peer| peer.open == 1)).await;
                drop(client);
                flow.await.unwrap();
                until(|| heard().iter().all(|peer| peer.open == 0)).await;
            }
            if of.is_none() {
                let batch = fixture::workload("batch", VIP);
                fixture::publish(&ctx.published, vec![Upsert::Workload(batch)]);
            }
        }
        let told: Vec<_> =
            heard().into_iter().map(|peer| (peer.source, peer.port, peer.connections)).collect();
        let batch = Named { namespace: "shop".into(), owner: "batch".into() };
        let wanted = [(Speaker::Workload(batch), app.port(), 2), (Speaker::Address(VIP), app.port(), 2)];
        assert_eq!(told, wanted);

        web.mtls.default = MtlsMode::Strict;
        fixture::publish(&ctx.published, vec![Upsert::Workload(web)]);
        assert_eq!(heard(), []);
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_comes_to_be_after_its_pod_has_gone_is_ended() {
    local(async {
        let ctx = context(vec![web(), Upsert::Absent(LOOPBACK)]);
        let (carrier, pod) = (Carrier::new(Arc::clone(&ctx), Arc::default()), pod("web"));
        let (mut client, taken) = accepted(&pod, echo().await).await;
        pod.mark_gone();
        outbound::serve(&carrier, taken, pod).await;
        assert!(is_reset(&mut client).await);
        assert_eq!(closed(&ctx, CutReason::PodGone.code()), 1);
    })
    .await;
}

/// The client may see its reset before the agent has written it down.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn listener() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_nobody_redirected_are_reset_and_a_pod_that_left_is_not_served() {
    let ctx = context(vec![web()]);
    let (events, inbox) = mpsc::channel(4);
    let dataplane = Dataplane::start(Arc::clone(&ctx), inbox).unwrap();
    let (listener, address) = listener();
    let listeners = PodListeners { outbound: vec![listener], ..PodListeners::default() };
    let net = Arc::new(PodNet::unintercepted(fixture::uid("web"), vec![POD]));
    events.send(PodEvent::Up(net, listeners)).await.unwrap();
    for _ in 0..8 {
        // The reset may be faster than the client's look at its new socket.
        match TcpStream::connect(address).await {
            Ok(mut client) => assert!(is_reset(&mut client).await),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    let line = "ferromesh_accept_failures_total{reason=\"no_original_destination\"} 8";
    eventually("the failures are counted", || ctx.metrics.text().unwrap().contains(line)).await;
    events.send(PodEvent::Down { uid: fixture::uid("web"), gone: true }).await.unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < end, "the listener is still open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    dataplane.drain(Duration::from_secs(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_closes_listeners_waits_and_then_ends_what_is_left() {
    let ctx = context(vec![web()]);
    let (events, inbox) = mpsc::channel(4);
    let dataplane = Dataplane::start(Arc::clone(&ctx), inbox).unwrap();
    let (listener, address) = listener();
    let listeners = PodListeners { mtls: vec![listener], ..PodListeners::default() };
    let net = Arc::new(PodNet::unintercepted(fixture::uid("web"), vec![POD]));
    events.send(PodEvent::Up(net, listeners)).await.unwrap();
    // Without a certificate each connection is held for `svid_wait` and then reset with a record.
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    for client in &mut clients {
        assert!(is_reset(client).await);
    }
    eventually("each has a record", || closed(&ctx, "no_certificate") == 6).await;
    let before = Instant::now();
    dataplane.drain(Duration::from_secs(5)).await;
    assert!(before.elapsed() < Duration::from_secs(2), "nothing was open");
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(ctx.metrics.open.get(), 0);
}
