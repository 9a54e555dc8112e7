//! Pods that leave the mesh and join it again while they are dialled, and dial.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, Process};
use serde_json::Value;

use crate::shop::{ECHO, Shop};

/// What the kernel counts when it drops a SYN, or does not know whose it is: the client would wait for a second.
const LOST: [&str; 6] = [
    "connect_unclassified",
    "ingress_enrolled",
    "ingress_held",
    "syn_unseen",
    "syn_unseen_held",
    "held_full",
];
/// How often the pods leave and join.
const TURNS: usize = 6;

/// Asks `to` one time after the other.
fn storm(from: &Pod, to: &str) -> Result<Process> {
    from.spawn_peer(&["ticker", "--to", to, "--text", "tick", "--every-ms", "1"])
}

/// What failed, of what was asked so far.
fn failed(clients: &[(&str, Process)]) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    for (who, client) in clients {
        let text = client.stdout();
        ensure!(text.lines().count() > 200, "{who} asked {} times", text.lines().count());
        for line in text.lines() {
            let told: Value = serde_json::from_str(line)?;
            if told["outcome"] != "ok" {
                failed.push(format!("{who}: {line}"));
            }
        }
    }
    Ok(failed)
}

/// How many SYNs both nodes lost, by reason.
fn syns_lost(shop: &Shop) -> Result<Vec<(u8, &'static str, f64)>> {
    let mut lost = Vec::new();
    for node in [1, 2] {
        let metrics = shop.mesh.metrics(node)?;
        let count = |reason| metrics.sum("ferromesh_kernel_decisions_total", &[("reason", reason)]);
        lost.extend(LOST.map(|reason| (node, reason, count(reason))));
    }
    Ok(lost)
}

#[test]
fn pods_that_leave_and_join_again_lose_no_connection_and_no_syn() -> Result<()> {
    // What nobody knows is held: a pod that leaves must be known all the while.
    let mut shop = Shop::open_with(Options { unclassified: "hold".to_owned(), ..Options::default() }, true)?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    shop.serve(&outsider)?;
    for (from, to) in [(&outsider, &shop.api), (&shop.web, &outsider)] {
        shop.until_asking(from, &to.at(ECHO), true)?;
    }
    let before = syns_lost(&shop)?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(("outsider to api", storm(&outsider, &shop.api.at(ECHO))?));
        clients.push(("web to outsider", storm(&shop.web, &outsider.at(ECHO))?));
        clients.push(("web to api", storm(&shop.web, &shop.api.at(ECHO))?));
    }
    for _ in 0..TURNS {
        shop.mesh.manifests.namespace("shop", false)?;
        shop.mesh.in_force("the pods to leave the mesh", || {
            ensure!(!shop.web.listens(15001) && !shop.api.listens(15001), "they are enrolled");
            Ok(())
        })?;
        thread::sleep(Duration::from_millis(300));
        shop.mesh.manifests.namespace("shop", true)?;
        shop.mesh.enrolled(&[&shop.web, &shop.api])?;
        thread::sleep(Duration::from_millis(300));
    }
    let failed = failed(&clients)?;
    ensure!(failed.is_empty(), "{} failed: {:#?}", failed.len(), &failed[..failed.len().min(20)]);
    ensure!(syns_lost(&shop)? == before, "before: {before:?}, then: {:?}", syns_lost(&shop)?);
    Ok(())
}
