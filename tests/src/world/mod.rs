//! Two (or more) nodes with pods on one machine: network namespaces, cgroups and links.
//!
//! ```text
//!   pod netns --veth-- node netns (routes its pods) --veth-- "wire" netns (bridge, controller) --veth-- node ...
//! ```
//! In: how many nodes, which pods. Out: addresses, and places to run programs at. Everything carries a common prefix:
//! what a killed run left is found and removed when the next world is made. One world exists at a time on a machine (a
//! lock file sees to that).

pub(crate) mod cgroup;
pub mod netns;
mod pod;
mod process;

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

pub(crate) use pod::Frame;
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Place, Process, binary};

/// Prefix of directories with a world's files.
const FILES: &str = "/tmp/ferromesh-test-";
/// Prefix of the directories with kernel objects that agents pin.
const PINS: &str = "ferromesh-test-";
const BPFFS: &str = "/sys/fs/bpf";

/// The machines of one run.
pub struct World {
    /// Names this run in all that it makes.
    pub run: String,
    /// Holds manifests, states and logs.
    pub files: PathBuf,
    nodes: Vec<Node>,
    wire: String,
    cgroup: PathBuf,
    next_pod: AtomicU32,
    pauses: Mutex<Vec<Process>>,
    keep: bool,
    _lock: File,
}

/// One node: a network namespace that routes its pods.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the mesh: `n1`, `n2`.
    pub name: String,
    /// 1, 2, ...
    pub number: u8,
    /// Its network namespace.
    pub netns: String,
    /// Its cgroup; the pods' root, the units' and `system` lie below.
    pub cgroup: PathBuf,
    /// The cgroup below which its pods are.
    pub pods: PathBuf,
    /// Where its agent pins kernel objects.
    pub pins: PathBuf,
    /// Its IPv4 address on the wire.
    pub v4: Ipv4Addr,
    /// What stands for the node's own folders (`/run`, `/var`), for containers that mount them.
    pub host: PathBuf,
    logs: PathBuf,
    run: String,
}

impl Node {
    /// The cgroup below which this node's pods are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.pods.clone()
    }

    /// The cgroup below which this node's systemd units are, when it is a plain host.
    pub fn units_cgroup(&self) -> PathBuf {
        self.cgroup.join("system.slice")
    }

    /// Where the agent of a start is, when agents are pods.
    pub fn agent_cgroup(&self, start: u32) -> PathBuf {
        self.pods_cgroup().join(format!("podagent-{start}"))
    }

    /// The cgroup of the node's kubelet.
    pub fn kubelet_cgroup(&self) -> PathBuf {
        self.cgroup.join("kubelet.service")
    }

    /// Where the node's kubelet runs.
    pub fn kubelet(&self) -> Place {
        Place { cgroup: self.kubelet_cgroup(), ..self.place() }
    }

    /// A place outside of any pod, for the node's own programs.
    pub fn place(&self) -> Place {
        Place { netns: self.netns.clone(), cgroup: self.cgroup.join("system"), logs: self.logs.clone() }
    }
}

/// Address of the controller, on the wire.
pub const CONTROLLER_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

impl World {
    /// Makes a world with two nodes, after removing what a killed run left.
    pub fn new() -> Result<Self> {
        Self::with_nodes(2)
    }

    /// Makes a world with `count` nodes.
    pub fn with_nodes(count: u8) -> Result<Self> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        ensure!(
            rustix::process::geteuid().is_root(),
            "this needs root: it makes network namespaces and cgroups"
        );
        let lock = lock()?;
        remove_leftovers()?;
        mount_bpffs()?;
        let run = format!("{:x}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let files = PathBuf::from(format!("{FILES}{run}"));
        fs::create_dir_all(files.join("logs"))?;
        let cgroup = cgroup::root()?.join(&run);
        let wire = format!("{}{run}-wire", netns::PREFIX);
        let mut world = Self {
            run,
            files,
            nodes: Vec::new(),
            wire,
            cgroup,
            next_pod: AtomicU32::new(1),
            pauses: Mutex::default(),
            keep: false,
            _lock: lock,
        };
        world.make_wire()?;
        for number in 1..=count {
            world.make_node(number)?;
        }
        Ok(world)
    }

    fn make_wire(&self) -> Result<()> {
        netns::add(&self.wire)?;
        fs::create_dir_all(self.cgroup.join("wire"))?;
        netns::batch(
            &self.wire,
            &[
                "link add wire type bridge".to_owned(),
                format!("addr add {CONTROLLER_V4}/24 dev wire"),
                "link set wire up".to_owned(),
            ],
        )?;
        // Pods ask the API server by their own addresses.
        netns::batch(&self.wire, &(1..=MOST_NODES).flat_map(routes_to).collect::<Vec<_>>())
    }

    fn make_node(&mut self, number: u8) -> Result<()> {
        let name = format!("n{number}");
        let ns = format!("{}{}-{name}", netns::PREFIX, self.run);
        let cgroup = self.cgroup.join(&name);
        fs::create_dir_all(cgroup.join("pods"))?;
        fs::create_dir_all(cgroup.join("system"))?;
        fs::create_dir_all(cgroup.join("kubelet.service"))?;
        fs::create_dir_all(cgroup.join("system.slice"))?;
        netns::add(&ns)?;
        netns::sysctl(&ns, &[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let (wire, v4) = (&self.wire, node_v4(number));
        netns::batch(
            wire,
            &[
                format!("link add {name} type veth peer name eth0 netns {ns}"),
                format!("link set {name} master wire up"),
            ],
        )?;
        let mut lines = vec![
            format!("addr add {v4}/24 dev eth0"),
            format!("addr add {}/64 dev eth0 nodad", node_v6(number)),
            "link set eth0 up".to_owned(),
        ];
        lines.extend(routes(number));
        netns::batch(&ns, &lines)?;
        let pins = PathBuf::from(BPFFS).join(format!("{PINS}{}-{name}", self.run));
        fs::create_dir_all(&pins)?;
        let (logs, host) = (self.files.join("logs"), self.files.join(format!("host-{name}")));
        fs::create_dir_all(&host)?;
        let (pods, run) = (cgroup.join("pods"), self.run.clone());
        self.nodes.push(Node { name, number, netns: ns, cgroup, pods, pins, v4, host, logs, run });
        Ok(())
    }

    /// The addresses on the wire of all nodes that there can be.
    pub(crate) fn node_addresses() -> impl Iterator<Item = Ipv4Addr> {
        (1..=MOST_NODES).map(node_v4)
    }

    /// Node 1, 2, ...
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// Says where a node's pods are, before any is made.
    pub(crate) fn set_pods_root(&mut self, number: u8, root: PathBuf) {
        self.nodes[usize::from(number) - 1].pods = root;
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace that joins the nodes; its link `n2` carries everything to and from node 2.
    pub fn wire(&self) -> Place {
        Place { netns: self.wire.clone(), cgroup: self.cgroup.join("wire"), logs: self.files.join("logs") }
    }

    /// Takes a node's link away, or brings it back.
    pub fn plug(&self, number: u8, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        netns::batch(&self.wire, &[format!("link set n{number} {state}")])
    }

    /// Makes a pod.
    pub fn pod(&self, spec: &PodSpec) -> Result<Pod> {
        self.make_pod(spec, None)
    }

    /// Makes a pod whose uid somebody else gave.
    pub fn pod_with_uid(&self, spec: &PodSpec, uid: &str) -> Result<Pod> {
        self.make_pod(spec, Some(uid))
    }

    /// Makes a systemd unit: its programs run in the node's own namespace, in a cgroup below `system.slice`.
    pub fn unit(&self, spec: &PodSpec) -> Result<Pod> {
        let (node, unit) = (self.node(spec.node), format!("{}.service", spec.name));
        let cgroup = node.units_cgroup().join(&unit);
        Pod::on_host(node, spec, format!("{}/{unit}", node.name), cgroup)
    }

    /// Somebody who has logged in to a node: programs in its own namespace, in no unit's cgroup, nor in the agent's.
    pub fn login(&self, node: u8, name: &str) -> Result<Pod> {
        let node = self.node(node);
        let (spec, cgroup) =
            (PodSpec::new(&node.name, name, node.number), node.cgroup.join("user.slice").join(name));
        Pod::on_host(node, &spec, format!("{}/{name}", node.name), cgroup)
    }

    fn make_pod(&self, spec: &PodSpec, uid: Option<&str>) -> Result<Pod> {
        let number = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let (pod, pause) = pod::make(self, spec, number, uid)?;
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner).push(pause);
        Ok(pod)
    }

    /// Leaves everything as it is when this is dropped; the next world removes it.
    pub fn keep(&mut self) {
        self.keep = true;
        let pauses = std::mem::take(&mut *self.pauses.lock().unwrap_or_else(PoisonError::into_inner));
        pauses.into_iter().for_each(Process::leave_running);
    }

    /// Where the world's cgroups are.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    fn remove(&self) -> Result<()> {
        remove_leftovers()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if std::thread::panicking() && std::env::var_os("FERROMESH_KEEP_LOGS").is_some() {
            let to = format!("/tmp/ferromesh-logs-{}", self.run);
            if let Err(error) = fs::rename(self.files.join("logs"), &to) {
                eprintln!("keep the logs in {to}: {error}");
            }
        }
        if let Err(error) = self.remove() {
            eprintln!("the world {} was not removed in full: {error:#}", self.run);
        }
    }
}

/// Nodes of a world.
const MOST_NODES: u8 = 9;

fn node_v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn node_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into())
}

fn routes(own: u8) -> Vec<String> {
    let mut routes = Vec::new();
    for number in (1..=MOST_NODES).filter(|number| *number != own) {
        routes.extend(routes_to(number));
        routes.push(format!("route add fd88:{number}::/64 via {}", node_v6(number)));
    }
    routes
}

/// The IPv4 routes to a node's pods.
fn routes_to(node: u8) -> impl Iterator<Item = String> {
    V4_NETWORKS.map(move |net| format!("route add 10.{net}.{node}.0/24 via {}", node_v4(node)))
}

/// The second bytes of the pods' IPv4 addresses: 256 pods each.
const V4_NETWORKS: std::ops::RangeInclusive<u8> = 88..=91;

/// The IPv4 address of pod `pod` on node `node`.
fn pod_v4(node: u8, pod: u32) -> Result<Ipv4Addr> {
    let [_, _, high, low] = pod.to_be_bytes();
    let network = u8::try_from(pod >> 8).ok().and_then(|_| V4_NETWORKS.start().checked_add(high));
    let network = network.filter(|network| V4_NETWORKS.contains(network)).context("too many pods")?;
    Ok(Ipv4Addr::new(10, network, node, low))
}

/// The IPv6 address of pod `pod` on node `node`.
fn pod_v6(node: u8, pod: u32) -> Ipv6Addr {
    let [high, low] = [(pod >> 16) as u16, (pod & 0xffff) as u16];
    Ipv6Addr::new(0xfd88, u16::from(node), 0, 0, 0, 0, high, low)
}

fn lock() -> Result<File> {
    let path = "/run/ferromesh-test.lock";
    let file =
        File::options().create(true).append(true).open(path).with_context(|| format!("open {path}"))?;
    if file.try_lock().is_err() {
        eprintln!("another run of the tests, the demo or the bench holds {path}; waiting for its end");
        file.lock().with_context(|| format!("lock {path}"))?;
    }
    Ok(file)
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("bpf")) {
        return Ok(());
    }
    use rustix::mount::{MountFlags, mount};
    mount("bpf", BPFFS, "bpf", MountFlags::empty(), None).context("mount bpffs at /sys/fs/bpf")
}

/// Removes what runs that were killed have left, and ends what still runs of them.
pub fn remove_leftovers() -> Result<()> {
    cgroup::destroy(&cgroup::root()?)?;
    for name in netns::leftovers()? {
        netns::delete(&name)?;
    }
    remove_matching(Path::new(BPFFS), PINS)?;
    let (parent, prefix) = FILES.rsplit_once('/').unwrap_or(("/tmp", FILES));
    remove_matching(Path::new(parent), prefix)
}

/// Removes a cgroup of a world and whatever is in it, as a boot does.
pub fn remove_cgroup(path: &Path) -> Result<()> {
    ensure!(path.starts_with(cgroup::root()?), "{} is of no world", path.display());
    cgroup::destroy(path)
}

fn remove_matching(parent: &Path, prefix: &str) -> Result<()> {
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
