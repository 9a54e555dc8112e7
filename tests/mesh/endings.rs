//! How connections end: each scene is played over plain TCP and over the mesh, and both sides must tell the same.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::Pod;
use serde_json::Value;

use crate::shop::{Shop, echoed};

const SCENES: [&str; 8] = [
    "orderly",
    "client-half-close",
    "server-half-close",
    "close-unread",
    "client-reset",
    "server-reset",
    "write-after-close",
    "out-of-band",
];

/// Plays a scene; what the server told and what the client told.
pub(crate) fn play(client: &Pod, server: &Pod, scene: &str, port: u16, v6: bool) -> Result<(Value, Value)> {
    let process = apps::peer_server(server, "scene-server", port, &["--scene", scene])?;
    let to = if v6 { server.at6(port) } else { server.at(port) };
    let told = client.peer(&["scene-client", "--to", &to, "--scene", scene])?;
    let server = process.wait(Duration::from_secs(15))?.json().context("the server")?;
    Ok((server, told))
}

fn endings_are_as_over_plain_tcp(transport: &'static str) -> Result<()> {
    let options = Options { transports: vec![transport, transport], ..Options::default() };
    let shop = Shop::open_with(options, true)?;
    let (client, server) = (shop.mesh.pod("plain", "client", 1)?, shop.mesh.pod("plain", "server", 2)?);
    let mut different = Vec::new();
    for (port, scene) in (7200..).zip(SCENES) {
        let plain = play(&client, &server, scene, port, false).with_context(|| format!("plain {scene}"))?;
        for v6 in [false, true] {
            let port = if v6 { port + 50 } else { port };
            match play(&shop.web, &shop.api, scene, port, v6) {
                Ok(meshed) if meshed == plain => {}
                Ok(meshed) => different.push(format!("{scene} v6={v6}: plain {plain:?}, mesh {meshed:?}")),
                Err(error) => different.push(format!("{scene} v6={v6}: plain {plain:?}, mesh {error:#}")),
            }
        }
    }
    ensure!(different.is_empty(), "{}", different.join("\n"));
    // What ended unclean is not used again.
    for _ in 0..20 {
        echoed(&shop.ask()?)?;
    }
    Ok(())
}

#[test]
fn connections_end_over_ferromesh_1_as_over_plain_tcp() -> Result<()> {
    endings_are_as_over_plain_tcp("auto")
}

#[test]
fn connections_end_over_hbone_as_over_plain_tcp() -> Result<()> {
    endings_are_as_over_plain_tcp("hbone")
}
