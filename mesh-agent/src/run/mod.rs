//! The agent as a whole: the command line's settings come in, a running agent that ends with a drain goes out.
//!
//! The control plane, metrics and administration have a runtime of one or two threads; the data plane has its own.

mod local;
mod pods;
mod ports;
mod ready;
mod steady;
mod takeover;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{AfterHandover, AgentArgs, OtherSockets, Unclassified};
use crate::context::{Context, DataplaneConfig};
use crate::control::{Control, ControlSettings, Controller, NodeIdentity};
use crate::dataplane::Dataplane;
use crate::handover::{Giver, Offer, Place};
use crate::identify::SvidStore;
use crate::intercept::{
    Answering, Config, Inherited, Interceptor, Kubelet, PodEvent, Running, exclusive_programs, probe,
};
use crate::observe::{Metrics, Readiness, SeriesLimits};
use local::Node;
use pods::ServedPods;
use ports::{Ports, Served};
pub use ready::ready;
use steady::Steady;
use takeover::Predecessor;

/// Pod events on their way; more wait in the interceptor.
const EVENTS: usize = 64;

/// Runs the agent until SIGTERM or SIGINT, or until a successor serves; then drains.
pub async fn run(args: AgentArgs) -> Result<()> {
    let args = args.resolve()?;
    let terminated = termination()?;
    let (parts, predecessor) = takeover::begin(&args).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&parts.metrics).expire_series(parts.control.published.clone()));
    tokio::pin!(terminated);
    let up = tokio::select! {
        up = parts.bring_up(&args, predecessor, &mut tasks) => up?,
        () = &mut terminated => {
            tracing::info!("ended before it had started");
            return Ok(());
        }
    };
    tracing::info!(node = %args.node, "the agent has started");
    let (started, served) = up;
    let (port_tasks, file) = (served.tasks(), Arc::clone(&served.file));
    let giver = Giver::new(served.handover, started.offer(&args, &parts, served.metrics, served.admin));
    tokio::select! {
        () = &mut terminated => {}
        given_up = giver.replaced() => {
            tracing::info!("a successor serves");
            ports::leave(&port_tasks, &file);
            given_up.done(&started.leave_held().await).await;
            started.drain(&args).await;
            if args.after_handover == AfterHandover::Wait {
                terminated.await;
            }
            return Ok(());
        }
        Some(ended) = tasks.join_next() => {
            tracing::error!(?ended, "a part of the agent ended; draining");
            started.drain(&args).await;
            anyhow::bail!("a part of the agent ended by itself");
        }
    }
    started.drain(&args).await;
    Ok(())
}

/// What is there before anything is asked of the controller or the kernel.
struct Parts {
    svids: Arc<SvidStore>,
    control: Control,
    settings: ControlSettings,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    node: Arc<Node>,
}

/// What has to be drained.
struct Started {
    interceptor: Arc<Interceptor>,
    interception: Running,
    dataplane: Dataplane,
    readiness: Arc<Readiness>,
}

impl Parts {
    fn new(args: &AgentArgs) -> anyhow::Result<Self> {
        let settings = ControlSettings::default();
        let svids = Arc::new(SvidStore::new());
        let control = Control::new(&args.node_settings(), Arc::clone(&svids), &settings);
        let metrics = Metrics::new(SeriesLimits::default());
        metrics.register(|registry| control.metrics.register(registry));
        metrics.register_certificates(Arc::clone(&svids));
        let readiness = Arc::new(Readiness::default());
        let node = Arc::new(Node {
            name: args.node.as_str().into(),
            pods_cgroup: args.pods_cgroup.clone(),
            units: args.units_cgroup.is_some(),
            kubelet: Arc::new(Kubelet::new(&args.kubelet_cgroup).context("looking for the kubelet")?),
            published: control.published.clone(),
            pods: Arc::new(ServedPods::default()),
            metrics: Arc::clone(&metrics),
            readiness: Arc::clone(&readiness),
            interceptor: OnceLock::new(),
            refused: OnceLock::new(),
        });
        let (status, steady) = (Arc::clone(&control.status), Steady::default());
        readiness.require("control", move || steady.tell(status.not_ready(), Instant::now()));
        // The node answers for the readiness, which asks the node.
        let (local, steady) = (Arc::downgrade(&node), Steady::default());
        readiness.require("pods", move || match local.upgrade() {
            Some(node) => steady.tell(node.not_ready(), Instant::now()),
            None => Some("ending".to_owned()),
        });
        Ok(Self { svids, control, settings, metrics, readiness, node })
    }

    /// Starts everything and serves the node's sockets: at once, or when the agent before gives way.
    async fn bring_up(
        &self,
        args: &AgentArgs,
        predecessor: Option<Predecessor>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(Started, Served)> {
        let Some(predecessor) = predecessor else {
            let served = Ports::bind(args).await?.serve(args, self, tasks)?;
            let started = match self.start(args, None, tasks).await {
                Err(error) if takeover::is_refusal(&error) => self.wait_refused(&error).await,
                started => started?,
            };
            started.follow_held(Answering::default());
            return Ok((started, served));
        };
        let (claim, pods, node) = predecessor.split();
        let ports = Ports::inherit(args, node)?;
        let started = self.start(args, Some(pods), tasks).await?;
        let theirs = takeover::finish(claim, &started.interception.holder()).await?;
        // Two agents that follow would each answer.
        started.follow_held(theirs);
        let served = ports.serve(args, self, tasks)?;
        served.file.own(true);
        Ok((started, served))
    }

    /// The pins of an earlier agent are of another version: they stay as they are, and keep the pods closed. Answers
    /// status and readiness until it is ended.
    async fn wait_refused<T>(&self, error: &anyhow::Error) -> T {
        let refused = format!("{error:#}");
        tracing::error!(%refused, "what an earlier agent left is not adopted; nothing was changed");
        self.metrics.register_kernel(|| vec![("pinned_map_refused", 1)]);
        // Set once: this is the end of the start.
        drop(self.node.refused.set(refused));
        std::future::pending().await
    }

    async fn start(
        &self,
        args: &AgentArgs,
        inherited: Option<Inherited>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Started> {
        let settings = args.node_settings();
        let controller = self.controller(args)?;
        // First of all: pods are classified by it, also when the controller is away. A successor has a newer one.
        if inherited.is_none() {
            self.control.restore(&settings);
        }
        let identity = NodeIdentity::obtain(&controller, &settings).await?;
        let (interceptor, interception, events) = self.intercept(args, inherited).await?;
        let (to_dataplane, pod_events) = mpsc::channel(EVENTS);
        tasks.spawn(Arc::clone(&self.node.pods).follow(events, to_dataplane));
        let mut config = DataplaneConfig { workers: args.workers, ..DataplaneConfig::default() };
        config.dialer.preference = args.transport.into();
        config.acceptor.preference = args.transport.into();
        let context = Context {
            node: args.node.as_str().into(),
            published: self.control.published.clone(),
            lookup: self.control.lookup.clone(),
            svids: Arc::clone(&self.svids),
            metrics: Arc::clone(&self.metrics),
            balancer: crate::balance::Balancer::default(),
            kubelet: Some(Arc::clone(&self.node.kubelet)),
            config,
        };
        let dataplane = Dataplane::start(Arc::new(context), pod_events)?;
        let kernel = Arc::clone(&interceptor);
        self.metrics.register_kernel(move || kernel.reasons());
        let kernel = Arc::clone(&interceptor);
        self.metrics.register_unserved_pods(move || kernel.problems().len());
        let kernel = Arc::clone(&interceptor);
        self.metrics.register_pods_on_node_network(move || kernel.on_node_network().len());
        let older = interceptor.older_sockets();
        self.metrics.register_older_sockets(move || older.counts());
        let (control, pace) = (self.control.clone(), self.settings.clone());
        tasks.spawn(async move { control.run(controller, settings, identity, pace).await });
        let readiness = Arc::clone(&self.readiness);
        Ok(Started { interceptor, interception, dataplane, readiness })
    }

    fn controller(&self, args: &AgentArgs) -> Result<Arc<Controller>> {
        let path = args.controller_ca.display().to_string();
        let roots = std::fs::read(&args.controller_ca).with_context(|| {
            format!("--controller-ca {path}; it is the controller's root certificate (ca/root.pem in its state directory)")
        })?;
        Ok(Controller::new(&args.controller, &path, &roots, Arc::clone(&self.svids))?)
    }

    async fn intercept(
        &self,
        args: &AgentArgs,
        inherited: Option<Inherited>,
    ) -> Result<(Arc<Interceptor>, Running, mpsc::Receiver<PodEvent>)> {
        anyhow::ensure!(
            args.pods_cgroup.is_dir(),
            "--pods-cgroup {} is not there: it is the directory on cgroup v2 that the pods' cgroups are below \
             (for example /sys/fs/cgroup/kubepods.slice)",
            args.pods_cgroup.display()
        );
        let config = Config {
            pods_root: args.pods_cgroup.clone(),
            netns_folders: args.netns_dirs.clone(),
            pin_dir: args.pin_dir.clone(),
            node: args.node.as_str().into(),
            refuse_sockets: args.other_sockets == OtherSockets::Refuse,
            units: args.units_cgroup.is_some(),
            hold_unclassified: args.unclassified == Unclassified::Hold,
            never_held: args.never_held(),
            connect: args.connect.into(),
        };
        // Loading waits for the verifier: not on a thread that answers readiness.
        let started = tokio::task::spawn_blocking(move || Interceptor::start(config)).await?;
        let interceptor = Arc::new(started.map_err(|error| {
            let mut lacking: Vec<String> =
                probe().into_iter().filter(|p| !p.ok).map(|p| format!("{}: {}", p.name, p.mend)).collect();
            // A program of somebody else that shares its place with nobody: the kernel says only EPERM.
            let foreign = exclusive_programs(&args.pods_cgroup).unwrap_or_default();
            lacking
                .extend(foreign.iter().map(|spot| format!("{}: {}: {}", spot.name, spot.found, spot.mend)));
            let error = anyhow::Error::new(error).context("the kernel programs could not be loaded");
            if lacking.is_empty() {
                error
            } else {
                error.context(format!("on this node: {}", lacking.join("; ")))
            }
        })?);
        let (sender, events) = mpsc::channel(EVENTS);
        let published = &self.control.published;
        let running = interceptor.run_after(inherited, published.slot(), published.watch(), sender)?;
        // Set once: this runs once.
        if self.node.interceptor.set(Arc::clone(&interceptor)).is_err() {
            tracing::error!("interception was started twice");
        }
        Ok((interceptor, running, events))
    }
}

impl Started {
    /// Answers what the kernel holds, but for what the agent before answers.
    fn follow_held(&self, theirs: Answering) {
        if let Some(events) = self.interceptor.held_events() {
            self.dataplane.follow_held(events.after(theirs));
        }
    }

    /// Takes up no more of what the kernel holds; what this agent is answering.
    async fn leave_held(&self) -> Answering {
        self.dataplane.leave_held().await;
        self.interceptor.answering()
    }

    /// What a successor gets of this agent.
    fn offer(&self, args: &AgentArgs, parts: &Parts, metrics: OwnedFd, admin: OwnedFd) -> Offer {
        Offer {
            place: Place::of(args),
            control: parts.control.clone(),
            lender: self.dataplane.lender(),
            holder: self.interception.holder(),
            listeners_map: self.interceptor.listeners_map(),
            metrics,
            admin,
        }
    }

    /// Stops accepting, waits for open connections, ends the rest. The kernel programs stay pinned and keep pods closed.
    async fn drain(self, args: &AgentArgs) {
        tracing::info!(open = self.dataplane.open(), limit = ?args.drain_limit(), "draining");
        self.readiness.require("drain", || Some("the agent is draining".to_owned()));
        let interception = self.interception;
        if let Err(error) = tokio::task::spawn_blocking(move || interception.stop()).await {
            tracing::error!(%error, "interception did not stop");
        }
        self.dataplane.drain(args.drain_limit()).await;
        tracing::info!("drained");
    }
}

/// Takes the programs that are pinned in `pin_dir` off the node's pods, and waits for SIGTERM or SIGINT.
pub fn leave(pin_dir: &Path) -> Result<()> {
    Interceptor::uninstall(pin_dir).with_context(|| format!("removing {}", pin_dir.display()))?;
    println!("no program of {} is attached any more", pin_dir.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        termination()?.await;
        Ok(())
    })
}

/// Whether nothing is pinned in `pin_dir`: what [`leave`] has not begun or not ended is still there.
pub fn left(pin_dir: &Path) -> Result<bool> {
    let there = pin_dir.try_exists().with_context(|| format!("looking at {}", pin_dir.display()))?;
    Ok(!there)
}

/// Prints what the kernel has and lacks, and which programs keep ours out of `pods_cgroup`; whether all is well.
pub fn check(pods_cgroup: Option<&Path>) -> Result<bool> {
    let probes = probe();
    let foreign = pods_cgroup.map(exclusive_programs).transpose()?.unwrap_or_default();
    let mut all = local::checks(&probes);
    all.extend(local::weak(&foreign));
    println!("{:#}", serde_json::Value::Array(all));
    Ok(foreign.is_empty() && probes.iter().all(|probe| probe.ok))
}

fn termination() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
