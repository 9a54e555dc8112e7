//! The command line. Text comes in, checked settings go out; what is wrong is said with its mend.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, ValueEnum};
use mesh_core::identity::TrustDomain;
use mesh_core::model::ConnectMode;

use crate::control::NodeSettings;
use crate::intercept::{ConnectChoice, NeverHeld, RootError, find_pods_root};
use crate::transport::TransportPreference;

/// `--pods-cgroup` of a node whose kubelet's directory is to be found.
const AUTO: &str = "auto";

/// Where the kubelet's unit is: with kubeadm and most distributions, in kind, with k3s, RKE2 and Talos.
const KUBELETS: &str = "system.slice/kubelet.service,kubelet.slice/kubelet.service,system.slice/k3s.service,\
     system.slice/k3s-agent.service,system.slice/rke2-server.service,system.slice/rke2-agent.service,podruntime/kubelet";

/// The node agent of Ferromesh.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// Say what this node's kernel has and lacks, and (with the pods' cgroup) which programs would keep ours out, and end
    #[arg(long, exclusive = true, num_args = 0..=1, require_equals = true, value_name = "PODS_CGROUP")]
    pub check: Option<Option<PathBuf>>,
    /// Say whether the agent behind this administration socket is ready and runs in this process's own cgroup, and end:
    /// the readiness of one container while another one's agent may still answer the node's ports
    #[arg(long, exclusive = true, require_equals = true, value_name = "ADMIN_SOCKET")]
    pub ready: Option<PathBuf>,
    /// Take the programs that are pinned here off the node's pods, and wait to be ended: the step before an uninstall
    #[arg(long, exclusive = true, require_equals = true, value_name = "PIN_DIR")]
    pub leave: Option<PathBuf>,
    /// Say whether nothing is pinned here any more, and end: the readiness of a node that leaves
    #[arg(long, exclusive = true, require_equals = true, value_name = "PIN_DIR")]
    pub left: Option<PathBuf>,
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
    /// The cgroup that the pods' cgroups are below, on cgroup v2; `auto`: kubepods.slice or kubepods, wherever it is
    #[arg(long, default_value = AUTO)]
    pub pods_cgroup: PathBuf,
    /// Instead of pods: the cgroup that the systemd units of this host are below (/sys/fs/cgroup/system.slice); those that a
    /// WorkloadEntry names are workloads
    #[arg(long, conflicts_with = "pods_cgroup")]
    pub units_cgroup: Option<PathBuf>,
    /// Where the kubelet's own cgroup may be, from the mount of cgroup v2 or as whole paths: what was made in it may ask
    /// the ports that pods' probes declare, in plaintext
    #[arg(long, value_delimiter = ',', default_value = KUBELETS)]
    pub kubelet_cgroup: Vec<PathBuf>,
    /// Where the container runtime has bind mounts of the pods' network namespaces: how a pod's is found while no process
    /// of it runs
    #[arg(long, value_delimiter = ',', default_value = "/run/netns,/var/run/netns,/run/docker/netns")]
    pub netns_dirs: Vec<PathBuf>,
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
    /// What this agent does when a successor serves and it has drained
    #[arg(long, value_enum, default_value_t = AfterHandover::End)]
    pub after_handover: AfterHandover,
    /// Which transports are offered to other agents
    #[arg(long, value_enum, default_value_t = Transport::Auto)]
    pub transport: Transport,
    /// What becomes of raw, UDP-Lite and SCTP sockets of enrolled pods, which could send past the mesh
    #[arg(long, value_enum, default_value_t = OtherSockets::Refuse)]
    pub other_sockets: OtherSockets,
    /// What becomes of the connections of a pod that nobody has classified yet, and of those to it
    #[arg(long, value_enum, default_value_t = Unclassified::Hold)]
    pub unclassified: Unclassified,
    /// Namespaces whose pods are never held
    #[arg(long, value_delimiter = ',', default_value = "kube-system,ferromesh-system")]
    pub never_hold: Vec<String>,
    /// The kubelet's folder of pod logs: says the namespaces of pods that the controller has not named yet
    #[arg(long, default_value = "/var/log/pods")]
    pub pod_logs: PathBuf,
    /// When the connect() of enrolled pods returns. Accepted at once whatever is said here where this node does not carry
    /// the other (`--check` says so)
    #[arg(long, value_enum, default_value_t = Connect::Auto)]
    pub connect: Connect,
    /// The form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or directives such as `info,mesh_agent=debug`
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,
}

/// `--after-handover`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AfterHandover {
    /// It ends.
    End,
    /// It waits for SIGTERM: a kubelet would start an agent that ended again, as the successor of its successor.
    Wait,
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

/// `--connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Connect {
    /// As the pods' MeshConfigs say; honest where none does.
    Auto,
    /// Of every pod: when the destination has been dialled, with that outcome.
    Honest,
    /// Of every pod: at once; a failure reaches the client as a reset.
    Eager,
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

impl From<Connect> for ConnectChoice {
    fn from(connect: Connect) -> Self {
        match connect {
            Connect::Auto => Self::Pods,
            Connect::Honest => Self::Node(ConnectMode::Honest),
            Connect::Eager => Self::Node(ConnectMode::Eager),
        }
    }
}

impl AgentArgs {
    /// Finds what was left to be found on this node.
    pub fn resolve(mut self) -> Result<Self, RootError> {
        if let Some(units) = &self.units_cgroup {
            self.pods_cgroup.clone_from(units);
            // Nobody probes units.
            self.kubelet_cgroup.clear();
        } else if self.pods_cgroup == Path::new(AUTO) {
            self.pods_cgroup = find_pods_root()?;
        }
        Ok(self)
    }

    /// Which node this is.
    pub fn node_settings(&self) -> NodeSettings {
        NodeSettings {
            node: self.node.clone(),
            trust_domain: self.trust_domain.clone(),
            state_dir: self.state_dir.clone(),
            token_file: self.join_token_file.clone(),
        }
    }

    /// Which pods are never held.
    pub fn never_held(&self) -> NeverHeld {
        NeverHeld { namespaces: self.never_hold.clone(), pod_logs: self.pod_logs.clone() }
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
        assert!(cli.check == Some(None) && cli.agent.is_none());
        let cli = Cli::try_parse_from(["mesh-agent", "--check=/sys/fs/cgroup/kubepods"]).unwrap();
        assert_eq!(cli.check.flatten().unwrap(), PathBuf::from("/sys/fs/cgroup/kubepods"));
        assert!(Cli::try_parse_from(["mesh-agent"]).is_err());
        assert!(Cli::try_parse_from(&FEW[..5]).is_err());
    }

    #[test]
    fn the_rendered_manifest_starts_an_agent_that_waits_for_the_rollout_to_end_it() {
        let manifest = include_str!("../../deploy/manifests/04-agent.yaml");
        let lines = manifest.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        let arguments = lines.map(|argument| format!("--{argument}"));
        let cli = Cli::try_parse_from(["mesh-agent".to_owned()].into_iter().chain(arguments)).unwrap();
        let agent = cli.agent.unwrap();
        assert_eq!(agent.after_handover, AfterHandover::Wait);
        assert_eq!((agent.node.as_str(), agent.metrics_addr.port()), ("$(NODE_NAME)", 15020));
        let probe = format!("--ready={}", agent.admin_socket.display());
        assert!(manifest.contains(&format!("command: [/usr/local/bin/mesh-agent, {probe}]")));
        assert!(Cli::try_parse_from(["mesh-agent", &probe]).unwrap().ready.is_some());
        let pins = agent.pin_dir.display();
        let (leave, left) = (format!("--leave={pins}"), format!("--left={pins}"));
        let way_out = include_str!("../../deploy/leave/agent.yaml");
        assert!(
            way_out.contains(&format!("- {leave}\n")) && way_out.contains(&format!("mesh-agent, {left}]"))
        );
        assert!(Cli::try_parse_from(["mesh-agent", &leave]).unwrap().leave.is_some());
        assert!(Cli::try_parse_from(["mesh-agent", &left]).unwrap().left.is_some());
    }

    #[test]
    fn a_bad_trust_domain_is_told_at_once() {
        let mut arguments = FEW.to_vec();
        arguments.extend(["--trust-domain", "Cluster Local"]);
        let error = Cli::try_parse_from(arguments).unwrap_err().to_string();
        assert!(error.contains("is not a trust domain"), "{error}");
    }
}
