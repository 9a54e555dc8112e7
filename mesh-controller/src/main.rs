//! `mesh-controller`: the command line. Without a subcommand it serves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use mesh_controller::ca::{StateDir, TokenStore};
use mesh_controller::run::{Config, Controller};
use mesh_controller::watch::DirSource;
use mesh_core::identity::TrustDomain;
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
    /// Where objects come from: dir:PATH, a folder of Kubernetes manifests
    #[arg(long)]
    source: String,
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
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
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

fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let Some(path) = args.source.strip_prefix("dir:").filter(|path| !path.is_empty()) else {
        bail!("--source {:?}: only dir:PATH is known", args.source);
    };
    let source = DirSource::new(path).keeping(args.state_dir.join("last-good.json"));
    let config = Config {
        state_dir: args.state_dir,
        listen: args.listen,
        metrics: Some(args.metrics_addr),
        trust_domain: args.trust_domain,
        svid_ttl: args.svid_ttl,
        node_ttl: args.node_ttl,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let controller = Controller::start(config, source).await?;
        tracing::info!(listen = %controller.local_addr()?, "serving");
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
    })
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
