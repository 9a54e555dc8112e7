//! The controller as a whole: a source and a state folder in, a serving controller out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use mesh_api::proto::AuthorityStatus;
use mesh_core::identity::TrustDomain;
use tokio::sync::{mpsc, watch};

use crate::ca::{Authority, IssuerFolder, StateDir, TokenStore, Waits, layout};
use crate::compile::{Compiled, compile};
use crate::index::Index;
use crate::metrics::{self, Metrics};
use crate::object::Status;
use crate::rotation::{self, Rotation, RotationSettings, Shared};
use crate::serve::{Agents, AuthorityHandle, CompiledFeed, Credentials, Reviewer, Server, ServerParts};
use crate::watch::{Batch, Source};

/// How the controller is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// What must outlive the controller.
    pub state_dir: PathBuf,
    /// Where agents and operators connect.
    pub listen: SocketAddr,
    /// Where metrics are read; `None` for nowhere.
    pub metrics: Option<SocketAddr>,
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// Lifetime of workload certificates.
    pub svid_ttl: Duration,
    /// Lifetime of node certificates.
    pub node_ttl: Duration,
    /// Who knows service accounts' tokens, in a cluster; without, agents join by join tokens alone.
    pub reviewer: Option<Reviewer>,
    /// Where an intermediate is that somebody else makes and renews.
    pub issuer_dir: Option<PathBuf>,
    /// The authority that replicas share, in a cluster.
    pub shared: Option<Shared>,
    /// How long all agents must have trusted another root before it signs.
    pub root_settle: Duration,
    /// How long agents that are away are waited for then.
    pub root_wait: Duration,
}

/// A controller that is bound and not yet serving.
#[derive(Debug)]
pub struct Controller {
    server: Server,
    compiler: Compiler,
    rotation: Rotation,
    metrics_listener: Option<tokio::net::TcpListener>,
    metrics: Arc<Metrics>,
}

impl Controller {
    /// Opens the state folder, starts the source and binds.
    pub async fn start(config: Config, source: impl Source) -> anyhow::Result<Self> {
        let now = SystemTime::now();
        let state = StateDir::open(&config.state_dir)?;
        let input = config.issuer_dir.map(IssuerFolder::new);
        state.claim_trust_domain(&config.trust_domain)?;
        let folder = state.ca()?;
        layout::prepare(&folder, input.as_ref(), now)?;
        let authority = Arc::new(Authority::open(&state, &config.trust_domain, now)?);
        let tokens = TokenStore::open(&state)?;
        let credentials = Credentials::new(Arc::clone(&authority), state, now)?;
        let (metrics, agents) = (Arc::new(Metrics::new()), Arc::new(Agents::default()));
        let index = Index::new(source.derives_endpoints());
        let (sink, batches) = mpsc::channel(4);
        let trust_domain = config.trust_domain.clone();
        let compiler = Compiler::new(index, config.trust_domain, batches, Arc::clone(&metrics));
        let tls = credentials.subscribe();
        let longest_life = config.svid_ttl.max(config.node_ttl);
        let waits = Waits { agents: config.root_wait, longest_life };
        let kept = rotation::Parts {
            credentials,
            folder,
            trust_domain,
            input,
            shared: config.shared,
            settings: RotationSettings { waits, settle: config.root_settle },
            agents: Arc::clone(&agents),
            compiled: compiler.feed.subscribe(),
            metrics: Arc::clone(&metrics),
        };
        let (asks, requests) = mpsc::channel(1);
        let rotation = Rotation::new(kept, requests);
        let parts = ServerParts {
            authority,
            tokens,
            reviewer: config.reviewer,
            compiled: compiler.feed.subscribe(),
            tls,
            agents,
            operators: AuthorityHandle { told: rotation.subscribe(), requests: asks },
            metrics: Arc::clone(&metrics),
            svid_ttl: config.svid_ttl,
            node_ttl: config.node_ttl,
        };
        let server =
            Server::bind(config.listen, parts).with_context(|| format!("listen on {}", config.listen))?;
        let metrics_listener = match config.metrics {
            Some(address) => {
                Some(metrics::bind(address).await.with_context(|| format!("metrics on {address}"))?)
            }
            None => None,
        };
        source.start(sink).context("start the source")?;
        Ok(Self { server, compiler, rotation, metrics_listener, metrics })
    }

    /// The address that agents connect to.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.server.local_addr()
    }

    /// Where compiled states are seen.
    pub fn compiled(&self) -> CompiledFeed {
        self.compiler.feed.subscribe()
    }

    /// What people are told of the authority.
    pub fn authority(&self) -> watch::Receiver<Arc<AuthorityStatus>> {
        self.rotation.subscribe()
    }

    /// Serves until `stop` completes.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        if let Some(listener) = self.metrics_listener {
            tasks.spawn(metrics::serve(listener, self.metrics, self.compiler.feed.subscribe()));
        }
        tasks.spawn(self.compiler.run());
        tasks.spawn(self.rotation.run());
        self.server.run(stop).await.context("serve")
    }
}

/// Turns batches into compiled states.
#[derive(Debug)]
struct Compiler {
    index: Index,
    trust_domain: TrustDomain,
    batches: mpsc::Receiver<Batch>,
    metrics: Arc<Metrics>,
    feed: watch::Sender<Option<Arc<Compiled>>>,
}

impl Compiler {
    fn new(
        index: Index,
        trust_domain: TrustDomain,
        batches: mpsc::Receiver<Batch>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { index, trust_domain, batches, metrics, feed: watch::Sender::new(None) }
    }

    async fn run(mut self) {
        while let Some(batch) = self.batches.recv().await {
            self.index.update(batch);
            while let Ok(more) = self.batches.try_recv() {
                self.index.update(more);
            }
            let previous = self.feed.borrow().clone();
            let version = next_version(previous.as_deref());
            let fresh = compile(&self.index, &self.trust_domain, version, previous.as_deref());
            log_statuses(previous.as_ref().map_or(&[], |p| &p.statuses), &fresh.statuses);
            self.metrics.version.set(i64::try_from(version).unwrap_or(i64::MAX));
            self.metrics.set_objects("workload", fresh.workloads.len());
            self.metrics.set_objects("service", fresh.services.len());
            self.metrics.set_objects("policy", fresh.policies.len());
            self.feed.send_replace(Some(Arc::new(fresh)));
        }
        tracing::error!("the source has ended; what it delivered last stays in force");
        // Keeps the feed open: a closed one would end every stream.
        std::future::pending::<()>().await;
    }
}

/// Milliseconds since the epoch at the first, so that versions grow across restarts; then one more each time.
fn next_version(previous: Option<&Compiled>) -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_millis());
    match previous {
        Some(previous) => previous.version + 1,
        None => u64::try_from(clock).unwrap_or(1),
    }
}

/// Each status once, when it appears.
fn log_statuses(before: &[Status], now: &[Status]) {
    for status in now.iter().filter(|s| before.binary_search(s).is_err()) {
        let (source, reason) = (&status.source, status.reason);
        match (status.accepted, reason) {
            (false, _) => tracing::warn!(%source, reason, "{}", status.message),
            (true, "Accepted") => tracing::debug!(%source, reason, "{}", status.message),
            (true, _) => tracing::info!(%source, reason, "{}", status.message),
        }
    }
    for status in before.iter().filter(|s| !s.accepted && now.binary_search(s).is_err()) {
        tracing::info!(source = %status.source, reason = status.reason, "resolved: {}", status.message);
    }
}
