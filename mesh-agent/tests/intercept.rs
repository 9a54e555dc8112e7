//! Interception on a real kernel: one pod, one outsider, the agent's side in this process. Needs root; skipped without.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it expects")]

mod held;
mod netns_rules;
mod pod_fixture;

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::PinnedLink;
use mesh_agent::intercept::{Interceptor, PodEvent};
use mesh_common::{Endpoint, MAX_PENDING, MAX_PODS, MAX_UNSERVED, OrigKey, Pod};
use mesh_core::snapshot::Upsert;
use pod_fixture::{Fixture, OUT4, OUT6, POD4, POD6, accept};

/// Not a test: what the processes in the pods run.
#[test]
#[ignore = "started by the tests inside a pod"]
fn pod_process() {
    pod_fixture::obey();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_redirected_connection_keeps_its_original_destination_and_shows_true_addresses() {
    let Some(fixture) = Fixture::new("out") else { return };
    let mut client = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, listeners) = node.up();
    let cases = [
        (SocketAddr::new(OUT4, 80), SocketAddr::new(OUT4, 80), POD4.to_string()),
        (SocketAddr::new(OUT6, 81), SocketAddr::new(OUT6, 81), POD6.to_string()),
        (format!("[::ffff:{OUT4}]:82").parse().unwrap(), SocketAddr::new(OUT4, 82), format!("::ffff:{POD4}")),
    ];
    for (dialled, original, local) in cases {
        assert_eq!(client.ask(&format!("connect {dialled}")), format!("peer={dialled} local={local}"));
        let (stream, peer) = accept(&listeners.outbound);
        let at = stream.local_addr().unwrap();
        assert_eq!(net.take_original_destination(at, peer), Some(original), "{dialled}");
        assert_eq!(net.take_original_destination(at, peer), None, "a record is taken once");
    }
    for (dialled, local) in [
        (SocketAddr::new(OUT4, 83), SocketAddr::new(POD4, 4001)),
        (SocketAddr::new(OUT6, 84), SocketAddr::new(POD6, 4002)),
    ] {
        assert_eq!(
            client.ask(&format!("bound {dialled} {}", local.port())),
            format!("peer={dialled} local={local}")
        );
        let (stream, peer) = accept(&listeners.outbound);
        assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), Some(dialled));
    }
    // A client that has closed before the agent accepts: its bytes and its destination are still there.
    for dialled in [SocketAddr::new(OUT4, 85), SocketAddr::new(OUT6, 86)] {
        assert_eq!(client.ask(&format!("brief {dialled}")), "closed");
        thread::sleep(Duration::from_millis(50));
        let (mut stream, peer) = accept(&listeners.outbound);
        assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), Some(dialled));
        let mut text = String::new();
        stream.set_nonblocking(false).unwrap();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text, "brief");
    }
    assert_eq!(node.reason("connect_redirected"), 7);
    assert_eq!(node.reason("orig_dst_published"), 7);
    node.die();
}

#[test]
fn loopback_and_own_addresses_are_left_alone() {
    let Some(fixture) = Fixture::new("own") else { return };
    let mut server = fixture.pod();
    let mut client = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, _listeners) = node.up();
    assert_eq!(server.ask("listen [::]:90"), "listening");
    for at in [format!("{POD4}:90"), format!("[{POD6}]:90"), "127.0.0.1:90".into(), "[::1]:90".into()] {
        let dialled: SocketAddr = at.parse().unwrap();
        assert_eq!(client.ask(&format!("connect {at}")), format!("peer={at} local={}", dialled.ip()));
        assert!(server.answer().starts_with("accept="));
    }
    assert_eq!(node.reason("connect_redirected"), 0);
    assert_eq!(node.reason("connect_loopback"), 2);
    assert_eq!(node.reason("connect_own_address"), 2);
    node.die();
}

#[test]
fn an_application_sees_the_client_that_the_agent_names() {
    let Some(fixture) = Fixture::new("app") else { return };
    let mut server = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, _listeners) = node.up();
    let runtime = runtime();
    let cases = [
        ("10.91.0.1:90", "10.91.0.1:90", "10.1.2.3:4567", "10.1.2.3:4567", "10.91.0.1:90"),
        ("[fd91::1]:91", "[fd91::1]:91", "[fd00::7]:4568", "[fd00::7]:4568", "[fd91::1]:91"),
        ("[::]:92", "10.91.0.1:92", "10.1.2.3:4569", "[::ffff:10.1.2.3]:4569", "[::ffff:10.91.0.1]:92"),
        ("[::]:93", "[fd91::1]:93", "[fd00::8]:4570", "[fd00::8]:4570", "[fd91::1]:93"),
    ];
    for (listen, dst, client, shown, local) in cases {
        assert_eq!(server.ask(&format!("listen {listen}")), "listening");
        let dialled = net.dial_application(dst.parse().unwrap(), client.parse().unwrap());
        let _stream = runtime.block_on(dialled).unwrap();
        assert_eq!(server.answer(), format!("accept={shown} peer={shown} local={local}"), "{listen}");
    }
    let refused = runtime
        .block_on(net.dial_application("10.91.0.1:99".parse().unwrap(), "10.1.2.3:1".parse().unwrap()));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(node.reason("client_moved"), 4);
    node.die();
}

#[test]
fn a_server_in_a_tight_accept_loop_never_sees_a_loopback_peer() {
    let Some(fixture) = Fixture::new("spin") else { return };
    let mut server = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, _listeners) = node.up();
    assert_eq!(server.ask("spin [::]:90 5000"), "listening");
    runtime().block_on(async {
        for turn in 0..5000_u16 {
            let (dst, client) = if turn % 2 == 0 {
                ("10.91.0.1:90", "10.1.2.3:1000")
            } else {
                ("[fd91::1]:90", "[fd00::7]:1000")
            };
            net.dial_application(dst.parse().unwrap(), client.parse().unwrap()).await.unwrap();
        }
    });
    assert_eq!(server.answer(), "seen=5000 loopback=0");
    node.die();
}

#[test]
fn inbound_connections_reach_the_listener_of_their_kind_and_an_empty_slot_drops() {
    let Some(fixture) = Fixture::new("in") else { return };
    let mut server = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(server.ask("listen [::]:90"), "listening");
    for (own, from) in [(POD4, OUT4), (POD6, OUT6)] {
        for port in [15001, 15006, 4444] {
            assert_eq!(
                outsider.ask(&format!("connect {}", SocketAddr::new(own, port))),
                "error=ConnectionRefused"
            );
        }
        for port in [90, 15008] {
            let dialled = SocketAddr::new(own, port);
            assert_eq!(outsider.ask(&format!("connect {dialled}")), format!("peer={dialled} local={from}"));
            let kind = if port == 15008 { &listeners.mtls } else { &listeners.inbound };
            let (stream, peer) = accept(kind);
            assert_eq!((stream.local_addr().unwrap(), peer.ip()), (dialled, from));
        }
    }
    drop(listeners);
    for (own, port) in [(POD4, 90), (POD6, 90), (POD4, 15008), (POD6, 15008)] {
        outsider.until_refused(&SocketAddr::new(own, port).to_string());
    }
    assert_eq!((node.reason("lookup_empty_slot"), node.reason("lookup_closed_port")), (4, 6));
    assert_eq!(server.heard(), None);
    node.die();
}

#[test]
fn unenrolment_restores_direct_connections_both_ways() {
    let Some(fixture) = Fixture::new("off") else { return };
    let mut pod = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(pod.ask("listen 0.0.0.0:90"), "listening");
    assert_eq!(outsider.ask("listen [::]:91"), "listening");
    fixture.publish(false);
    assert!(matches!(node.event(), PodEvent::Down { gone: false, .. }));
    drop(listeners);
    assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
    assert!(pod.answer().starts_with(&format!("accept={OUT4}")));
    assert_eq!(pod.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    assert!(outsider.answer().starts_with(&format!("accept=[::ffff:{POD4}]")));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(pod.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    assert!(node.reason("connect_not_enrolled") > 0);
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(
        outsider.answer().split(' ').next().unwrap().split(']').next().unwrap(),
        format!("accept=[::ffff:{POD4}")
    );
    assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
    accept(&listeners.inbound);
    drop(pod);
    // The cgroup stays; a pod that ends takes its cgroup with it.
    std::fs::remove_dir(fixture.pods_root.join("burstable").join(format!("pod{}", fixture.uid))).unwrap();
    assert!(matches!(node.event(), PodEvent::Down { gone: true, .. }));
    node.die();
}

#[test]
fn unenrolment_ends_the_lookup_at_once_also_while_somebody_has_its_link_open() {
    let Some(fixture) = Fixture::new("flap") else { return };
    let mut pod = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(pod.ask("listen 0.0.0.0:90"), "listening");
    // As the kernel itself has it for a while after the pin is gone.
    let pins = std::fs::read_dir(fixture.pin_dir.join("lookups")).unwrap();
    let open: Vec<_> = pins.map(|pin| PinnedLink::from_pin(pin.unwrap().path()).unwrap()).collect();
    assert_eq!(open.len(), 1);
    fixture.publish(false);
    assert!(matches!(node.event(), PodEvent::Down { gone: false, .. }));
    drop(listeners);
    assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
    assert_eq!(node.reason("lookup_empty_slot"), 0);
    node.die();
}

#[test]
fn a_dead_agent_leaves_the_pod_closed_and_a_new_one_adopts_it() {
    let Some(fixture) = Fixture::new("adopt") else { return };
    let mut pod = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, listeners) = node.up();
    assert_eq!(pod.ask("listen 0.0.0.0:90"), "listening");
    assert_eq!(outsider.ask("listen 0.0.0.0:91"), "listening");
    let links = || {
        let mut names: Vec<_> = std::fs::read_dir(fixture.pin_dir.join("lookups"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = links();
    drop((net, listeners));
    node.die();
    outsider.until_refused(&format!("{POD4}:90"));
    pod.until_refused(&format!("{OUT4}:91"));
    let mut node = fixture.node();
    let (net, listeners) = node.up();
    assert_eq!(links(), before);
    assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
    accept(&listeners.inbound);
    assert_eq!(pod.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    let (stream, peer) = accept(&listeners.outbound);
    let original = net.take_original_destination(stream.local_addr().unwrap(), peer);
    assert_eq!(original, Some(SocketAddr::new(OUT4, 91)));
    assert!(node.reason("orig_dst_abandoned") > 0);
    drop((net, listeners));
    node.die();
    // Un-enrolled while no agent ran: the next one opens what it finds closed.
    fixture.publish(false);
    let node = fixture.node();
    let until = Instant::now() + Duration::from_secs(10);
    while !links().is_empty() {
        assert!(Instant::now() < until, "{:?}", links());
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
    assert!(pod.answer().starts_with(&format!("accept={OUT4}")));
    node.die();
}

#[test]
fn a_taken_port_keeps_the_pod_closed_with_a_problem() {
    let Some(fixture) = Fixture::new("port") else { return };
    let mut pod = fixture.pod();
    let mut outsider = fixture.outsider();
    assert_eq!(pod.ask("listen 0.0.0.0:15006"), "listening");
    assert_eq!(outsider.ask("listen 0.0.0.0:91"), "listening");
    let mut node = fixture.node();
    fixture.publish(true);
    node.refuses("port 15006 is taken in the pod's network namespace");
    assert_eq!(node.interceptor.problems().len(), 1);
    assert_eq!(pod.ask(&format!("connect {OUT4}:91")), "error=PermissionDenied");
    assert_eq!(outsider.ask(&format!("connect {POD4}:15006")), "error=ConnectionRefused");
    assert_eq!(node.reason("connect_pod_closed"), 1);
    drop(pod);
    let mut again = fixture.pod();
    let (_net, listeners) = node.up();
    assert_eq!(again.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    accept(&listeners.outbound);
    let until = Instant::now() + Duration::from_secs(10);
    while !node.interceptor.problems().is_empty() {
        assert!(Instant::now() < until, "{:?}", node.interceptor.problems());
        thread::sleep(Duration::from_millis(10));
    }
    node.die();
}

#[test]
fn this_node_has_what_interception_needs() {
    let Some(_fixture) = Fixture::new("probe") else { return };
    let lacking: Vec<_> = Interceptor::probe().into_iter().filter(|probe| !probe.ok).collect();
    assert!(lacking.is_empty(), "{lacking:#?}");
}

/// Pins a map that is not ours in the place of one.
fn pin_another(fixture: &Fixture, name: &str) {
    let pin = fixture.pin_dir.join(name);
    if pin.exists() {
        std::fs::remove_file(&pin).unwrap();
    }
    std::fs::create_dir_all(&fixture.pin_dir).unwrap();
    let layout = ["type", "hash", "key", "8", "value", "12", "entries", "4", "name", "another"];
    let made = Command::new("bpftool").args(["map", "create"]).arg(pin).args(layout).status().unwrap();
    assert!(made.success());
}

/// Which programs are attached to the pods' cgroup.
fn attached(fixture: &Fixture) -> String {
    let shown = Command::new("bpftool").args(["-j", "cgroup", "show"]).arg(&fixture.pods_root).output();
    String::from_utf8(shown.unwrap().stdout).unwrap()
}

#[test]
fn a_pinned_map_of_another_version_is_refused_and_what_is_attached_stays() {
    let Some(fixture) = Fixture::new("layout") else { return };
    let mut pod = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    drop(node.up());
    node.die();
    assert_eq!(outsider.ask("listen 0.0.0.0:91"), "listening");
    let before = attached(&fixture);
    for map in ["PODS", "SOCKETS"] {
        let kept = fixture.pin_dir.join("kept");
        std::fs::rename(fixture.pin_dir.join(map), &kept).unwrap();
        pin_another(&fixture, map);
        let refused = Interceptor::start(fixture.config()).unwrap_err().to_string();
        assert!(refused.contains(&format!("the pinned map {map} has another layout")), "{refused}");
        std::fs::rename(kept, fixture.pin_dir.join(map)).unwrap();
    }
    assert_eq!(attached(&fixture), before);
    pod.until_refused(&format!("{OUT4}:91"));
}

#[test]
fn a_pinned_map_whose_loss_harms_nobody_begins_anew_and_is_counted_and_told() {
    let Some(fixture) = Fixture::new("anew") else { return };
    pin_another(&fixture, "REASONS");
    let mut pod = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(node.reason("pinned_map_renewed"), 1);
    assert!(node.interceptor.pin_problems()[0].contains("REASONS"));
    assert_eq!(pod.ask(&format!("connect {OUT4}:80")), format!("peer={OUT4}:80 local={POD4}"));
    accept(&listeners.outbound);
    assert_eq!(node.reason("connect_redirected"), 1);
    node.die();
}

#[test]
fn a_pinned_link_that_lost_its_cgroup_is_replaced_and_counted_and_told() {
    let Some(fixture) = Fixture::new("cgroup") else { return };
    let node = fixture.node();
    assert_eq!(node.reason("pinned_link_replaced"), 0);
    node.die();
    let hooks = attached(&fixture).matches("attach_type").count();
    fixture.renew_cgroups();
    assert_eq!(attached(&fixture).matches("attach_type").count(), 0);
    let mut pod = fixture.pod();
    let mut node = fixture.node();
    assert_eq!(node.reason("pinned_link_replaced") as usize, hooks);
    assert!(node.interceptor.pin_problems().iter().any(|problem| problem.contains("on_connect4")));
    assert_eq!(attached(&fixture).matches("attach_type").count(), hooks);
    fixture.publish(true);
    let (_net, listeners) = node.up();
    assert_eq!(pod.ask(&format!("connect {OUT4}:80")), format!("peer={OUT4}:80 local={POD4}"));
    accept(&listeners.outbound);
    node.die();
    let node = fixture.node();
    assert_eq!(node.reason("pinned_link_replaced"), 0, "a link that is attached was not adopted");
    node.die();
}

fn pinned<K: aya::Pod, V: aya::Pod>(fixture: &Fixture, name: &str) -> HashMap<MapData, K, V> {
    let data = MapData::from_pin(fixture.pin_dir.join(name)).unwrap();
    Map::from_map_data(data).unwrap().try_into().unwrap()
}

#[test]
fn a_full_map_refuses_what_comes_and_counts_it() {
    let Some(fixture) = Fixture::new("full") else { return };
    let mut pod = fixture.pod();
    let mut node = fixture.node();
    // No place for another pod: it is not enrolled, which is said, until there is one.
    let mut pods: HashMap<_, u64, Pod> = pinned(&fixture, "PODS");
    let strangers = u64::MAX - u64::from(MAX_PODS)..u64::MAX;
    for id in strangers.clone() {
        pods.insert(id, Pod::default(), 0).unwrap();
    }
    fixture.publish(true);
    let until = Instant::now() + pod_fixture::LIMIT;
    while !node.interceptor.problems().iter().any(|problem| problem.reason.contains("a map entry")) {
        assert!(Instant::now() < until, "{:?}", node.interceptor.problems());
        thread::sleep(Duration::from_millis(10));
    }
    for id in strangers {
        // The agent may have taken it for one of an agent before it, and released it.
        let _released = pods.remove(&id);
    }
    let (net, listeners) = loop {
        if let PodEvent::Up(net, listeners) = node.event()
            && !listeners.outbound.is_empty()
        {
            thread::sleep(Duration::from_millis(300));
            if node.interceptor.problems().is_empty() {
                break (net, listeners);
            }
        }
    };
    // No place for another original destination: the agent resets the connection, and it is counted.
    let mut originals: HashMap<_, OrigKey, Endpoint> = pinned(&fixture, "ORIG_DST");
    for number in 0..MAX_PENDING {
        let key = OrigKey { netns_cookie: u64::from(number), port: 1, ..OrigKey::default() };
        originals.insert(key, Endpoint::default(), 0).unwrap();
    }
    assert_eq!(pod.ask(&format!("connect {OUT4}:80")), format!("peer={OUT4}:80 local={POD4}"));
    let (stream, peer) = accept(&listeners.outbound);
    assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), None);
    assert_eq!(node.reason("orig_dst_full"), 1);
    node.die();
}

#[test]
fn what_the_full_map_of_unserved_addresses_cannot_take_is_the_agents_to_refuse_and_counted() {
    let Some(fixture) = Fixture::new("unserved") else { return };
    let mut pod = fixture.pod();
    let mut node = fixture.node();
    fixture.publish(true);
    let (_net, listeners) = node.up();
    let [first, second]: [SocketAddr; 2] = ["10.95.0.1:80", "10.95.0.2:80"].map(|at| at.parse().unwrap());
    fixture.tell(vec![Upsert::Unserved(first)]);
    pod.until_refused(&first.to_string());
    let mut unserved: HashMap<_, Endpoint, u8> = pinned(&fixture, "UNSERVED");
    let strangers = (1..MAX_UNSERVED).map(|number| Endpoint {
        addr: u128::from(number).to_be_bytes(),
        port: 1,
        ..Endpoint::default()
    });
    for stranger in strangers {
        unserved.insert(stranger, 0, 0).unwrap();
    }
    fixture.tell(vec![Upsert::Unserved(second)]);
    let until = Instant::now() + pod_fixture::LIMIT;
    while node.reason("unserved_map_full") == 0 {
        assert!(Instant::now() < until, "nothing was left out");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(node.reason("unserved_map_full"), 1);
    assert_eq!(pod.ask(&format!("connect {first}")), "error=ConnectionRefused");
    assert_eq!(pod.ask(&format!("connect {second}")), format!("peer={second} local={POD4}"));
    accept(&listeners.outbound);
    node.die();
}
