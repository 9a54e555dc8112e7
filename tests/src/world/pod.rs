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

/// A pod that runs; or a unit of a plain host, which shares the namespace and the addresses with the host's others.
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

/// What a pod gets from whoever makes it.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// The cgroup that its programs run in; it is there.
    pub(crate) cgroup: PathBuf,
    /// Names its link on the node, and its namespace.
    pub(crate) link: String,
    /// Gives its addresses.
    pub(crate) number: u32,
}

/// Makes the pod and the process that holds its namespace, as a pod's pause container does.
pub(super) fn make(world: &World, spec: &PodSpec, number: u32, uid: Option<&str>) -> Result<(Pod, Process)> {
    let node = world.node(spec.node);
    let uid = uid.map_or_else(|| generated_uid(world, number), str::to_owned);
    let cgroup = node.pods_cgroup().join(format!("pod{uid}"));
    fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
    let pod = Pod::make(node, spec, Frame { uid, cgroup, link: format!("p{number}"), number })?;
    let place = &pod.place;
    // As a kubelet's pause container: the pod has a process, and so a namespace to be found by, before its programs run.
    // The pod's cgroup ends it.
    let pause = format!("{}-{}-pause", spec.namespace, spec.name);
    Process::start(place, &pause, Path::new("sleep"), &["infinity"])?.leave_running();
    let pause = Process::start(place, &format!("pause-{number}"), Path::new("sleep"), &["infinity"])?;
    Ok((pod, pause))
}

fn generated_uid(world: &World, number: u32) -> String {
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
    /// Makes its network; nothing runs in it.
    pub(crate) fn make(node: &Node, spec: &PodSpec, frame: Frame) -> Result<Self> {
        let ns = format!("{}{}-{}", netns::PREFIX, node.run, frame.link);
        let v4 = super::pod_v4(spec.node, frame.number)?;
        let v6 = pod_v6(spec.node, frame.number);
        netns::add(&ns)?;
        join(node, &ns, &frame.link, (v4, v6))?;
        let place = Place { netns: ns, cgroup: frame.cgroup, logs: node.logs.clone() };
        let runs = Arc::new(AtomicU32::new(0));
        Ok(Self { spec: spec.clone(), uid: frame.uid, node: node.name.clone(), v4, v6, place, runs })
    }

    /// Programs of a plain host, known by this cgroup alone: namespace and addresses are the node's.
    pub(super) fn on_host(node: &Node, spec: &PodSpec, uid: String, cgroup: PathBuf) -> Result<Self> {
        fs::create_dir_all(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let (v4, v6) = (node.v4, super::node_v6(node.number));
        let place = Place { cgroup, ..node.place() };
        let runs = Arc::new(AtomicU32::new(0));
        Ok(Self { spec: spec.clone(), uid, node: node.name.clone(), v4, v6, place, runs })
    }

    /// Where its programs run.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

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
        let wanted = format!(":{port:04X}");
        let listening = |socket: &Socket| socket.state == "0A" && socket.local.ends_with(&wanted);
        self.sockets().is_ok_and(|sockets| sockets.iter().any(listening))
    }

    /// How many TCP sockets of the pod wait for an answer to their SYN from this port.
    pub fn connecting(&self, port: u16) -> Result<usize> {
        let wanted = format!(":{port:04X}");
        let dials = |socket: &&Socket| socket.state == "02" && socket.remote.ends_with(&wanted);
        Ok(self.sockets()?.iter().filter(dials).count())
    }

    fn sockets(&self) -> Result<Vec<Socket>> {
        let read = || {
            let file = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
            [file("tcp"), file("tcp6")].concat()
        };
        Ok(netns::inside(self.netns(), read)?.lines().filter_map(socket).collect())
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// What a line of `/proc/net/tcp` says of a socket: addresses and state in hexadecimal (0A: LISTEN, 02: SYN_SENT).
struct Socket {
    local: String,
    remote: String,
    state: String,
}

fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1).map(str::to_owned);
    Some(Socket { local: fields.next()?, remote: fields.next()?, state: fields.next()? })
}
