//! What a large cluster costs the control plane: a real API server with a generated population, a real controller, a real agent,
//! and agents without nodes that hold streams.
//!
//! In: how many services (of twenty pods each), streams and changes. Out: tables of times, bytes and memory. A tenth of the
//! services is what the agents' pods use; nine tenths come in two steps, so that it is seen who pays for them.

mod agents;
mod api;
mod population;

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::transport::Identity;

use super::node::{mib, resident};
use crate::mesh::{Mesh, Options};
use crate::world::{CONTROLLER_V4, PodSpec, netns};
use agents::{Controller, Seen};
use api::Api;
use population::{PORT, Population};

/// How many services an agent's pods use beside the one that changes.
const USED: u32 = 20;
/// The service that changes.
const CHANGING: u32 = 0;
/// The namespace of the first services.
const FIRST_NAMESPACE: &str = "team-0";
/// How long everybody may take to be told of anything.
const TOLD: Duration = Duration::from_secs(180);

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services, of twenty pods each.
    pub services: u32,
    /// Streams while changes are measured; as many nodes have the pods.
    pub agents: u32,
    /// Changes that are measured.
    pub changes: u32,
    /// Streams that open again after a restart of the controller.
    pub streams: u32,
}

/// Streams, and what comes over them.
struct Streams {
    tasks: JoinSet<()>,
    events: mpsc::UnboundedReceiver<Seen>,
    count: usize,
}

/// Everything that runs.
struct Bench {
    size: Size,
    population: Population,
    runtime: tokio::runtime::Runtime,
    api: Api,
    mesh: Mesh,
}

/// Prints what a cluster of `size` costs.
pub fn scale(size: Size) -> Result<()> {
    ensure!(
        size.services >= 100 && size.agents > 0 && size.changes > 0,
        "at least 100 services, 1 agent, 1 change"
    );
    let mut bench = Bench::start(size)?;
    let related = size.services / 10;
    let few = related + size.services * 9 / 100;
    bench.populate(0..related)?;
    bench.use_services(related)?;
    println!("| services | pods | controller, MiB | agent, MiB |\n|---|---|---|---|");
    bench.memory(related)?;
    bench.populate(related..few)?;
    bench.memory(few)?;
    bench.populate(few..size.services)?;
    bench.memory(size.services)?;

    let controller = bench.controller()?;
    let identities = bench.join(&controller)?;
    let mut streams = bench.attend(&controller, &identities, size.agents as usize, related);
    let first = bench.until_reset(&mut streams)?;
    println!("\n{} agents hold {:.0} KiB each after {:.1} s", size.agents, first.kib_each, first.seconds);
    bench.memory(size.services)?;
    bench.changes(&mut streams)?;
    bench.restart(&mut streams)?;
    drop(streams);
    let mut streams = bench.attend(&controller, &identities, size.streams as usize, related);
    bench.until_reset(&mut streams)?;
    bench.memory(size.services)?;
    bench.restart(&mut streams)?;
    bench.memory(size.services)
}

/// Everybody's first message.
struct First {
    seconds: f64,
    kib_each: f64,
}

impl Bench {
    fn start(size: Size) -> Result<Self> {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
            .context("the limit of open files")?;
        let options = Options { kube: true, transports: vec!["auto"], ..Options::default() };
        let mesh = Mesh::start_with(options)?;
        let cluster = mesh.cluster.as_ref().context("the API server")?;
        let api = Api::new(cluster)?;
        // The runtime's threads are where their first one is: on the wire.
        let runtime = netns::inside(&mesh.world.wire().netns, tokio::runtime::Runtime::new)??;
        Ok(Self { size, population: Population { nodes: size.agents }, runtime, api, mesh })
    }

    /// Runs on the runtime's threads, not on this one, which is elsewhere.
    fn run<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(work))?
    }

    fn populate(&self, services: std::ops::Range<u32>) -> Result<()> {
        let began = Instant::now();
        for jobs in [population::namespaces(services.clone()), self.population.services(services.clone())] {
            let api = self.api.clone();
            self.run(async move { api.all(jobs).await })?;
        }
        eprintln!("services {services:?} made in {:.0} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// A real pod of the real agent's node asks services, so that the agent holds them.
    fn use_services(&self, related: u32) -> Result<()> {
        let cluster = self.mesh.cluster.as_ref().context("the API server")?;
        let web = cluster.pod(&self.mesh.world, &PodSpec::new(FIRST_NAMESPACE, "web", 1))?;
        self.mesh.enrolled(&[&web])?;
        let talk = |service| {
            let to = SocketAddr::from((population::vip(service), PORT)).to_string();
            web.spawn_peer(&["talk", "--to", &to, "--send", "hello"])
        };
        let talks = used(0, related).map(talk).collect::<Result<Vec<_>>>()?;
        for talk in talks {
            // Nobody is there: what counts is that the agent looked the service up.
            talk.wait(TOLD)?;
        }
        Ok(())
    }

    fn memory(&mut self, services: u32) -> Result<()> {
        // What is on its way arrives first.
        std::thread::sleep(Duration::from_secs(3));
        let (controller, agent) = (self.mesh.controller()?.id(), self.mesh.agent(1)?.id());
        let pods = services * population::PODS_PER_SERVICE;
        let (controller, agent) = (mib(resident(controller)?), mib(resident(agent)?));
        println!("| {services} | {pods} | {controller:.1} | {agent:.1} |");
        Ok(())
    }

    fn controller(&self) -> Result<Controller> {
        let state = self.mesh.world.files.join("controller");
        let read = |name: &str| fs::read(state.join(name)).with_context(|| name.to_owned());
        Ok(Controller {
            address: format!("{CONTROLLER_V4}:15010"),
            root: read("ca/root.pem")?,
            admin: (read("admin/cert.pem")?, read("admin/key.pem")?),
        })
    }

    fn join(&self, controller: &Controller) -> Result<Vec<Identity>> {
        let (controller, began) = (controller.clone(), Instant::now());
        let count = self.size.streams.max(self.size.agents);
        let identities =
            self.run(async move { controller.join((0..count).map(population::node).collect()).await })?;
        let seconds = began.elapsed().as_secs_f64();
        println!("\n{count} agents joined one after the other in {seconds:.1} s");
        Ok(identities)
    }

    fn attend(
        &self,
        controller: &Controller,
        identities: &[Identity],
        count: usize,
        related: u32,
    ) -> Streams {
        let (sender, events) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for (agent, identity) in identities.iter().take(count).enumerate() {
            let number = u32::try_from(agent).unwrap_or_default();
            let addresses =
                used(number, related).map(|service| IpAddr::from(population::vip(service))).collect();
            let attending =
                agents::attend(controller.clone(), agent, identity.clone(), addresses, sender.clone());
            tasks.spawn_on(attending, self.runtime.handle());
        }
        Streams { tasks, events, count }
    }

    /// Until every stream has been sent its whole state.
    fn until_reset(&self, streams: &mut Streams) -> Result<First> {
        let (began, mut bytes) = (Instant::now(), 0);
        let mut missing: HashSet<usize> = (0..streams.count).collect();
        let count = streams.count;
        while !missing.is_empty() {
            let left = missing.len();
            let seen = self.runtime.block_on(async { timeout(TOLD, streams.events.recv()).await });
            let seen =
                seen.ok().flatten().with_context(|| format!("{left} of {count} streams got nothing"))?;
            if seen.reset && missing.remove(&seen.agent) {
                bytes += seen.bytes;
            }
        }
        let kib_each = bytes as f64 / count as f64 / 1024.0;
        Ok(First { seconds: began.elapsed().as_secs_f64(), kib_each })
    }

    /// Changes one endpoint again and again, each time when everybody has been told of the last.
    fn changes(&self, streams: &mut Streams) -> Result<()> {
        let (mut each, mut last, mut bytes, mut resources) = (Vec::new(), Vec::new(), 0, 0);
        let cpu = cpu_seconds(self.mesh.controller()?.id())?;
        for change in 0..self.size.changes {
            let (api, write) = (self.api.clone(), self.population.readiness(CHANGING, change % 2 == 1));
            let changed = self.run(async move {
                let mut connection = api.connect().await?;
                let began = Instant::now();
                api.send(&mut connection, write).await?;
                Ok(began)
            })?;
            let mut missing: HashSet<usize> = (0..streams.count).collect();
            while !missing.is_empty() {
                let seen = self.runtime.block_on(async { timeout(TOLD, streams.events.recv()).await });
                let seen =
                    seen.ok().flatten().with_context(|| format!("change {change}: {missing:?} not told"))?;
                if missing.remove(&seen.agent) {
                    each.push(seen.at.duration_since(changed).as_secs_f64() * 1000.0);
                }
                (bytes, resources) = (bytes + seen.bytes, resources + seen.resources);
                if missing.is_empty() {
                    last.push(seen.at.duration_since(changed).as_secs_f64() * 1000.0);
                }
            }
        }
        let cpu = (cpu_seconds(self.mesh.controller()?.id())? - cpu) * 1000.0 / f64::from(self.size.changes);
        let told = f64::from(self.size.changes) * streams.count as f64;
        println!("\n| from an endpoint's change until told, ms | p50 | p99 |\n|---|---|---|");
        println!(
            "| any of {} agents | {:.1} | {:.1} |",
            streams.count,
            quantile(&mut each, 0.5),
            quantile(&mut each, 0.99)
        );
        println!("| the last of them | {:.1} | {:.1} |", quantile(&mut last, 0.5), quantile(&mut last, 0.99));
        println!(
            "\nEach change: {:.0} bytes and {:.1} resources an agent, {cpu:.0} ms of the controller's CPU",
            bytes as f64 / told,
            resources as f64 / told
        );
        Ok(())
    }

    /// Kills the controller and starts it anew.
    fn restart(&mut self, streams: &mut Streams) -> Result<()> {
        self.mesh.kill_controller();
        while streams.events.try_recv().is_ok() {}
        let began = Instant::now();
        self.mesh.start_controller()?;
        let serves = began.elapsed().as_secs_f64();
        self.until_reset(streams)?;
        let (all, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds(self.mesh.controller()?.id())?);
        println!(
            "\nA controller that starts anew serves after {serves:.1} s; all {} streams have their state again after {all:.1} s \
             ({cpu:.1} s of its CPU)",
            streams.count
        );
        Ok(())
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// The services that the pods of an agent use: the one that changes, and others.
fn used(agent: u32, related: u32) -> impl Iterator<Item = u32> {
    [CHANGING].into_iter().chain((1..=USED).map(move |at| (agent * USED + at) % related))
}

fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1) as f64;
    values.get((last * at).round() as usize).copied().unwrap_or_default()
}

/// What a process has burnt.
fn cpu_seconds(process: u32) -> Result<f64> {
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("/proc/PID/stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}
