//! The ground of most scenarios: an enrolled namespace `shop` with `web` on node 1 and `api` on node 2, which runs small
//! servers behind a service with a VIP in each family; and `plain`, a namespace outside of the mesh.

use anyhow::{Result, anyhow, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::manifests::ServiceSpec;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Pod, Process};
use serde_json::Value;

pub(crate) const VIP: &str = "10.99.0.10";
pub(crate) const VIP6: &str = "fd99::10";

/// Ports of `api`, on its addresses and on the VIPs.
pub(crate) const ECHO: u16 = 7000;
pub(crate) const NAMES: u16 = 7001;
pub(crate) const BANNER: u16 = 7002;
pub(crate) const EXACT: u16 = 7003;
/// On the VIPs, but nothing listens there.
pub(crate) const NOBODY: u16 = 7009;

pub(crate) struct Shop {
    pub(crate) web: Pod,
    pub(crate) api: Pod,
    servers: Vec<Process>,
    pub(crate) mesh: Mesh,
}

impl Shop {
    /// Opens with `shop` enrolled.
    pub(crate) fn open() -> Result<Self> {
        Self::open_with(Options::default(), true)
    }

    pub(crate) fn open_with(options: Options, enrolled: bool) -> Result<Self> {
        let nodes = u8::try_from(options.transports.len())?;
        let mut mesh = Mesh::prepare(options)?;
        mesh.manifests.namespace("shop", enrolled)?;
        mesh.manifests.namespace("plain", false)?;
        let (web, api) = (mesh.pod("shop", "web", 1)?, mesh.pod("shop", "api", 2)?);
        mesh.manifests.service(&ServiceSpec {
            namespace: "shop",
            name: "api",
            vips: vec![VIP.to_owned(), VIP6.to_owned()],
            ports: [
                ("echo", ECHO),
                ("names", NAMES),
                ("banner", BANNER),
                ("exact", EXACT),
                ("nobody", NOBODY),
            ]
            .map(|(name, port)| (name, port, port))
            .to_vec(),
            backends: vec![(&api, true)],
            more: Value::Null,
        })?;
        let servers = [("echo", ECHO), ("names", NAMES), ("banner", BANNER), ("exact-server", EXACT)];
        let servers: Result<Vec<Process>> =
            servers.iter().map(|(kind, port)| apps::peer_server(&api, kind, *port, &[])).collect();
        let servers = servers?;
        mesh.start_controller()?;
        for node in 1..=nodes {
            mesh.start_agent(node)?;
        }
        let shop = Self { web, api, servers, mesh };
        if enrolled {
            shop.mesh.enrolled(&[&shop.web, &shop.api])?;
        }
        Ok(shop)
    }

    /// `web` asks the echo server behind the VIP.
    pub(crate) fn ask(&self) -> Result<Value> {
        self.ask_from(&self.web, &format!("{VIP}:{ECHO}"))
    }

    /// A pod asks an echo server.
    pub(crate) fn ask_from(&self, pod: &Pod, to: &str) -> Result<Value> {
        pod.peer(&["talk", "--to", to, "--send", "hello", "--half-close"])
    }

    /// Waits until asking succeeds (or, if `works` is false, until it fails).
    pub(crate) fn until_asking(&self, pod: &Pod, to: &str, works: bool) -> Result<Value> {
        self.mesh.in_force(&format!("asking {to} from {} to be {works}", pod.name()), || {
            let told = self.ask_from(pod, to)?;
            if is_echoed(&told) == works { Ok(told) } else { Err(anyhow!("{told}")) }
        })
    }

    /// Lets a pod echo, for as long as the shop is open.
    pub(crate) fn serve(&mut self, pod: &Pod) -> Result<()> {
        self.servers.push(apps::peer_server(pod, "echo", ECHO, &[])?);
        Ok(())
    }

    /// Ends the small servers.
    pub(crate) fn close_servers(&mut self) {
        self.servers.clear();
    }
}

/// True when the answer is the whole question, and ended in order.
pub(crate) fn is_echoed(told: &Value) -> bool {
    told["received"] == "hello" && told["end"] == "eof"
}

/// True when the client was told of a failure: by `connect()`, or by a reset at its next call.
pub(crate) fn was_reset(told: &Value) -> bool {
    // As soon as it was connected: before `connect()` has returned.
    ["refused", "reset"].contains(&text(&told["connect"]))
        || told["end"] == "reset"
        || (told["end"] == "eof" && ["reset", "broken-pipe"].contains(&text(&told["send"])))
}

/// True when nothing came of a connection whose agent could not carry it for a while: a client that was connected at once
/// was reset, one that is told the truth still waited when its own patience ended.
pub(crate) fn came_to_nothing(told: &Value) -> bool {
    was_reset(told) || (told["connect"] != "ok" && text(&told["received"]).is_empty())
}

/// Fails with what was told, unless it is the echo.
pub(crate) fn echoed(told: &Value) -> Result<()> {
    ensure!(is_echoed(told), "not the echo: {told}");
    Ok(())
}

/// The records that both agents wrote of the connection whose client had this address, source side first.
pub(crate) fn both_records(mesh: &Mesh, client: &str) -> Result<[Value; 2]> {
    let source = mesh.record(1, &[(names::CLIENT, client), (names::REPORTER, names::SOURCE)])?;
    let destination = mesh.record(2, &[(names::CLIENT, client), (names::REPORTER, names::DESTINATION)])?;
    Ok([source, destination])
}

/// Fails unless the field has the value.
pub(crate) fn has(record: &Value, name: &str, value: &str) -> Result<()> {
    ensure!(field(record, name) == value, "{name} is {:?}, not {value:?}: {record}", field(record, name));
    Ok(())
}

/// Text of a JSON string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
