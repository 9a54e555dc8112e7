//! `meshctl`: install Ferromesh, and look into a running one. Arguments come in; a table or JSON goes out. Exit code 0 when it was
//! answered and nothing is missing, 1 with the reason on standard error otherwise.

mod agent;
mod authority;
mod check;
mod cluster;
mod controller;
mod explain;
mod inventory;
mod status;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

/// Install Ferromesh, and look into a running one.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The administration socket of this node's agent [default: /run/ferromesh/agent.sock]
    #[arg(long, global = true, env = "FERROMESH_AGENT_SOCKET")]
    agent_socket: Option<PathBuf>,
    #[command(flatten)]
    controller: ControllerArgs,
}

#[derive(Debug, Args)]
struct ControllerArgs {
    /// The controller: https://HOST:15010
    #[arg(long, global = true, env = "FERROMESH_CONTROLLER")]
    controller: Option<String>,
    /// The mesh's root certificates, PEM (ca/root.pem in the controller's state directory)
    #[arg(long, global = true, env = "FERROMESH_CA")]
    ca: Option<PathBuf>,
    /// The operator's certificate, PEM (admin/cert.pem in the controller's state directory)
    #[arg(long, global = true, env = "FERROMESH_CERT")]
    cert: Option<PathBuf>,
    /// The operator's key, PEM (admin/key.pem in the controller's state directory)
    #[arg(long, global = true, env = "FERROMESH_KEY")]
    key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Agents, versions, certificates and their ends, and what became of each object
    Status,
    /// What would happen to a connection or a datagram, step by step
    Explain {
        /// The pod that connects: NAMESPACE/POD
        source: String,
        /// IP:PORT, NAMESPACE/SERVICE:PORT or SERVICE.NAMESPACE:PORT; for UDP with udp:// in front
        destination: String,
    },
    /// Everything that this node's agent holds (no keys)
    Dump,
    /// What this node has and lacks, and the mend
    Check {
        /// Instead: what the cluster has and lacks
        #[arg(long)]
        cluster: bool,
        #[command(flatten)]
        kubectl: cluster::Kubectl,
    },
    /// Install the mesh on a cluster
    Install(cluster::Install),
    /// Install this version over another
    Upgrade(cluster::Install),
    /// Take every node of a cluster out of the mesh, and remove it
    Uninstall(cluster::Uninstall),
    /// Join tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The certificate authority
    Ca {
        #[command(subcommand)]
        command: CaCommand,
    },
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// What signs, which roots are trusted, and how far a change of the root has come
    Status,
    /// Makes another root: it is trusted first, signs when all agents trust it, and the one before goes when nothing lives
    /// that it signed. No connection notices
    Rotate,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a token with which one node may join once
    Create {
        /// The node
        #[arg(long)]
        node: String,
        /// How long it may wait, in seconds
        #[arg(long, default_value_t = 600)]
        ttl_seconds: u32,
    },
}

/// What is printed, in both forms.
struct Answer {
    json: Value,
    table: String,
    /// Whether something is missing or wrong that a script should see.
    ok: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = cli.global.output;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(answer(cli)));
    match answer {
        Ok(answer) => {
            match output {
                Output::Table => print!("{}", answer.table),
                Output::Json => println!("{:#}", answer.json),
            }
            if answer.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("meshctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn answer(cli: Cli) -> Result<Answer> {
    let socket = cli.global.agent_socket.clone();
    match cli.command {
        Command::Status => status::status(&cli.global).await,
        Command::Explain { source, destination } => {
            let target =
                format!("/explain?src={}&dst={}", agent::escape(&source), agent::escape(&destination));
            explain::answer(agent::get(socket.as_deref(), &target).await?)
        }
        Command::Dump => inventory::answer(agent::get(socket.as_deref(), "/dump").await?),
        Command::Check { cluster: true, kubectl } => cluster::check(&kubectl),
        Command::Check { .. } => check::check(socket.as_deref()).await,
        Command::Install(args) => cluster::install(&args, false),
        Command::Upgrade(args) => cluster::install(&args, true),
        Command::Uninstall(args) => cluster::uninstall(&args),
        Command::Ca { command: CaCommand::Status } => authority::status(&cli.global.controller).await,
        Command::Ca { command: CaCommand::Rotate } => authority::rotate(&cli.global.controller).await,
        Command::Token { command: TokenCommand::Create { node, ttl_seconds } } => {
            let token = controller::create_token(&cli.global.controller, node, ttl_seconds).await?;
            Ok(Answer { json: serde_json::json!({ "token": token }), table: format!("{token}\n"), ok: true })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        let before = ["meshctl", "--agent-socket", "/s", "-o", "json", "explain", "shop/web", "shop/db:80"];
        let cli = Cli::try_parse_from(before).unwrap();
        assert_eq!(cli.global.output, Output::Json);
        let after = ["meshctl", "status", "-o", "json", "--agent-socket", "/s"];
        assert_eq!(Cli::try_parse_from(after).unwrap().global.agent_socket, Some("/s".into()));
    }
}
