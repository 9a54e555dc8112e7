//! Speakers are listed where their words are taken, bounded, and forgotten.

use mesh_core::snapshot::Upsert;

use super::*;
use crate::fixture;

const PORT: u16 = 80;

/// The end of a connection is noted by the clock.
fn now() -> SystemTime {
    SystemTime::now()
}

fn web() -> Workload {
    fixture::workload("web", [10, 0, 0, 1].into())
}

fn address(number: u8) -> Speaker {
    Speaker::Address([10, 0, 1, number].into())
}

/// What is told on node `n1`: source, port, connections, open ones.
fn told(peers: &PlaintextPeers, web: Workload, now: SystemTime) -> Vec<(Speaker, u16, u64, usize)> {
    let published = fixture::published(vec![Upsert::Workload(web)]);
    let all = peers.list(&published.load(), "n1", now).into_iter();
    all.map(|heard| (heard.source, heard.port, heard.connections, heard.open)).collect()
}

#[test]
fn only_ports_of_enrolled_pods_of_this_node_that_take_plaintext_are_told() {
    let peers = PlaintextPeers::new(now());
    for port in [PORT, 81] {
        drop(peers.note(address(1), &web(), port, now()));
    }
    assert_eq!(told(&peers, web(), now()).len(), 2);
    let mut strict = web();
    strict.mtls.by_port.insert(81, MtlsMode::Strict);
    assert_eq!(told(&peers, strict, now()), [(address(1), PORT, 1, 0)]);
    let elsewhere = Workload { node: "n2".into(), ..web() };
    let plain = Workload { enrolled: false, ..web() };
    let other = fixture::workload("other", [10, 0, 0, 1].into());
    for nobody in [elsewhere, plain, other] {
        assert_eq!(told(&peers, nobody, now()), []);
    }
}

#[test]
fn what_is_beyond_the_caps_is_counted_without_a_name_and_nobody_is_asked_about_it() {
    let peers = PlaintextPeers::new(now());
    let most = u8::try_from(MOST_SOURCES).unwrap();
    for number in 0..most + 3 {
        assert_eq!(peers.may_ask(&web(), PORT).is_some(), number < most);
        drop(peers.note(address(number), &web(), PORT, now()));
    }
    let all = told(&peers, web(), now());
    assert_eq!(all.len(), MOST_SOURCES + 1);
    assert_eq!(all.last(), Some(&(Speaker::Others, PORT, 3, 0)));
    // One that has a name keeps it.
    drop(peers.note(address(0), &web(), PORT, now()));
    assert_eq!(told(&peers, web(), now())[0], (address(0), PORT, 2, 0));

    for port in 1000..1000 + u16::try_from(MOST_TARGETS).unwrap() {
        drop(peers.note(address(1), &web(), port, now()));
    }
    assert_eq!((peers.missed(), told(&peers, web(), now()).len()), (1, MOST_SOURCES + MOST_TARGETS));
    assert!(peers.may_ask(&web(), 9).is_none());
}

#[test]
fn only_so_many_questions_are_open_at_once() {
    let peers = PlaintextPeers::new(now());
    let open: Vec<_> = (0..MOST_QUESTIONS).map(|_| peers.may_ask(&web(), PORT).unwrap()).collect();
    assert!(peers.may_ask(&web(), PORT).is_none());
    drop(open);
    assert!(peers.may_ask(&web(), PORT).is_some());
}

#[test]
fn a_speaker_is_forgotten_after_a_day_without_a_connection_and_makes_room() {
    let peers = PlaintextPeers::new(now());
    let stays = peers.note(address(1), &web(), PORT, now());
    drop(peers.note(address(2), &web(), PORT, now()));
    let later = SystemTime::now() + REMEMBERED * 2;
    assert_eq!(told(&peers, web(), later), [(address(1), PORT, 1, 1)]);
    drop(stays);
    assert_eq!(told(&peers, web(), SystemTime::now()), [(address(1), PORT, 1, 0)]);
    assert_eq!(told(&peers, web(), later), []);
    for port in 0..u16::try_from(MOST_TARGETS).unwrap() {
        drop(peers.note(address(1), &web(), port, now()));
    }
    drop(peers.note(address(1), &web(), 9999, SystemTime::now() + REMEMBERED * 2));
    assert_eq!(peers.missed(), 0);
}
