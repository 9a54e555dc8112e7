//! The command line. Text comes in, checked settings go out; what is wrong is said with its mend.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use mesh_core::identity::TrustDomain;

use crate::control::NodeSettings;
use crate::transport::TransportPreference;

/// The node agent of Ferromesh.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// Say what this node's kernel has and lacks, and end
    #[arg(long, exclusive = true)]
    pub check: bool,
    /// How to run.
    #[command(flatten)]
    pub agent: Option<AgentArgs>,
}

/// How the agent is started.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// The name of this node, as the pods' spec.nodeName has it
    #[arg(long, env = "FERROMESH_NODE")]
    pub node: String,
    /// The controller: https://HOST:15010
    #[arg(long, env = "FERROMESH_CONTROLLER")]
    pub controller: String,
    /// The controller's root certificates, PEM
    #[arg(long)]
    pub controller_ca: PathBuf,
    /// The token of the first start (`meshctl token create --node NODE`)
    #[arg(long)]
    pub join_token_file: Option<PathBuf>,
    /// Where the node certificate is kept
    #[arg(long, default_value = "/var/lib/ferromesh/agent")]
    pub state_dir: PathBuf,
    /// The cgroup that the pods' cgroups are below, on cgroup v2
    #[arg(long)]
    pub pods_cgroup: PathBuf,
    /// A folder on bpffs of this agent alone
    #[arg(long, default_value = "/sys/fs/bpf/ferromesh")]
    pub pin_dir: PathBuf,
    /// Where meshctl reaches this agent
    #[arg(long, default_value = "/run/ferromesh/agent.sock")]
    pub admin_socket: PathBuf,
    /// Where metrics and readiness are read
    #[arg(long, default_value = "[::]:15020")]
    pub metrics_addr: SocketAddr,
    /// The trust domain of the mesh
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,
    /// Threads of the data plane; 0: one a core
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// The most files and sockets that this process may have open; a connection takes two or three
    #[arg(long, default_value_t = 1 << 20)]
    pub max_open_files: u64,
    /// How long open connections may go on after SIGTERM, or after a successor serves
    #[arg(long, default_value_t = 30)]
    pub drain_seconds: u64,
    /// Which transports are offered to other agents
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub transport: Transport,
    /// What becomes of raw, UDP-Lite and SCTP sockets of enrolled pods, which could send past the mesh
    #[arg(long, value_enum, default_value_t = OtherSockets::Refuse)]
    pub other_sockets: OtherSockets,
    /// What becomes of inbound connections to a pod that nobody has classified yet
    #[arg(long, value_enum, default_value_t = Unclassified::Hold)]
    pub unclassified: Unclassified,
    /// The form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or directives such as `info,mesh_agent=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

/// `--transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// `ferromesh/1`, and HBONE with peers that do not speak it.
    Auto,
    /// HBONE only.
    Hbone,
}

/// `--other-sockets`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OtherSockets {
    /// They cannot be made.
    Refuse,
    /// They can, and are counted.
    Allow,
}

/// `--unclassified`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Unclassified {
    /// They wait until the pod is classified.
    Hold,
    /// They pass, and are counted.
    Pass,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl From<Transport> for TransportPreference {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Ferromesh,
            Transport::Hbone => Self::HboneOnly,
        }
    }
}

impl AgentArgs {
    /// Which node this is.
    pub fn node_settings(&self) -> NodeSettings {
        NodeSettings {
            node: self.node.clone(),
            trust_domain: self.trust_domain.clone(),
            state_dir: self.state_dir.clone(),
            token_file: self.join_token_file.clone(),
        }
    }

    /// How long a drain may take.
    pub fn drain_limit(&self) -> Duration {
        Duration::from_secs(self.drain_seconds)
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: [&str; 9] = [
        "mesh-agent",
        "--node",
        "n1",
        "--controller",
        "https://10.0.0.1:15010",
        "--controller-ca",
        "root.pem",
        "--pods-cgroup",
        "/sys/fs/cgroup/kubepods",
    ];

    #[test]
    fn a_few_arguments_are_enough() {
        let agent = Cli::try_parse_from(FEW).unwrap().agent.unwrap();
        assert_eq!(agent.metrics_addr.port(), 15020);
        assert_eq!(agent.trust_domain.as_str(), "cluster.local");
        assert_eq!(TransportPreference::from(agent.transport), TransportPreference::Ferromesh);
        assert_eq!(agent.drain_limit(), Duration::from_secs(30));
    }

    #[test]
    fn a_check_needs_nothing_else_and_a_start_needs_its_arguments() {
        let cli = Cli::try_parse_from(["mesh-agent", "--check"]).unwrap();
        assert!(cli.check && cli.agent.is_none());
        assert!(Cli::try_parse_from(["mesh-agent"]).is_err());
        assert!(Cli::try_parse_from(&FEW[..5]).is_err());
    }

    #[test]
    fn a_bad_trust_domain_is_told_at_once() {
        let mut arguments = FEW.to_vec();
        arguments.extend(["--trust-domain", "Cluster Local"]);
        let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
        assert!(error.contains("is not a trust domain"), "{error}");
    }
}
