//! The node agent: reads the command line, sets the process up and runs the agent. Exit code 0 after a drain, 1 with the
//! reason and its mend in the log otherwise.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use mesh_agent::config::{AgentArgs, Cli, LogFormat};
use mesh_agent::observe::{JsonLines, LogWriter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

/// Buffers and connections come and go on every worker: what one frees, another often needs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads of the control plane; the data plane has its own.
const CONTROL_THREADS: usize = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(pods_cgroup) = cli.check {
        return told(mesh_agent::run::check(pods_cgroup.as_deref()));
    }
    if let Some(socket) = cli.ready {
        return told(mesh_agent::run::ready(&socket));
    }
    if let Some(pin_dir) = cli.leave {
        return told(mesh_agent::run::leave(&pin_dir).map(|()| true));
    }
    if let Some(pin_dir) = cli.left {
        return told(mesh_agent::run::left(&pin_dir));
    }
    let Some(args) = cli.agent else {
        Cli::command()
            .error(clap::error::ErrorKind::MissingRequiredArgument, "give --node and the rest")
            .exit();
    };
    let log = match log_to_stdout(&args) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = start(args);
    log.flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = causes(&error);
            tracing::error!("{error}");
            eprintln!("mesh-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of a question's answer.
fn told(answer: Result<bool>) -> ExitCode {
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: AgentArgs) -> Result<()> {
    // Libraries that ask for the process's provider get the same one that the agent passes itself.
    if rustls::crypto::CryptoProvider::install_default((*mesh_agent::identify::provider()).clone()).is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    limit_descriptors(args.max_open_files);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .context("starting the control plane's runtime")?;
    let result = runtime.block_on(mesh_agent::run::run(args));
    // What still runs there (an unanswered call to the controller) is not waited for.
    runtime.shutdown_background();
    result
}

/// An error with its causes, each said once: some errors have their cause in their own text.
fn causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn log_to_stdout(args: &AgentArgs) -> Result<LogWriter> {
    let filter = EnvFilter::try_new(&args.log_level)
        .with_context(|| format!("--log-level {:?} is not a level", args.log_level))?;
    let writer = LogWriter::start().context("starting the log's thread")?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer.clone());
    match args.log_format {
        LogFormat::Json => log.event_format(JsonLines).init(),
        LogFormat::Text => log.init(),
    }
    Ok(writer)
}

/// Takes what the system gives of `wanted`; when they are few, pods are held back sooner, with a counter.
fn limit_descriptors(wanted: u64) {
    let held = getrlimit(Resource::Nofile);
    let exact = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    if setrlimit(Resource::Nofile, exact).is_ok() {
        return;
    }
    let current = held.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let most = Rlimit { current: Some(current), maximum: held.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, limit = ?held.current, "the limit of open files could not be set");
    }
}
