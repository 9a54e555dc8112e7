//! A pod: a network namespace with addresses of its own and a cgroup, in which unmodified programs run.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Finished, Node, Place, Process, World, binary, netns, pod_v6};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// Its namespace in the mesh.
    pub namespace: String,
    /// Its name, which is its `app` label as well.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The node it is on.
    pub node: u8,
    /// Further labels.
    pub labels: Vec<(String, String)>,
}

impl PodSpec {
    /// A pod whose service account has its own name.
    pub fn new(namespace: &str, name: &str, node: u8) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            node,
            labels: Vec::new(),
        }
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it was made from.
    pub spec: PodSpec,
    /// `metadata.uid`.
    pub uid: String,
    /// The node's name.
    pub node: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    place: Place,
    runs: Arc<AtomicU32>,
}

/// How long a program that [`Pod::run`] starts may take.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// Makes the pod and the process that holds its namespace, as a pod's pause container does.
pub(super) fn make(world: &World, spec: &PodSpec, number: u32) -> Result<(Pod, Process)> {
    let node = world.node(spec.node);
    let ns = format!("{}{}-p{number}", netns::PREFIX, world.run);
    let uid = uid(world, number);
    let cgroup = node.pods_cgroup().join(format!("pod{uid}"));
    fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    let v4 = super::pod_v4(spec.node, number)?;
    let v6 = pod_v6(spec.node, number);
    netns::add(&ns)?;
    join(node, &ns, &format!("p{number}"), (v4, v6))?;
    let place = Place { netns: ns, cgroup, logs: world.files.join("logs") };
    // As a kubelet's pause container: the pod has a process, and so a namespace to be found by, before its programs run.
    // The pod's cgroup ends it.
    let pause = format!("{}-{}-pause", spec.namespace, spec.name);
    Process::start(&place, &pause, Path::new("sleep"), &["infinity"])?.leave_running();
    let pause = Process::start(&place, &format!("pause-{number}"), Path::new("sleep"), &["infinity"])?;
    let runs = Arc::new(AtomicU32::new(0));
    let pod = Pod { spec: spec.clone(), uid, node: node.name.clone(), v4, v6, place, runs };
    Ok((pod, pause))
}

fn uid(world: &World, number: u32) -> String {
    let (pid, sequence) = world.run.split_once('-').unwrap_or((world.run.as_str(), "0"));
    format!("{pid:0>8}-{sequence:0>4}-4000-8000-{number:012}")
}

/// A /32 and a /128 behind a link of their own, as most container networks do it.
fn join(node: &Node, ns: &str, link: &str, (v4, v6): (Ipv4Addr, Ipv6Addr)) -> Result<()> {
    netns::batch(
        &node.netns,
        &[
            format!("link add {link} type veth peer name eth0 netns {ns}"),
            format!("addr add 169.254.1.1/32 dev {link}"),
            format!("addr add fe80::1/64 dev {link} nodad"),
            format!("link set {link} up"),
            format!("route add {v4}/32 dev {link}"),
            format!("route add {v6}/128 dev {link}"),
        ],
    )?;
    netns::batch(
        ns,
        &[
            format!("addr add {v4}/32 dev eth0"),
            format!("addr add {v6}/128 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "route add 169.254.1.1 dev eth0 scope link".to_owned(),
            "route add default via 169.254.1.1 dev eth0".to_owned(),
            "route add default via fe80::1 dev eth0".to_owned(),
        ],
    )
}

impl Pod {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.spec.namespace, self.spec.name)
    }

    /// The identity that its certificate carries.
    pub fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.spec.namespace, self.spec.service_account)
    }

    /// Its network namespace.
    pub fn netns(&self) -> &str {
        &self.place.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup
    }

    /// A folder for files of its programs.
    pub fn files(&self) -> Result<PathBuf> {
        let path = self.place.logs.join(format!("{}-{}.d", self.spec.namespace, self.spec.name));
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// `address:port` of this pod, over IPv4.
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.v4)
    }

    /// `[address]:port` of this pod, over IPv6.
    pub fn at6(&self, port: u16) -> String {
        format!("[{}]:{port}", self.v6)
    }

    /// Starts a program; `name` names its output files.
    pub fn spawn(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Process> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let file = format!("{}-{}-{number}-{name}", self.spec.namespace, self.spec.name);
        Process::start(&self.place, &file, Path::new(program), arguments)
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        self.run_for(RUN_LIMIT, program, arguments)
    }

    /// Runs a program to its end, which must come within `limit`.
    pub fn run_for(&self, limit: Duration, program: &str, arguments: &[&str]) -> Result<Finished> {
        let name = Path::new(program).file_name().map(|name| name.to_string_lossy().into_owned());
        self.spawn(&name.unwrap_or_default(), program, arguments)?.wait(limit)
    }

    /// Starts the helper program of this crate.
    pub fn spawn_peer(&self, arguments: &[&str]) -> Result<Process> {
        let peer = binary("peer")?;
        let name = format!("peer-{}", arguments.first().copied().unwrap_or_default());
        self.spawn(&name, &peer.to_string_lossy(), arguments)
    }

    /// Runs the helper program of this crate to its end and reads the JSON that it prints.
    pub fn peer(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        self.spawn_peer(arguments)?.wait(RUN_LIMIT)?.json()
    }

    /// True when something listens on this TCP port in the pod.
    pub fn listens(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X} ");
        let look = move || {
            let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            [read("tcp"), read("tcp6")].concat().lines().any(|line| is_listener(line, &wanted))
        };
        netns::inside(self.netns(), look).unwrap_or(false)
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// A line of `/proc/net/tcp`: slot, local address, remote address, state (0A: LISTEN).
fn is_listener(line: &str, wanted: &str) -> bool {
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next(), fields.nth(1));
    state == Some("0A") && local.is_some_and(|local| format!("{local} ").ends_with(wanted))
}
