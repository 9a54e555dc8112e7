//! An honest `connect()` on a real kernel: the SYN is held until the agent answers, and ends as it is answered. Needs root;
//! skipped without.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_agent::intercept::{Answer, ConnectChoice, Held, Missing, NeverHeld, PodEvent, PodListeners};
use mesh_core::model::ConnectMode;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

use crate::pod_fixture::{Fixture, LIMIT, Node, OUT4, OUT6, POD4, POD6, accept};

fn honest(tag: &str) -> Option<Fixture> {
    let mut fixture = Fixture::new(tag)?;
    fixture.connect = ConnectChoice::Node(ConnectMode::Honest);
    Some(fixture)
}

/// Follows the kernel's events as an agent does.
fn follow(node: &Node) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let events = node.interceptor.held_events().unwrap();
    runtime.spawn(events.follow());
    runtime
}

fn held(runtime: &Runtime, listeners: &mut PodListeners) -> Held {
    let next = listeners.held.as_mut().unwrap().recv();
    runtime.block_on(async { tokio::time::timeout(LIMIT, next).await }).unwrap().unwrap()
}

#[test]
fn a_held_connect_returns_when_the_agent_connects_back_and_both_ends_see_true_addresses() {
    let Some(fixture) = honest("hold") else { return };
    let mut client = fixture.pod();
    let mut node = fixture.node();
    let runtime = follow(&node);
    fixture.publish(true);
    let (_net, mut listeners) = node.up();
    let cases = [
        (SocketAddr::new(OUT4, 80), SocketAddr::new(OUT4, 80), POD4, POD4.to_string()),
        (SocketAddr::new(OUT6, 81), SocketAddr::new(OUT6, 81), POD6, POD6.to_string()),
        (
            format!("[::ffff:{OUT4}]:82").parse().unwrap(),
            SocketAddr::new(OUT4, 82),
            POD4,
            format!("::ffff:{POD4}"),
        ),
    ];
    for (dialled, original, own, shown) in cases {
        client.tell(&format!("connect {dialled}"));
        let held = held(&runtime, &mut listeners);
        assert_eq!((held.dst, held.client().ip()), (original, own));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(client.heard(), None, "connect() waits for the answer");
        runtime.block_on(async {
            let stream = held.connected().await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), held.client());
        });
        assert_eq!(client.answer(), format!("peer={dialled} local={shown}"));
    }
    // Bytes both ways, the server first.
    for dialled in [SocketAddr::new(OUT4, 83), SocketAddr::new(OUT6, 84)] {
        client.tell(&format!("hear {dialled}"));
        let held = held(&runtime, &mut listeners);
        runtime.block_on(async {
            let mut stream = held.connected().await.unwrap();
            stream.write_all(b"first").await.unwrap();
            let mut text = [0; 6];
            stream.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"second");
        });
        assert_eq!(client.answer(), "heard=first");
    }
    assert_eq!(node.reason("held_answered"), 5);
    assert_eq!(node.reason("orig_dst_published"), 0);
    drop((listeners, runtime));
    node.die();
}

#[test]
fn a_held_connect_fails_as_the_agent_answers() {
    let Some(fixture) = honest("no") else { return };
    let mut client = fixture.pod();
    let mut node = fixture.node();
    let runtime = follow(&node);
    fixture.publish(true);
    let (_net, mut listeners) = node.up();
    let answers = [
        (Answer::Refused, "ConnectionRefused"),
        (Answer::Unreachable(Missing::Host), "HostUnreachable"),
        (Answer::Unreachable(Missing::Network), "NetworkUnreachable"),
    ];
    for to in [OUT4, OUT6] {
        for (answer, error) in answers {
            client.tell(&format!("connect {}", SocketAddr::new(to, 80)));
            let held = held(&runtime, &mut listeners);
            held.answer(answer).unwrap();
            assert_eq!(client.answer(), format!("error={error}"), "{to} {answer:?}");
            runtime.block_on(async { tokio::time::timeout(LIMIT, held.gone()).await }).unwrap();
        }
    }
    assert_eq!(node.reason("held_ended"), 6);
    drop((listeners, runtime));
    node.die();
}

#[test]
fn a_held_client_asks_again_until_it_is_answered_also_by_the_next_agent() {
    let Some(fixture) = honest("again") else { return };
    let mut client = fixture.pod();
    let mut node = fixture.node();
    let runtime = follow(&node);
    fixture.publish(true);
    let (net, mut listeners) = node.up();
    client.tell(&format!("connect {}", SocketAddr::new(OUT4, 80)));
    let mut first = held(&runtime, &mut listeners);
    assert!(runtime.block_on(async { tokio::time::timeout(LIMIT, first.asks_again()).await }).unwrap());
    drop((first, listeners, net, runtime));
    node.die();
    let mut node = fixture.node();
    let runtime = follow(&node);
    let (_net, mut listeners) = node.up();
    let held = held(&runtime, &mut listeners);
    let _stream = runtime.block_on(held.connected()).unwrap();
    assert_eq!(client.answer(), format!("peer={OUT4}:80 local={POD4}"));
    drop((listeners, runtime));
    node.die();
}

#[test]
fn two_thousand_held_connections_are_answered_without_a_failure() {
    let Some(fixture) = honest("many") else { return };
    let mut client = fixture.pod();
    let mut node = fixture.node();
    let runtime = follow(&node);
    fixture.publish(true);
    let (_net, mut listeners) = node.up();
    for to in [OUT4, OUT6] {
        client.tell(&format!("storm {} 2000", SocketAddr::new(to, 80)));
        for _ in 0..2000 {
            let held = held(&runtime, &mut listeners);
            drop(runtime.block_on(held.connected()).unwrap());
        }
        let told = client.answer();
        eprintln!("{told}");
        assert!(told.starts_with("good=2000 "), "{told}");
    }
    drop((listeners, runtime));
    node.die();
}

fn holding(tag: &str, exempt: &[&str]) -> Option<Fixture> {
    let mut fixture = Fixture::new(tag)?;
    let exempt = exempt.iter().map(|namespace| (*namespace).to_owned()).collect();
    let pod_logs = std::env::temp_dir().join(format!("ferromesh-intercept-{tag}-logs"));
    fixture.never_held = NeverHeld { namespaces: exempt, pod_logs };
    Some(fixture)
}

#[test]
fn a_pod_that_is_not_classified_yet_waits_and_is_answered_when_it_is_enrolled() {
    let Some(fixture) = holding("wait", &[]) else { return };
    let mut client = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    let runtime = follow(&node);
    assert_eq!(outsider.ask("listen [::]:91"), "listening");
    for (turn, to) in [OUT4, OUT6].into_iter().enumerate() {
        client.tell(&format!("connect {}", SocketAddr::new(to, 91)));
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!((client.heard(), outsider.heard()), (None, None), "it waits, and nothing leaves the pod");
        fixture.publish(true);
        let (_net, mut listeners) = node.up();
        let held = held(&runtime, &mut listeners);
        assert_eq!(held.dst, SocketAddr::new(to, 91));
        std::thread::sleep(Duration::from_millis(100));
        let _stream = runtime.block_on(held.connected()).unwrap();
        let own = [POD4, POD6][turn];
        assert_eq!(client.answer(), format!("peer={} local={own}", SocketAddr::new(to, 91)));
        if turn == 0 {
            fixture.withdraw();
            assert!(matches!(node.event(), PodEvent::Down { gone: false, .. }));
        }
    }
    assert_eq!(outsider.heard(), None);
    assert!(node.reason("syn_held") >= 4);
    drop(runtime);
    node.die();
}

#[test]
fn a_process_of_another_pod_in_this_pods_namespace_waits_and_is_never_answered_as_this_pod() {
    let Some(mut fixture) = holding("lodger", &[]) else { return };
    fixture.connect = ConnectChoice::Node(ConnectMode::Honest);
    let (mut pod, mut lodger) = (fixture.pod(), fixture.twin());
    let mut node = fixture.node();
    let runtime = follow(&node);
    fixture.publish(true);
    let (_net, mut listeners) = node.up();
    for to in [OUT4, OUT6] {
        let before = node.reason("syn_held");
        lodger.tell(&format!("connect {}", SocketAddr::new(to, 80)));
        let until = Instant::now() + LIMIT;
        while node.reason("syn_held") == before {
            assert!(Instant::now() < until, "its SYN was not held");
            std::thread::sleep(Duration::from_millis(10));
        }
        pod.tell(&format!("connect {}", SocketAddr::new(to, 81)));
        let held = held(&runtime, &mut listeners);
        assert_eq!(held.dst, SocketAddr::new(to, 81), "the other pod's connection came out as this one's");
        let _stream = runtime.block_on(held.connected()).unwrap();
        assert!(pod.answer().starts_with(&format!("peer={}", SocketAddr::new(to, 81))));
        assert_eq!(lodger.heard(), None);
        lodger = fixture.twin();
    }
    drop((listeners, runtime));
    node.die();
}

#[test]
fn what_was_held_of_a_pod_that_is_not_enrolled_is_handed_out_to_be_dialled_plainly() {
    let Some(fixture) = holding("plain", &[]) else { return };
    let mut client = fixture.pod();
    let mut outsider = fixture.outsider();
    let mut node = fixture.node();
    let runtime = follow(&node);
    assert_eq!(outsider.ask("listen [::]:91"), "listening");
    client.tell(&format!("connect {OUT4}:91"));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((client.heard(), outsider.heard()), (None, None));
    fixture.publish(false);
    let PodEvent::Plain(held) = node.event() else { panic!("not released") };
    let _far = runtime.block_on(held.dial()).unwrap();
    assert!(outsider.answer().starts_with(&format!("accept=[::ffff:{POD4}]")));
    let _near = runtime.block_on(held.connected()).unwrap();
    assert_eq!(client.answer(), format!("peer={OUT4}:91 local={POD4}"));
    // From now on nobody stands between.
    assert_eq!(client.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    assert!(node.reason("connect_not_enrolled") > 0);
    drop(runtime);
    node.die();
}

#[test]
fn a_pod_of_an_exempt_namespace_passes_before_anything_is_known_of_the_mesh() {
    let Some(fixture) = holding("exempt", &["kube-system"]) else { return };
    let pod_logs = &fixture.never_held.pod_logs;
    std::fs::create_dir_all(pod_logs.join(format!("kube-system_dns_{}", fixture.uid))).unwrap();
    let mut client = fixture.pod();
    let mut outsider = fixture.outsider();
    let node = fixture.node();
    assert_eq!(outsider.ask("listen 0.0.0.0:91"), "listening");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(client.ask(&format!("connect {OUT4}:91")), format!("peer={OUT4}:91 local={POD4}"));
    assert_eq!(node.reason("syn_held"), 0);
    std::fs::remove_dir_all(pod_logs).unwrap();
    node.die();
}

#[test]
fn an_agent_that_starts_again_takes_nothing_from_a_pod_when_it_forgets_one_that_is_never_held() {
    let Some(fixture) = holding("spare", &["kube-system"]) else { return };
    let pod_logs = &fixture.never_held.pod_logs;
    std::fs::create_dir_all(pod_logs.join(format!("kube-system_dns_{}-twin", fixture.uid))).unwrap();
    let (mut pod, _never_held, mut outsider) = (fixture.pod(), fixture.twin(), fixture.outsider());
    assert_eq!(pod.ask("listen 0.0.0.0:90"), "listening");
    fixture.publish(true);
    for _ in 0..2 {
        let mut node = fixture.node();
        let (_net, listeners) = node.up();
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(outsider.ask(&format!("connect {POD4}:90")), format!("peer={POD4}:90 local={OUT4}"));
        accept(&listeners.inbound);
        node.die();
    }
    std::fs::remove_dir_all(pod_logs).unwrap();
}
