//! The mesh over a world: a controller on the wire and an agent on each node, started, stopped, killed and looked at.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use crate::access_log::{self, AccessLog};
use crate::http;
use crate::kube::kubelet::Kubelet;
use crate::kube::{Cluster, User};
use crate::manifests::{Manifests, ServiceSpec};
pub use crate::options::Options;
use crate::poll;
use crate::world::{CONTROLLER_V4, Finished, Node, Pod, PodSpec, Process, World, binary};

/// How long a program may take until it is ready, and a change until it is in force.
pub(crate) const READY: Duration = Duration::from_secs(30);
const IN_FORCE: Duration = Duration::from_secs(15);

/// A controller, agents, and the world that they serve.
pub struct Mesh {
    /// The manifests that the controller reads.
    pub manifests: Manifests,
    /// The API server that the controller reads, where the options ask for one.
    pub cluster: Option<Cluster>,
    /// The nodes' kubelets, where the options ask for them.
    pub kubelets: Vec<Kubelet>,
    /// Another build of the agent, for those that are started from now on.
    pub agent_program: Option<PathBuf>,
    options: Options,
    controller: Option<Process>,
    agents: Vec<Option<Process>>,
    starts: u32,
    /// Goes last: it removes what the others use.
    pub world: World,
}

impl Mesh {
    /// A mesh of two nodes with no pods.
    pub fn start() -> Result<Self> {
        Self::start_with(Options::default())
    }

    /// [`Mesh::start`], otherwise.
    pub fn start_with(options: Options) -> Result<Self> {
        let mut mesh = Self::prepare(options)?;
        mesh.start_controller()?;
        for node in 1..=mesh.options.first_nodes()? {
            mesh.start_agent(node)?;
        }
        Ok(mesh)
    }

    /// Starts the kubelet of a node that was left out, or is off; the nodes in order.
    pub fn start_kubelet(&mut self, number: u8) -> Result<()> {
        let cluster = self.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))?;
        self.kubelets.push(cluster.start_kubelet(&mut self.world, number, self.options.driver(number))?);
        Ok(())
    }

    /// A world and a folder of manifests; nothing runs yet.
    pub fn prepare(options: Options) -> Result<Self> {
        let mut world = World::with_nodes(u8::try_from(options.transports.len())?)?;
        let manifests = Manifests::new(world.files.join("manifests"))?;
        let agents = options.transports.iter().map(|_| None).collect();
        let mut cluster = (options.kube || options.kubelets).then(|| Cluster::start(&world)).transpose()?;
        let mut kubelets = Vec::new();
        if let Some(cluster) = cluster.as_mut().filter(|_| options.kubelets) {
            cluster.start_controllers()?;
            for node in 1..=options.first_nodes()? {
                kubelets.push(cluster.start_kubelet(&mut world, node, options.driver(node))?);
            }
        }
        Ok(Self {
            manifests,
            cluster,
            kubelets,
            agent_program: None,
            options,
            controller: None,
            agents,
            starts: 0,
            world,
        })
    }

    pub(crate) fn state(&self, of: &str) -> Result<PathBuf> {
        let path = self.world.files.join(of);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        Ok(path)
    }

    /// Starts the controller (again) and waits until it serves.
    pub fn start_controller(&mut self) -> Result<()> {
        self.starts += 1;
        let state = self.state("controller")?;
        let source = match &self.cluster {
            Some(_) => "kube".to_owned(),
            None => format!("dir:{}", self.manifests.folder().display()),
        };
        let kubeconfig = self.cluster.as_ref().map(|cluster| cluster.kubeconfig(User::Controller));
        let kubeconfig = kubeconfig.map(|path| format!("--kubeconfig={}", path.display()));
        let (listen, metrics) = (format!("{CONTROLLER_V4}:15010"), format!("{CONTROLLER_V4}:15014"));
        let state_text = state.to_string_lossy().into_owned();
        let arguments = [
            "--source",
            &source,
            "--state-dir",
            &state_text,
            "--listen",
            &listen,
            "--metrics-addr",
            &metrics,
            "--trust-domain",
            "cluster.local",
            "--svid-ttl",
            self.options.svid_ttl,
        ];
        let more = self.options.controller_arguments.iter().map(String::as_str);
        let arguments: Vec<&str> = arguments.into_iter().chain(kubeconfig.as_deref()).chain(more).collect();
        let name = format!("controller-{}", self.starts);
        let mut process = Process::start(&self.world.wire(), &name, &binary("mesh-controller")?, &arguments)?;
        poll::until("the controller to serve", READY, || {
            if !process.running() {
                bail!(poll::Hopeless("it has ended"));
            }
            if !state.join("ca/root.pem").is_file() {
                bail!("no root certificate yet");
            }
            self.wire_connects(&listen)
        })
        .with_context(|| process.tail())?;
        self.controller = Some(process);
        Ok(())
    }

    fn wire_connects(&self, to: &str) -> Result<()> {
        let to: std::net::SocketAddr = to.parse()?;
        let look = || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)).map(drop);
        Ok(crate::world::netns::inside(&self.world.wire().netns, look)??)
    }

    /// Starts a node's agent (again) and waits until it says that it is ready.
    pub fn start_agent(&mut self, number: u8) -> Result<()> {
        self.launch_agent(number)?;
        self.agent_ready(number)
    }

    /// Starts a node's agent without waiting.
    pub fn launch_agent(&mut self, number: u8) -> Result<()> {
        self.starts += 1;
        let node = self.world.node(number).clone();
        let state = self.state(&format!("agent-{}", node.name))?;
        let token = state.join("join-token");
        if !token.is_file() {
            let given = match &self.cluster {
                Some(cluster) if self.options.kubelets => cluster.agent_token(&node.name)?,
                _ => self.join_token(&node.name)?,
            };
            fs::write(&token, given)?;
        }
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let transport = self.options.transports[usize::from(number) - 1];
        let arguments = [
            "--node".to_owned(),
            node.name.clone(),
            "--controller".to_owned(),
            format!("https://{CONTROLLER_V4}:15010"),
            "--controller-ca".to_owned(),
            text(self.state("controller")?.join("ca/root.pem")),
            "--join-token-file".to_owned(),
            text(token),
            "--state-dir".to_owned(),
            text(state),
            "--pin-dir".to_owned(),
            text(node.pins.clone()),
            "--admin-socket".to_owned(),
            text(self.admin_socket(number)),
            "--metrics-addr".to_owned(),
            metrics_address(&node),
            "--trust-domain".to_owned(),
            "cluster.local".to_owned(),
            "--transport".to_owned(),
            transport.to_owned(),
            format!("--connect={}", self.options.connect),
            format!("--unclassified={}", self.options.unclassified),
        ];
        let more = self.options.agent_arguments.iter().copied();
        let cgroups = self.served_cgroups(&node);
        let arguments: Vec<&str> = arguments.iter().chain(&cgroups).map(String::as_str).chain(more).collect();
        let name = format!("agent-{}-{}", node.name, self.starts);
        let program = self.agent_program.clone().map_or_else(|| binary("mesh-agent"), Ok)?;
        let mut place = node.place();
        if self.options.agents_as_pods {
            place.cgroup = node.agent_cgroup(self.starts);
        } else if number <= self.options.hosts {
            // Beside the units, as systemd starts it.
            place.cgroup = node.units_cgroup().join("ferromesh-agent.service");
        }
        fs::create_dir_all(&place.cgroup)?;
        let process = Process::start(&place, &name, &program, &arguments)?;
        self.agents[usize::from(number) - 1] = Some(process);
        Ok(())
    }

    /// Whom a node's agent is to serve: a host's units, or pods.
    fn served_cgroups(&self, node: &Node) -> Vec<String> {
        if node.number <= self.options.hosts {
            return vec![format!("--units-cgroup={}", node.units_cgroup().display())];
        }
        vec![
            format!("--pods-cgroup={}", node.pods_cgroup().display()),
            format!("--kubelet-cgroup={}", node.kubelet_cgroup().display()),
        ]
    }

    /// Starts a node's agent beside the running one, and waits until it has taken over. The old one goes out; it drains.
    pub fn replace_agent(&mut self, number: u8) -> Result<Process> {
        let old = self.take_agent(number)?;
        self.launch_agent(number)?;
        let new = self.agent(number)?;
        poll::until("the new agent to take over", READY, || {
            if !new.running() {
                bail!(poll::Hopeless("it has ended"));
            }
            ensure!(new.stdout().contains("took over from the running agent"), "it has not said so");
            Ok(())
        })
        .with_context(|| format!("{}\n{}", new.tail(), old.tail()))?;
        Ok(old)
    }

    /// Waits until the agent says that it is ready.
    pub fn agent_ready(&mut self, number: u8) -> Result<()> {
        let node = self.world.node(number).clone();
        let place = node.place();
        let address: std::net::SocketAddr = metrics_address(&node).parse()?;
        let agent = self.agents[usize::from(number) - 1].as_mut().ok_or_else(|| anyhow!("no agent"))?;
        poll::until(&format!("the agent of {} to be ready", node.name), READY, || {
            if !agent.running() {
                bail!(poll::Hopeless("it has ended"));
            }
            let answer = crate::world::netns::inside(&place.netns, || http::get(address, "/readyz"))??;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(anyhow!("it answers {answer:?}")) }
        })
        .with_context(|| agent.tail())
    }

    fn join_token(&self, node: &str) -> Result<String> {
        let state = self.state("controller")?;
        let output = Command::new(binary("mesh-controller")?)
            .args(["token", "create", "--node", node, "--ttl", "10m", "--state-dir"])
            .arg(state)
            .output()?;
        if !output.status.success() {
            bail!("no join token for {node}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The agent's process.
    pub fn agent(&mut self, number: u8) -> Result<&mut Process> {
        self.agents[usize::from(number) - 1].as_mut().ok_or_else(|| anyhow!("node {number} has no agent"))
    }

    /// Takes a node's agent out, as it runs.
    pub fn take_agent(&mut self, number: u8) -> Result<Process> {
        self.agents[usize::from(number) - 1].take().ok_or_else(|| anyhow!("node {number} has no agent"))
    }

    /// Puts one back.
    pub fn put_agent(&mut self, number: u8, agent: Process) {
        self.agents[usize::from(number) - 1] = Some(agent);
    }

    /// Ends a node's agent with SIGTERM and waits for its end.
    pub fn stop_agent(&mut self, number: u8) -> Result<Finished> {
        let agent = self.take_agent(number)?;
        agent.terminate()?;
        agent.wait(Duration::from_secs(60))
    }

    /// Kills a node's agent (SIGKILL).
    pub fn kill_agent(&mut self, number: u8) {
        self.agents[usize::from(number) - 1] = None;
    }

    /// Gives the controller one more argument, from its next start on.
    pub fn controller_argument(&mut self, argument: String) {
        self.options.controller_arguments.push(argument);
    }

    /// Kills the controller.
    pub fn kill_controller(&mut self) {
        self.controller = None;
    }

    /// The controller's process.
    pub fn controller(&self) -> Result<&Process> {
        self.controller.as_ref().ok_or_else(|| anyhow!("the controller does not run"))
    }

    /// Makes a pod and its manifests. Its namespace's manifest is the caller's.
    pub fn pod(&self, namespace: &str, name: &str, node: u8) -> Result<Pod> {
        self.pod_from(&PodSpec::new(namespace, name, node))
    }

    /// [`Mesh::pod`] from a spec.
    pub fn pod_from(&self, spec: &PodSpec) -> Result<Pod> {
        let pod = self.world.pod(spec)?;
        self.manifests.pod(&pod)?;
        Ok(pod)
    }

    /// Makes a systemd unit on a plain host (`Options::hosts`) and its manifests.
    pub fn unit(&self, namespace: &str, name: &str, node: u8) -> Result<Pod> {
        let unit = self.world.unit(&PodSpec::new(namespace, name, node))?;
        self.manifests.unit(&unit)?;
        Ok(unit)
    }

    /// A service with one port in front of pods, on `vips` (none: headless).
    pub fn service(&self, name: (&str, &str), vips: &[&str], ports: (u16, u16), pods: &[&Pod]) -> Result<()> {
        self.manifests.service(&ServiceSpec {
            namespace: name.0,
            name: name.1,
            vips: vips.iter().map(|vip| (*vip).to_owned()).collect(),
            ports: vec![("main", ports.0, ports.1)],
            backends: pods.iter().map(|pod| (*pod, true)).collect(),
            more: Value::Null,
        })
    }

    /// Waits until `look` answers `Ok`; for a change of configuration to be in force.
    pub fn in_force<T>(&self, what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
        poll::until(what, IN_FORCE, look).with_context(|| self.logs())
    }

    /// The access records of a node's agent, over all its starts.
    pub fn access_log(&self, number: u8) -> AccessLog {
        AccessLog::parse(&self.agent_output(number))
    }

    /// Waits for an access record of a node's agent.
    pub fn record(&self, number: u8, wanted: &[(&str, &str)]) -> Result<Value> {
        access_log::wait_for(|| self.access_log(number), wanted)
    }

    fn agent_output(&self, number: u8) -> String {
        let prefix = format!("agent-n{number}-");
        let mut all = String::new();
        let Ok(entries) = fs::read_dir(self.world.files.join("logs")) else { return all };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort_by_cached_key(|path| path.metadata().and_then(|meta| meta.modified()).ok());
        for path in files {
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                all.push_str(&String::from_utf8_lossy(&fs::read(path).unwrap_or_default()));
            }
        }
        all
    }

    /// The ends of all programs' outputs, for a failure's message.
    pub fn logs(&self) -> String {
        let mut all = vec![self.controller.as_ref().map_or_else(String::new, Process::tail)];
        all.extend(self.agents.iter().flatten().map(Process::tail));
        all.join("\n")
    }

    /// Leaves everything running when this is dropped.
    pub fn keep(mut self) {
        self.world.keep();
        for process in
            self.controller.take().into_iter().chain(self.agents.iter_mut().filter_map(Option::take))
        {
            process.leave_running();
        }
    }
}

pub(crate) fn metrics_address(node: &Node) -> String {
    format!("{}:15020", node.v4)
}
