//! The golden metrics of a connection: its bytes count while it is open, at both ends, and are the same once it has ended.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::Options;
use mesh_tests::poll::until;

use crate::shop::{ECHO, Shop, VIP, text};

/// Opened, closed, bytes to the client, bytes from it; at the agent of `node`.
fn counted(shop: &Shop, node: u8) -> Result<[f64; 4]> {
    let metrics = shop.mesh.metrics(node)?;
    let names = ["connections_opened", "connections_closed", "sent_bytes", "received_bytes"];
    Ok(names.map(|name| metrics.sum(&format!("ferromesh_tcp_{name}_total"), &[])))
}

fn bytes_count_while_the_connection_is_open(transport: &'static str) -> Result<()> {
    let options = Options { transports: vec![transport, transport], ..Options::default() };
    let shop = Shop::open_with(options, true)?;
    let before = [counted(&shop, 1)?, counted(&shop, 2)?];
    let grown = |[opened, closed, sent, received]: [f64; 4]| {
        until("the counters to have grown", Duration::from_secs(10), || {
            for (node, before) in (1..).zip(before) {
                let now = counted(&shop, node)?;
                let expected =
                    [before[0] + opened, before[1] + closed, before[2] + sent, before[3] + received];
                ensure!(now == expected, "node {node}: {now:?} instead of {expected:?}");
            }
            Ok(())
        })
    };
    let to = format!("{VIP}:{ECHO}");
    let talk = ["talk", "--to", &to, "--send", "hello", "--again-after-ms", "6000", "--limit", "10"];
    let talk = shop.web.spawn_peer(&talk)?;
    grown([1.0, 0.0, 5.0, 5.0])?;
    let told = talk.wait(Duration::from_secs(15))?.json()?;
    ensure!(text(&told["received"]) == "hellohello", "{told}");
    grown([1.0, 1.0, 10.0, 10.0])
}

#[test]
fn over_ferromesh_1_bytes_count_while_the_connection_is_open() -> Result<()> {
    bytes_count_while_the_connection_is_open("auto")
}

#[test]
fn over_hbone_bytes_count_while_the_connection_is_open() -> Result<()> {
    bytes_count_while_the_connection_is_open("hbone")
}
