//! The bytes themselves, over each transport and over nodes that do not offer the same ones.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::mesh::Options;

use crate::shop::{BANNER, EXACT, Shop, VIP, VIP6, both_records, echoed, text};

fn with(transports: [&'static str; 2]) -> Result<Shop> {
    Shop::open_with(Options { transports: transports.to_vec(), ..Options::default() }, true)
}

/// Sends so many bytes there, and as many back after the half-close; the helper compares each.
fn exact(shop: &Shop, to: &str, bytes: u64) -> Result<()> {
    let count = bytes.to_string();
    let client = shop.web.spawn_peer(&["exact", "--to", to, "--bytes", &count])?;
    let told = client.wait(Duration::from_secs(180))?.json()?;
    ensure!(told["exact"] == true, "{bytes} bytes to {to}: {told}");
    eprintln!("{bytes} bytes each way in {:.0} ms", told["ms"].as_f64().unwrap_or_default());
    Ok(())
}

fn small_sizes_are_exact(transports: [&'static str; 2], carried_by: &str) -> Result<()> {
    let shop = with(transports)?;
    for bytes in [0, 1, 2, 1023, 4096, 16_384, 16_385, 65_535, 65_536, 1_000_003, 50_000_000] {
        exact(&shop, &format!("{VIP}:{EXACT}"), bytes)?;
    }
    exact(&shop, &format!("[{VIP6}]:{EXACT}"), 3_000_017)?;
    let told = shop.ask()?;
    echoed(&told)?;
    for record in both_records(&shop.mesh, text(&told["getsockname"]))? {
        ensure!(field(&record, names::PROTOCOL).contains(carried_by), "{record}");
    }
    let banner = shop.web.peer(&["talk", "--to", &format!("{VIP}:{BANNER}"), "--limit", "4"])?;
    ensure!(text(&banner["received"]).starts_with("220 "), "{banner}");
    Ok(())
}

#[test]
fn between_two_agents_ferromesh_1_carries_every_size_byte_for_byte() -> Result<()> {
    small_sizes_are_exact(["auto", "auto"], "ferromesh")
}

#[test]
fn hbone_alone_carries_every_size_byte_for_byte() -> Result<()> {
    small_sizes_are_exact(["hbone", "hbone"], "hbone")
}

#[test]
fn a_source_that_speaks_only_hbone_is_understood() -> Result<()> {
    small_sizes_are_exact(["hbone", "auto"], "hbone")
}

#[test]
fn a_destination_that_speaks_only_hbone_is_understood() -> Result<()> {
    small_sizes_are_exact(["auto", "hbone"], "hbone")
}

#[test]
fn one_gibibyte_each_way_is_exact_by_both_transports() -> Result<()> {
    for transport in ["auto", "hbone"] {
        let shop = with([transport, transport])?;
        exact(&shop, &format!("{VIP}:{EXACT}"), 1 << 30)?;
    }
    Ok(())
}

#[test]
fn sixteen_streams_at_once_are_exact_by_both_transports() -> Result<()> {
    for transport in ["auto", "hbone"] {
        let shop = with([transport, transport])?;
        let to = format!("{VIP}:{EXACT}");
        let clients: Result<Vec<_>> = (0..16_u64)
            .map(|n| shop.web.spawn_peer(&["exact", "--to", &to, "--bytes", &(8_000_000 + n).to_string()]))
            .collect();
        for client in clients? {
            let told = client.wait(Duration::from_secs(120))?.json()?;
            ensure!(told["exact"] == true, "{transport}: {told}");
        }
    }
    Ok(())
}

#[test]
fn one_connection_is_used_again_and_again() -> Result<()> {
    let shop = Shop::open()?;
    echoed(&shop.ask()?)?;
    std::thread::sleep(Duration::from_millis(300));
    let capture = mesh_tests::capture::Capture::start(&shop.mesh.world, 2, "leases")?;
    for _ in 0..30 {
        echoed(&shop.ask()?)?;
    }
    let captured = capture.stop()?;
    let dialled = captured.dialled().get(&15008).copied().unwrap_or_default();
    ensure!(dialled <= 4, "30 connections one after the other took {dialled} handshakes");
    Ok(())
}
