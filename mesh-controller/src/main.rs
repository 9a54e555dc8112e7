//! `mesh-controller`: the command line. Without a subcommand it serves.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use clap::{Args, CommandFactory, Parser, Subcommand};
use mesh_controller::api::{Access, Client};
use mesh_controller::ca::{IssuerFolder, SharedRootError, StateDir, TokenStore, share_root};
use mesh_controller::leave::WayOut;
use mesh_controller::report::{AuthorityEvents, Lease, Taints, Writer};
use mesh_controller::rotation::Shared;
use mesh_controller::run::{Config, Controller};
use mesh_controller::serve::Reviewer;
use mesh_controller::watch::{DirSource, KubeSource, Source};
use mesh_core::identity::TrustDomain;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// The controller of Ferromesh.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Option<ServeArgs>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Where objects come from: kube, an API server; or dir:PATH, a folder of Kubernetes manifests
    #[arg(long)]
    source: String,
    /// With --source kube: how the API server is reached; otherwise $KUBECONFIG, otherwise as a pod of the cluster
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The folder of the CA, the join tokens, the admin certificate and the last good objects
    #[arg(long)]
    state_dir: PathBuf,
    /// Where agents and operators connect
    #[arg(long, default_value = "[::]:15010")]
    listen: SocketAddr,
    /// Where metrics are read
    #[arg(long, default_value = "[::]:15014")]
    metrics_addr: SocketAddr,
    /// The trust domain of every identity; it cannot change later
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    trust_domain: TrustDomain,
    /// How long workload certificates live
    #[arg(long, default_value = "24h", value_parser = duration)]
    svid_ttl: Duration,
    /// How long node certificates live; a node that is away for longer must join anew
    #[arg(long, default_value = "168h", value_parser = duration)]
    node_ttl: Duration,
    /// A folder with tls.crt, tls.key and ca.crt, as a Secret of cert-manager is mounted: an intermediate that signs instead
    /// of one that is made here; it is taken again when it changes
    #[arg(long)]
    issuer_dir: Option<PathBuf>,
    /// How long all agents must have trusted another root before it signs
    #[arg(long, default_value = "1m", value_parser = duration)]
    root_settle: Duration,
    /// How long agents that are away are waited for before another root signs
    #[arg(long, default_value = "1h", value_parser = duration)]
    root_wait: Duration,
    /// With --source kube: the key of a taint that new nodes have, which is taken off when their agent is ready
    #[arg(long, value_name = "KEY")]
    remove_taint: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prints the definitions of the custom resources as YAML, for `kubectl apply -f -`
    Crds,
    /// Join tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Takes every node out of the mesh: the step before the chart is removed. Fails when a node that is ready has not left in
    /// time; names those that are not ready
    Leave {
        /// The manifest of the DaemonSet whose pods take the programs off their nodes
        #[arg(long)]
        daemonset: PathBuf,
        /// How long the nodes may take
        #[arg(long, default_value = "4m", value_parser = duration)]
        wait: Duration,
        /// How the API server is reached; otherwise $KUBECONFIG, otherwise as a pod of the cluster
        #[arg(long)]
        kubeconfig: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token with which one node may join once
    Create {
        /// The node
        #[arg(long)]
        node: String,
        /// How long it may wait
        #[arg(long, default_value = "10m", value_parser = duration)]
        ttl: Duration,
        /// The controller's state folder
        #[arg(long)]
        state_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    match (cli.command, cli.serve) {
        (Some(Command::Token { command: TokenCommand::Create { node, ttl, state_dir } }), _) => {
            finish(create_token(&node, ttl, state_dir), |error| eprintln!("mesh-controller: {error:#}"))
        }
        (Some(Command::Leave { daemonset, wait, kubeconfig }), _) => {
            // All of it where a container's log and a hook's output are read.
            finish(leave(&daemonset, wait, kubeconfig.as_deref()), |error| println!("{error:#}"))
        }
        (Some(Command::Crds), _) => finish(crds(), |error| eprintln!("mesh-controller: {error:#}")),
        (None, Some(args)) => finish(serve(args), |error| tracing::error!("{error:#}")),
        (None, None) => finish(Cli::command().print_help().map_err(Into::into), |_| ()),
    }
}

fn finish(result: anyhow::Result<()>, tell: impl FnOnce(&anyhow::Error)) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn create_token(node: &str, ttl: Duration, state_dir: PathBuf) -> anyhow::Result<()> {
    let store = TokenStore::open(&StateDir::open(state_dir)?)?;
    println!("{}", store.create(node, ttl, SystemTime::now())?);
    Ok(())
}

fn leave(daemonset: &Path, wait: Duration, kubeconfig: Option<&Path>) -> anyhow::Result<()> {
    let out = WayOut::read(daemonset)?;
    let client = Client::new(Access::find(kubeconfig)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let standing = runtime.block_on(out.take(&client, wait, |line| println!("{line}")))?;
    ensure!(standing.waiting.is_empty(), "not every node has left the mesh");
    Ok(())
}

fn crds() -> anyhow::Result<()> {
    for definition in mesh_api::crd::definitions() {
        print!("---\n{}", serde_saphyr::to_string(&definition)?);
    }
    Ok(())
}

/// An agent's stream is a descriptor: the soft limit, which some systems keep at 1,024, is no measure of a cluster.
fn raise_descriptors() {
    let held = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: held.maximum, ..held }) {
        tracing::warn!(%error, limit = ?held.current, "the limit of open files could not be raised");
    }
}

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    raise_descriptors();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let last_good = args.state_dir.join("last-good.json");
    let mut config = Config {
        state_dir: args.state_dir,
        listen: args.listen,
        metrics: Some(args.metrics_addr),
        trust_domain: args.trust_domain,
        svid_ttl: args.svid_ttl,
        node_ttl: args.node_ttl,
        reviewer: None,
        issuer_dir: args.issuer_dir,
        shared: None,
        root_settle: args.root_settle,
        root_wait: args.root_wait,
    };
    match args.source.split_once(':') {
        None if args.source == "kube" => {
            let client = Client::new(Access::find(args.kubeconfig.as_deref())?);
            tracing::info!(server = client.server(), "objects come from an API server");
            config.reviewer = Some(Reviewer::new(client.clone()));
            runtime.block_on(async {
                shared_root(&client, &config).await?;
                let replica = identity();
                let lease = Lease::new(client.clone(), replica.clone());
                config.shared = Some(Shared { client: client.clone(), leading: lease.subscribe(), replica });
                run(
                    config,
                    KubeSource::new(client.clone()),
                    Some(Reports { client, lease, taint: args.remove_taint }),
                )
                .await
            })
        }
        Some(("dir", path)) if !path.is_empty() => {
            runtime.block_on(run(config, DirSource::new(path).keeping(last_good), None))
        }
        _ => bail!("--source {:?}: kube and dir:PATH are known", args.source),
    }
}

/// Waits for the root that all replicas share; an API server that is away is asked again.
async fn shared_root(client: &Client, config: &Config) -> anyhow::Result<()> {
    let state = StateDir::open(&config.state_dir)?;
    state.claim_trust_domain(&config.trust_domain)?;
    let input = config.issuer_dir.clone().map(IssuerFolder::new);
    loop {
        match share_root(client, &state, &config.trust_domain, input.as_ref()).await {
            Ok(()) => return Ok(()),
            Err(error @ (SharedRootError::Api(_) | SharedRootError::Publish(_))) => {
                tracing::warn!(%error, "waiting for the API server: the shared root");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What goes to the API server.
struct Reports {
    client: Client,
    lease: Lease,
    /// The taint of nodes that are not ready.
    taint: Option<String>,
}

/// Serves; `reports` is the API server that is told what became of its objects.
async fn run(config: Config, source: impl Source, reports: Option<Reports>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let controller = Controller::start(config, source).await?;
    tracing::info!(listen = %controller.local_addr()?, "serving");
    if let Some(Reports { client, lease, taint }) = reports {
        if let Some(key) = taint {
            let taints = Taints::new(client.clone(), controller.compiled(), lease.subscribe(), key);
            tokio::spawn(taints.run());
        }
        let told = controller.authority();
        tokio::spawn(AuthorityEvents::new(client.clone(), told, lease.subscribe()).run());
        tokio::spawn(Writer::new(client, controller.compiled(), lease.subscribe()).run());
        tokio::spawn(lease.run());
    }
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    // Streams never end by themselves, so nothing is waited for: agents keep what they hold and come back.
    tokio::pin!(stop);
    tokio::select! {
        result = controller.run(std::future::pending()) => result,
        () = &mut stop => Ok(()),
    }
}

/// What this replica is called in the Lease: the pod's name, and what tells two starts of it apart.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}-{}-{:x}", host.trim(), std::process::id(), start.as_nanos())
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|e| e.to_string())
}

/// Reads `90s`, `10m`, `24h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 90s, 10m, 24h or 7d");
    let split = text.len() - text.chars().last().map_or(0, char::len_utf8);
    let (number, unit) = text.split_at(split);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let total = number.checked_mul(seconds).filter(|total| (1..=10 * 365 * 86400).contains(total));
    total.map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rendered_manifest_starts_a_controller_on_the_ports_that_it_names() {
        let manifest = include_str!("../../deploy/manifests/03-controller.yaml");
        let lines = manifest.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        let arguments = lines.map(|argument| format!("--{argument}"));
        let cli = Cli::parse_from(["mesh-controller".to_owned()].into_iter().chain(arguments));
        let Some(serve) = cli.serve else { panic!("it serves") };
        assert_eq!(serve.source, "kube");
        for address in [serve.listen, serve.metrics_addr] {
            assert!(manifest.contains(&format!("containerPort: {}", address.port())));
        }
        // Where the kubelet's emptyDir is, `kubectl exec` looks for the operator's certificate.
        let folder = serve.state_dir.display();
        assert!(manifest.contains(&format!("value: {folder}/admin/cert.pem")));
    }
}
