//! One pod and one outsider: two network namespaces joined by a link, the pod's in a cgroup of its own. In: a tag that is
//! unique among the tests. Out: processes in either, and the interceptor of a node whose only pod it is.

mod process;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_agent::intercept::{
    Config, ConnectChoice, Interceptor, NeverHeld, PodEvent, PodListeners, PodNet, Running,
};
use mesh_core::identity::{SpiffeId, TrustDomain};
use mesh_core::model::{ConnectMode, MtlsMode, MtlsModes, Owner, Workload, WorkloadUid};
use mesh_core::snapshot::{Delta, Remove, Snapshot, Upsert};
use tokio::sync::{mpsc, watch};

pub(crate) use process::{Process, obey};

pub(crate) const POD4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 1));
pub(crate) const POD6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd91, 0, 0, 0, 0, 0, 0, 1));
pub(crate) const OUT4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 91, 0, 2));
pub(crate) const OUT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd91, 0, 0, 0, 0, 0, 0, 2));

/// Nothing here may take longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// The two namespaces, the cgroup and the pins of one test.
pub(crate) struct Fixture {
    pub(crate) tag: String,
    pub(crate) pods_root: PathBuf,
    pub(crate) pin_dir: PathBuf,
    pub(crate) uid: WorkloadUid,
    /// How the agents are started from now on.
    pub(crate) connect: ConnectChoice,
    /// The same.
    pub(crate) netns_folders: Vec<PathBuf>,
    /// The same.
    pub(crate) never_held: NeverHeld,
    snapshots: Arc<ArcSwap<Snapshot>>,
    versions: watch::Sender<u64>,
    _lock: File,
}

/// A running agent side.
pub(crate) struct Node {
    pub(crate) interceptor: Interceptor,
    pub(crate) events: mpsc::Receiver<PodEvent>,
    running: Running,
}

impl Node {
    /// Ends as a killed agent would: nothing is taken down.
    pub(crate) fn die(self) {
        self.running.stop();
    }

    pub(crate) fn up(&mut self) -> (Arc<PodNet>, PodListeners) {
        match self.event() {
            PodEvent::Up(net, listeners) => (net, listeners),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn event(&mut self) -> PodEvent {
        let until = Instant::now() + LIMIT;
        loop {
            if let Ok(event) = self.events.try_recv() {
                // The map entry follows the event.
                thread::sleep(Duration::from_millis(20));
                return event;
            }
            assert!(Instant::now() < until, "no event; problems: {:?}", self.interceptor.problems());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the one pod problem says `text`; until then no event may come.
    pub(crate) fn refuses(&mut self, text: &str) {
        let until = Instant::now() + LIMIT;
        loop {
            let problems = self.interceptor.problems();
            if problems.iter().any(|problem| problem.reason.contains(text)) {
                break;
            }
            assert!(Instant::now() < until, "no refusal says {text:?}: {problems:?}");
            thread::sleep(Duration::from_millis(10));
        }
        if let Ok(event) = self.events.try_recv() {
            panic!("it was enrolled all the same: {event:?}");
        }
    }

    pub(crate) fn reason(&self, name: &str) -> u64 {
        self.interceptor.reasons().iter().find(|(label, _)| *label == name).unwrap().1
    }
}

impl Fixture {
    /// `None` where the test cannot run (not root).
    pub(crate) fn new(tag: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let lock = lock(tag);
        if !Path::new("/sys/fs/bpf").join("..").exists() || !is_mounted("bpf", "/sys/fs/bpf") {
            run("mount", &["-t", "bpf", "bpf", "/sys/fs/bpf"]);
        }
        let cgroup2 = mount_of("cgroup2").unwrap();
        let trust = TrustDomain::new("test.example").unwrap();
        let fixture = Self {
            tag: tag.to_owned(),
            pods_root: cgroup2.join(format!("ferromesh-intercept-{tag}")).join("pods"),
            pin_dir: PathBuf::from(format!("/sys/fs/bpf/ferromesh-intercept-{tag}")),
            uid: WorkloadUid(format!("uid-{tag}").into()),
            connect: ConnectChoice::Node(ConnectMode::Eager),
            netns_folders: Vec::new(),
            never_held: NeverHeld::default(),
            snapshots: Arc::new(ArcSwap::from_pointee(Snapshot::empty(trust))),
            versions: watch::channel(0).0,
            _lock: lock,
        };
        fixture.clean();
        fixture.make();
        Some(fixture)
    }

    fn names(&self) -> (String, String) {
        (format!("fmi-{}-p", self.tag), format!("fmi-{}-o", self.tag))
    }

    /// Bind mounts of the pod's namespace and of the outsider's, as a runtime has them, in a folder of this test.
    pub(crate) fn bind_mounts(&mut self) {
        let (pod, out) = self.names();
        for name in [&pod, &out] {
            let file = self.mounts().join(name);
            fs::create_dir_all(self.mounts()).unwrap();
            File::create(&file).unwrap();
            run("mount", &["--bind", &format!("/run/netns/{name}"), &file.to_string_lossy()]);
        }
        // A folder that is not there, and a file that is no namespace, do no harm.
        File::create(self.mounts().join("none")).unwrap();
        self.netns_folders = vec![self.mounts(), "/run/there-is-none".into()];
    }

    fn mounts(&self) -> PathBuf {
        PathBuf::from(format!("/run/ferromesh-intercept-{}", self.tag))
    }

    fn pod_cgroup(&self) -> PathBuf {
        self.pods_root.join("burstable").join(format!("pod{}", self.uid))
    }

    fn twin_cgroup(&self) -> PathBuf {
        self.pods_root.join("burstable").join(format!("pod{}-twin", self.uid))
    }

    fn make(&self) {
        let (pod, out) = self.names();
        fs::create_dir_all(self.pod_cgroup()).unwrap();
        for name in [&pod, &out] {
            run("ip", &["netns", "add", name]);
            run("ip", &["-n", name, "link", "set", "lo", "up"]);
        }
        run(
            "ip",
            &["-n", &pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &out],
        );
        for (name, v4, v6) in [(&pod, POD4, POD6), (&out, OUT4, OUT6)] {
            run("ip", &["-n", name, "addr", "add", &format!("{v4}/24"), "dev", "eth0"]);
            run("ip", &["-n", name, "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"]);
            run("ip", &["-n", name, "link", "set", "eth0", "up"]);
        }
    }

    fn clean(&self) {
        Interceptor::uninstall(&self.pin_dir).unwrap();
        let (pod, out) = self.names();
        for name in [&pod, &out] {
            let file = self.mounts().join(name);
            while is_mounted("nsfs", &file.to_string_lossy()) {
                run("umount", &[&file.to_string_lossy()]);
            }
        }
        if self.mounts().exists() {
            fs::remove_dir_all(self.mounts()).unwrap();
        }
        for cgroup in [self.pod_cgroup(), self.twin_cgroup()] {
            let _nobody = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        for name in [pod, out] {
            if Path::new("/run/netns").join(&name).exists() {
                let pids = Command::new("ip").args(["netns", "pids", &name]).output().unwrap();
                for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                    let _ended = Command::new("kill").args(["-9", pid]).status();
                }
                run("ip", &["netns", "del", &name]);
            }
        }
        let top = self.pods_root.parent().unwrap().to_owned();
        let until = Instant::now() + LIMIT;
        while top.exists() {
            // Its processes may still be ending.
            remove_tree(&top);
            assert!(Instant::now() < until, "{} cannot be removed", top.display());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a process in the pod.
    pub(crate) fn pod(&self) -> Process {
        let netns = self.names().0;
        Process::start(&netns, Some(&self.pod_cgroup()))
    }

    /// Starts a process in a cgroup that is so many levels below the pod's.
    pub(crate) fn pod_below(&self, levels: usize) -> Process {
        let cgroup = (0..levels).fold(self.pod_cgroup(), |above, _| above.join("below"));
        fs::create_dir_all(&cgroup).unwrap();
        Process::start(&self.names().0, Some(&cgroup))
    }

    /// Starts a process in the pod's cgroup, but in the namespace of the outsider.
    pub(crate) fn stray(&self) -> Process {
        Process::start(&self.names().1, Some(&self.pod_cgroup()))
    }

    /// Starts a process in the pod's cgroup, but in the namespace of the node (which is this program's).
    pub(crate) fn host_network(&self) -> Process {
        Process::start_in("/proc/self/ns/net", Some(&self.pod_cgroup()))
    }

    /// Starts a process of a second pod, in the namespace of the first.
    pub(crate) fn twin(&self) -> Process {
        fs::create_dir_all(self.twin_cgroup()).unwrap();
        Process::start(&self.names().0, Some(&self.twin_cgroup()))
    }

    /// Starts a process outside of the mesh, at the other end of the link.
    pub(crate) fn outsider(&self) -> Process {
        let netns = self.names().1;
        Process::start(&netns, None)
    }

    /// Gives the outsider the pod's addresses, as a stale namespace of an earlier pod has them, or a pod that lies.
    pub(crate) fn outsider_takes_the_address(&self) {
        for address in [format!("{POD4}/32"), format!("{POD6}/128")] {
            run("ip", &["-n", &self.names().1, "addr", "add", &address, "dev", "lo"]);
        }
    }

    /// What the agent side is started with.
    pub(crate) fn config(&self) -> Config {
        Config {
            pods_root: self.pods_root.clone(),
            netns_folders: self.netns_folders.clone(),
            pin_dir: self.pin_dir.clone(),
            node: "node".into(),
            refuse_sockets: true,
            units: false,
            hold_unclassified: true,
            connect: self.connect,
            never_held: self.never_held.clone(),
        }
    }

    /// Takes the pods' cgroups away and makes them anew, as a node does that starts again.
    pub(crate) fn renew_cgroups(&self) {
        for dir in [self.pod_cgroup(), self.pods_root.join("burstable"), self.pods_root.clone()] {
            fs::remove_dir(dir).unwrap();
        }
        fs::create_dir_all(self.pod_cgroup()).unwrap();
    }

    /// Starts the agent side.
    pub(crate) fn node(&self) -> Node {
        let interceptor = Interceptor::start(self.config()).unwrap();
        let (sender, events) = mpsc::channel(16);
        let running =
            interceptor.run(Arc::clone(&self.snapshots), self.versions.subscribe(), sender).unwrap();
        Node { interceptor, events, running }
    }

    /// Publishes a snapshot that does not name the pod.
    pub(crate) fn withdraw(&self) {
        let held = self.snapshots.load_full();
        let version = held.version + 1;
        let delta = Delta { version, removes: vec![Remove::Workload(self.uid.clone())], ..Delta::default() };
        self.snapshots.store(Arc::new(held.apply(delta)));
        self.versions.send_replace(version);
    }

    /// Publishes a snapshot in which the pod is enrolled or not.
    pub(crate) fn publish(&self, enrolled: bool) {
        self.publish_as(self.uid.clone(), enrolled, vec![POD4, POD6]);
    }

    /// As while the kubelet has not reported the pod's addresses.
    pub(crate) fn publish_without_addresses(&self) {
        self.publish_as(self.uid.clone(), true, Vec::new());
    }

    /// Publishes the second pod, to which the control plane gives the addresses of the first.
    pub(crate) fn publish_twin(&self) {
        self.publish_as(WorkloadUid(format!("{}-twin", self.uid).into()), true, vec![POD4, POD6]);
    }

    fn publish_as(&self, uid: WorkloadUid, enrolled: bool, addresses: Vec<IpAddr>) {
        let held = self.snapshots.load_full();
        let workload = Workload {
            uid,
            name: "app".into(),
            identity: SpiffeId::new(held.trust_domain.clone(), "shop", "app").unwrap(),
            node: "node".into(),
            addresses,
            enrolled,
            owner: Owner { kind: "Pod".into(), name: "app".into() },
            mtls: MtlsModes { default: MtlsMode::Permissive, by_port: Default::default() },
            policies: Vec::new(),
            served: Default::default(),
            agent_lost_after: None,
            connect: None,
            probes: Default::default(),
            unit: None,
        };
        self.tell(vec![Upsert::Workload(workload)]);
    }

    /// Publishes a newer snapshot.
    pub(crate) fn tell(&self, upserts: Vec<Upsert>) {
        let held = self.snapshots.load_full();
        let version = held.version + 1;
        let delta = Delta { version, upserts, ..Delta::default() };
        self.snapshots.store(Arc::new(held.apply(delta)));
        self.versions.send_replace(version);
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.clean();
        }
    }
}

/// Accepts on whichever of `listeners` has a connection.
pub(crate) fn accept(listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
    let until = Instant::now() + LIMIT;
    loop {
        for listener in listeners {
            if let Ok(accepted) = listener.accept() {
                return accepted;
            }
        }
        assert!(Instant::now() < until, "nobody connected");
        thread::sleep(Duration::from_millis(1));
    }
}

fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _busy = fs::remove_dir(dir);
}

fn lock(tag: &str) -> File {
    let file = File::create(std::env::temp_dir().join(format!("ferromesh-intercept-{tag}.lock"))).unwrap();
    let until = Instant::now() + 6 * LIMIT;
    while file.try_lock().is_err() {
        assert!(Instant::now() < until, "another run of this test does not end");
        thread::sleep(Duration::from_millis(50));
    }
    file
}

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}");
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").unwrap()
}

fn mount_of(kind: &str) -> Option<PathBuf> {
    mounts().lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[2] == kind).then(|| PathBuf::from(fields[1]))
    })
}

fn is_mounted(kind: &str, at: &str) -> bool {
    mounts().lines().any(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        fields[2] == kind && fields[1] == at
    })
}
