//! One path from a pod on node 1 to a pod on node 2, made afresh and measured once.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Figures, Measure, haproxy};
use crate::apps::{self, Nginx};
use crate::mesh::{Mesh, Options};
use crate::world::{Pod, PodSpec, Process, World};

/// What lies between the two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Path {
    /// Nothing.
    Direct,
    /// Two agents, leased mTLS connections.
    Ferromesh,
    /// The same; `connect()` returns at once, not when the destination was dialled.
    Eager,
    /// Two agents, HTTP/2 CONNECT.
    Hbone,
    /// Two haproxy on the nodes, plain TCP.
    Haproxy,
    /// Two haproxy in the pods' network namespaces, where the mesh's own sockets are, plain TCP.
    HaproxyInPods,
    /// Two haproxy on the nodes, mutual TLS for each connection.
    HaproxyMtls,
}

impl Path {
    /// All, in the order in which a round measures them.
    pub const ALL: [Self; 7] = [
        Self::Direct,
        Self::Ferromesh,
        Self::Eager,
        Self::Hbone,
        Self::Haproxy,
        Self::HaproxyInPods,
        Self::HaproxyMtls,
    ];

    /// For the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Ferromesh => "mesh, ferromesh/1",
            Self::Eager => "mesh, ferromesh/1, eager",
            Self::Hbone => "mesh, HBONE",
            Self::Haproxy => "two haproxy, plain",
            Self::HaproxyInPods => "two haproxy, plain, in pods",
            Self::HaproxyMtls => "two haproxy, mTLS each",
        }
    }
}

/// Ports of the servers on node 2; haproxy listens on the same ones on node 1.
pub(super) const SINK: u16 = 7001;
pub(super) const ECHO: u16 = 7000;
pub(super) const ONCE: u16 = 7002;
pub(super) const HTTP: u16 = 80;

/// The two pods, the servers, and whom the client dials.
struct Ends {
    client: Pod,
    to: String,
    _servers: Vec<Process>,
    _nginx: Nginx,
}

/// Makes the path, measures, and removes it.
pub(super) fn measure(path: Path, seconds: f64, measures: &[Measure]) -> Result<Figures> {
    match path {
        Path::Ferromesh | Path::Eager | Path::Hbone => {
            let transport = if path == Path::Hbone { "hbone" } else { "auto" };
            let mut mesh = Mesh::prepare(Options {
                transports: vec![transport; 2],
                connect: if path == Path::Eager { "eager" } else { "auto" }.to_owned(),
                ..Options::default()
            })?;
            mesh.manifests.namespace("bench", true)?;
            let (client, server) = (mesh.pod("bench", "client", 1)?, mesh.pod("bench", "server", 2)?);
            mesh.start_controller()?;
            mesh.start_agent(1)?;
            mesh.start_agent(2)?;
            mesh.enrolled(&[&client, &server])?;
            let to = server.v4.to_string();
            let ends = ends(client, &server, to)?;
            let figures = figures(&ends, seconds, measures)?;
            // What was measured is what was meant.
            let tunnelled = mesh.access_log(1).0.len();
            if tunnelled == 0 {
                bail!("the agent carried nothing");
            }
            Ok(figures)
        }
        Path::Direct | Path::Haproxy | Path::HaproxyInPods | Path::HaproxyMtls => {
            let world = World::new()?;
            let client = world.pod(&PodSpec::new("bench", "client", 1))?;
            let server = world.pod(&PodSpec::new("bench", "server", 2))?;
            let (to, proxies) = match path {
                Path::Direct => (server.v4, Vec::new()),
                Path::HaproxyInPods => haproxy::start_in_pods(&world, &client, &server)?,
                _ => haproxy::start(&world, &server, path == Path::HaproxyMtls)?,
            };
            let figures = figures(&ends(client, &server, to.to_string())?, seconds, measures);
            drop(proxies);
            figures
        }
    }
}

fn ends(client: Pod, server: &Pod, to: String) -> Result<Ends> {
    let servers = [("sink", SINK), ("echo", ECHO), ("once", ONCE)];
    let servers: Result<Vec<Process>> =
        servers.iter().map(|(kind, port)| apps::peer_server(server, kind, *port, &[])).collect();
    let servers = servers?;
    let nginx = Nginx::start(server, "fine")?;
    Ok(Ends { client, to, _servers: servers, _nginx: nginx })
}

fn figures(ends: &Ends, seconds: f64, measures: &[Measure]) -> Result<Figures> {
    let time = seconds.to_string();
    let at = |port: u16| format!("{}:{port}", ends.to);
    let peer = |task: &str, port: u16, field: &str| -> Result<f64> {
        let told = ends.client.peer(&[task, "--to", &at(port), "--seconds", &time])?;
        let errors = told["errors"].as_object().is_some_and(|errors| !errors.is_empty());
        if errors {
            bail!("{task}: {told}");
        }
        told[field].as_f64().with_context(|| format!("{task}: {told}"))
    };
    // The first connection pays for what is set up once.
    let warm: Value = ends.client.peer(&["pingpong", "--to", &at(ECHO), "--seconds", "0.3"])?;
    if warm["count"].as_u64().unwrap_or_default() == 0 {
        bail!("the path does not work: {warm}");
    }
    let figure = |measure: &Measure| match measure {
        Measure::Stream => peer("bulk", SINK, "gbit_s"),
        Measure::PingPong => peer("pingpong", ECHO, "p50_us"),
        Measure::Connect => peer("rate", ONCE, "per_second"),
        Measure::KeepAlive => http(&ends.client, &at(HTTP), seconds),
    };
    measures.iter().map(figure).collect()
}

/// wrk, 16 connections that are kept.
fn http(client: &Pod, to: &str, seconds: f64) -> Result<f64> {
    let time = format!("{}s", seconds.ceil());
    let url = format!("http://{to}/status");
    let limit = Duration::from_secs_f64(seconds + 30.0);
    let told = client.run_for(limit, "wrk", &["-t2", "-c16", "-d", &time, &url])?.success()?;
    if told.contains("Socket errors") || told.contains("Non-2xx") {
        bail!("wrk: {told}");
    }
    let line = told.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("wrk: {told}"))
}
