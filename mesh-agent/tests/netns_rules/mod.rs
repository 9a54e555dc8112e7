//! Which network namespace is believed to be a pod's: that of a process which is in the pod's cgroup before and after the
//! namespace was opened, which is not the node's nor another pod's, and which has the pod's addresses.

use std::net::SocketAddr;

use crate::pod_fixture::{Fixture, OUT4, POD4, accept};

/// The pod gets a process in its own namespace, and is enrolled there.
fn enrolled_in_its_own(fixture: &Fixture, node: &mut crate::pod_fixture::Node) {
    let mut client = fixture.pod();
    let (net, listeners) = node.up();
    // A listener is found in the namespace in which it was opened: the pod's.
    let dialled = SocketAddr::new(OUT4, 80);
    assert_eq!(client.ask(&format!("connect {dialled}")), format!("peer={dialled} local={POD4}"));
    let (stream, peer) = accept(&listeners.outbound);
    assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), Some(dialled));
}

#[test]
fn a_process_in_the_nodes_namespace_does_not_give_the_pod_the_nodes_namespace() {
    let Some(fixture) = Fixture::new("host") else { return };
    let _first = fixture.host_network();
    let mut node = fixture.node();
    fixture.publish(true);
    node.refuses("the node's own network namespace");
    enrolled_in_its_own(&fixture, &mut node);
    node.die();
}

#[test]
fn a_process_in_another_pods_namespace_does_not_give_the_pod_that_namespace() {
    let Some(fixture) = Fixture::new("stray") else { return };
    let mut stray = fixture.stray();
    let mut server = fixture.outsider();
    let mut node = fixture.node();
    fixture.publish(true);
    node.refuses(&format!("does not have the pod's address {POD4}"));
    enrolled_in_its_own(&fixture, &mut node);
    // What that process dials is no connection of the pod: it never passes as one.
    assert_eq!(server.ask(&format!("listen {OUT4}:81")), "listening");
    let redirected = node.reason("connect_redirected");
    stray.ask(&format!("connect {OUT4}:81"));
    assert_eq!(node.reason("connect_redirected"), redirected);
    node.die();
}

/// Any process of a pod can make a namespace for itself; only the addresses tell which one is the pod's.
#[test]
fn a_pod_whose_addresses_nobody_knows_yet_is_given_no_namespace() {
    let Some(fixture) = Fixture::new("early") else { return };
    let _stray = fixture.stray();
    let mut node = fixture.node();
    fixture.publish_without_addresses();
    node.refuses("does not know the pod's addresses yet");
    fixture.publish(true);
    enrolled_in_its_own(&fixture, &mut node);
    node.die();
}

#[test]
fn a_namespace_is_never_two_pods() {
    let Some(fixture) = Fixture::new("twin") else { return };
    let mut node = fixture.node();
    fixture.publish(true);
    enrolled_in_its_own(&fixture, &mut node);
    let _twin = fixture.twin();
    fixture.publish_twin();
    node.refuses(&format!("already pod {}'s", fixture.uid));
    node.die();
}

#[test]
fn a_process_twelve_cgroups_deep_is_still_the_pods() {
    let Some(fixture) = Fixture::new("deep") else { return };
    // Nothing else runs in the pod: its namespace is found by this process, and its connections are the pod's.
    let mut client = fixture.pod_below(12);
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, listeners) = node.up();
    let dialled = SocketAddr::new(OUT4, 80);
    assert_eq!(client.ask(&format!("connect {dialled}")), format!("peer={dialled} local={POD4}"));
    let (stream, peer) = accept(&listeners.outbound);
    assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), Some(dialled));
    assert_eq!(node.reason("connect_redirected"), 1);
    node.die();
}

/// As with a runtime that starts no pause process: the namespace is there, with its addresses, before any process.
#[test]
fn a_pod_without_a_process_is_found_by_the_runtimes_bind_mount() {
    let Some(mut fixture) = Fixture::new("bound") else { return };
    fixture.bind_mounts();
    let mut node = fixture.node();
    fixture.publish(true);
    let (net, listeners) = node.up();
    let mut client = fixture.pod();
    let dialled = SocketAddr::new(OUT4, 80);
    assert_eq!(client.ask(&format!("connect {dialled}")), format!("peer={dialled} local={POD4}"));
    let (stream, peer) = accept(&listeners.outbound);
    assert_eq!(net.take_original_destination(stream.local_addr().unwrap(), peer), Some(dialled));
    node.die();
}

#[test]
fn of_two_bind_mounts_with_the_pods_addresses_neither_is_believed() {
    let Some(mut fixture) = Fixture::new("stale") else { return };
    fixture.bind_mounts();
    fixture.outsider_takes_the_address();
    let mut node = fixture.node();
    fixture.publish(true);
    node.refuses("several network namespaces have its addresses");
    // A process tells which one it is.
    enrolled_in_its_own(&fixture, &mut node);
    node.die();
}

#[test]
fn a_bind_mount_that_a_process_of_another_pod_is_in_is_not_believed() {
    let Some(mut fixture) = Fixture::new("claim") else { return };
    fixture.bind_mounts();
    let _twin = fixture.twin();
    let mut node = fixture.node();
    fixture.publish(true);
    node.refuses("no process runs in the pod's cgroup");
    node.die();
}
