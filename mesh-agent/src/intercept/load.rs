//! Loads the kernel programs, pins or adopts their maps and links, and takes both down on request.
//!
//! In: the embedded objects and [`Config`]. Out: an [`Interceptor`], which outlives nothing: when it goes, the pins stay
//! and keep the pods closed until the next agent adopts them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, Program, SockOps,
};
use aya::{Ebpf, EbpfLoader};
use mesh_common::{
    GLOBAL_HAS_MPTCP, GLOBAL_HAS_SKB_NETNS, GLOBAL_HOLD_UNCLASSIFIED, GLOBAL_NODE_NETNS,
    GLOBAL_REFUSE_SOCKETS, GLOBAL_ROOT_LEVEL,
};
use mesh_core::model::WorkloadUid;
use parking_lot::Mutex;

use super::config::Config;
use super::host::Host;
use super::hub::{Answering, Hub};
use super::lookups::{lookup_object, lookups_dir};
use super::maps::{Maps, taken};
use super::object::{CGROUP_OBJECT, InterceptError, LOOKUP_OBJECT, pin, program};
use super::older::OlderSockets;
use super::problem::PodProblem;
use super::ring::HeldEvents;
use super::{cgroup, pins, probe};
use crate::sys::{self, NetNs, PinnedLink};

/// The socket-address hooks; each is the name of its program and of its link's pin.
const ADDRESS_HOOKS: [&str; 10] = [
    "on_connect4",
    "on_connect6",
    "on_getpeername4",
    "on_getpeername6",
    "on_getsockname4",
    "on_getsockname6",
    "on_bind4",
    "on_bind6",
    "on_sendmsg4",
    "on_sendmsg6",
];
const SOCK_CREATE_HOOK: &str = "on_sock_create";
const INGRESS_HOOK: &str = "on_ingress";
const SOCK_OPS_HOOK: &str = "on_sock_ops";
const EGRESS_HOOK: &str = "on_egress";

/// The loaded kernel side of this node.
#[derive(Debug)]
pub struct Interceptor {
    pub(super) config: Config,
    pub(super) maps: Arc<Maps>,
    /// The id of this agent's own cgroup, if that is below the pods' root.
    pub(super) agent_cgroup: Option<u64>,
    pub(super) hub: Arc<Hub>,
    pub(super) held_events: Mutex<Option<HeldEvents>>,
    pub(super) node_cookie: u64,
    /// Where the workloads are units: the network namespace that they share.
    pub(super) host: Option<Arc<Host>>,
    /// Then the cgroup that this agent itself is in.
    pub(super) agent_on_host: Option<u64>,
    pub(super) problems: Arc<Mutex<Vec<PodProblem>>>,
    /// Maps of another layout that begin anew.
    renewed_maps: Vec<String>,
    /// Links whose cgroup was gone.
    replaced_links: Vec<&'static str>,
    pub(super) older: Arc<OlderSockets>,
    pub(super) on_node_network: super::node_network::OnNodeNetwork,
    /// How many addresses without an endpoint the full map could not take, in all.
    pub(super) unserved_left_out: Arc<AtomicU64>,
}

impl Interceptor {
    /// Loads and attaches everything that is the node's, adopting what an earlier agent left pinned. Call it from a
    /// thread in the node's own network namespace.
    pub fn start(config: Config) -> Result<Self, InterceptError> {
        let config = config.where_carried();
        let mount = cgroup::mount()
            .map_err(InterceptError::io("reading /proc/self/mounts"))?
            .ok_or(InterceptError::NoCgroup2)?;
        if !cgroup::is_host_hierarchy(&mount).map_err(InterceptError::io("looking at cgroup v2"))? {
            return Err(InterceptError::PrivateCgroups);
        }
        let level = cgroup::level(&mount, &config.pods_root)
            .ok_or_else(|| InterceptError::NotACgroup(config.pods_root.clone()))?;
        prepare_pins(&config.pin_dir)?;
        let renewed_maps = pins::check(&config.pin_dir, &[CGROUP_OBJECT, LOOKUP_OBJECT])?;
        let netns = NetNs::current().map_err(InterceptError::io("opening the node's network namespace"))?;
        let agent_cgroup = cgroup::own_below(&config.pods_root)
            .map_err(InterceptError::io("looking at the agent's own cgroup"))?;
        let agent_on_host = if config.units { cgroup::own_below(&mount) } else { Ok(None) };
        let agent_on_host =
            agent_on_host.map_err(InterceptError::io("looking for the agent's own cgroup"))?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&config.pin_dir)
            .map_pin_path("SOCKETS", config.pin_dir.join("SOCKETS"))
            // aya has no handle for socket storage that it would accept here; only the programs use it.
            .allow_unsupported_maps()
            // Units are on the node's own network: there nobody is left alone for being on it.
            .override_global(GLOBAL_NODE_NETNS, &if config.units { 0 } else { netns.cookie }, true)
            .override_global(GLOBAL_ROOT_LEVEL, &level, true)
            .override_global(GLOBAL_REFUSE_SOCKETS, &u32::from(config.refuse_sockets), true)
            .override_global(GLOBAL_HOLD_UNCLASSIFIED, &config.hold(), true)
            .override_global(GLOBAL_HAS_SKB_NETNS, &u32::from(probe::has_skb_netns()), true)
            .override_global(GLOBAL_HAS_MPTCP, &u32::from(probe::has_mptcp()), true)
            .load(CGROUP_OBJECT)?;
        let maps = Maps::take(&mut object, &mut lookup_object(&config.pin_dir, 0, 0)?)?;
        if let Some(cgroup) = agent_cgroup {
            maps.agents.lock().insert(cgroup, 0, 0)?;
        }
        let ring = taken(&mut object, "HELD_EVENTS")?;
        let replaced_links = attach_all(&mut object, &config)?;
        let maps = Arc::new(maps);
        let hub = Hub::new(Arc::clone(&maps));
        Ok(Self {
            maps,
            held_events: Mutex::new(Some(HeldEvents::new(ring, Arc::clone(&hub)))),
            hub,
            agent_cgroup,
            node_cookie: netns.cookie,
            agent_on_host,
            host: config.units.then(|| Arc::new(Host::new(netns))),
            problems: Arc::new(Mutex::new(Vec::new())),
            renewed_maps,
            replaced_links,
            older: Arc::default(),
            on_node_network: Arc::default(),
            unserved_left_out: Arc::default(),
            config,
        })
    }

    /// How often each kernel program ended how, since the maps were made; and what the kernel could not be told.
    pub fn reasons(&self) -> Vec<(&'static str, u64)> {
        let mut reasons = self.maps.reasons();
        reasons.push(("pinned_map_renewed", self.renewed_maps.len() as u64));
        reasons.push(("pinned_link_replaced", self.replaced_links.len() as u64));
        reasons.push(("unserved_map_full", self.unserved_left_out.load(Ordering::Relaxed)));
        reasons
    }

    /// What of an earlier agent's pins could not be adopted, one text each.
    pub fn pin_problems(&self) -> Vec<String> {
        let maps = self.renewed_maps.iter().map(|name| {
            format!("the pinned map {name} had another layout: it began anew when this agent started")
        });
        let links = self.replaced_links.iter().map(|name| {
            format!(
                "the pinned link {name} had lost its cgroup: it was attached anew when this agent started"
            )
        });
        maps.chain(links).collect()
    }

    /// The kernel's id of the map of listeners; see [`super::Inherited::new`].
    pub fn listeners_map(&self) -> u32 {
        self.maps.listeners_id
    }

    /// Where the workloads are units: the host that they share.
    pub fn host(&self) -> Option<&Arc<Host>> {
        self.host.as_ref()
    }

    /// What this node lacks for interception, and the mend.
    pub fn probe() -> Vec<probe::Probe> {
        probe::probe()
    }

    /// Enrolled pods that are not intercepted now, and why.
    pub fn problems(&self) -> Vec<PodProblem> {
        self.problems.lock().clone()
    }

    /// What happens to held connections; given out once.
    pub fn held_events(&self) -> Option<HeldEvents> {
        self.held_events.lock().take()
    }

    /// The held connections that this agent is answering.
    pub fn answering(&self) -> Answering {
        self.hub.answering()
    }

    /// Pods that are on the node's own network.
    pub fn on_node_network(&self) -> Vec<WorkloadUid> {
        self.on_node_network.lock().iter().cloned().collect()
    }

    /// The connections of enrolled pods that go past the mesh because they are older.
    pub fn older_sockets(&self) -> Arc<OlderSockets> {
        Arc::clone(&self.older)
    }

    /// Removes every pin below `pin_dir`: the programs detach and the pods' connections are plain again. Sockets that
    /// are redirected now stay so until they close.
    pub fn uninstall(pin_dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(pin_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The folder of the node's links.
fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

fn prepare_pins(pin_dir: &Path) -> Result<(), InterceptError> {
    for dir in [links_dir(pin_dir), lookups_dir(pin_dir)] {
        fs::create_dir_all(&dir).map_err(InterceptError::io(format!("making {}", dir.display())))?;
    }
    if !probe::is_bpffs(pin_dir) {
        return Err(InterceptError::NotBpffs(pin_dir.to_owned()));
    }
    Ok(())
}

/// Attaches every hook; the names of those whose earlier link had lost its cgroup.
fn attach_all(object: &mut Ebpf, config: &Config) -> Result<Vec<&'static str>, InterceptError> {
    let root = fs::File::open(&config.pods_root)
        .map_err(InterceptError::io(format!("opening {}", config.pods_root.display())))?;
    let root_id = sys::cgroup_id(&config.pods_root)
        .map_err(InterceptError::io(format!("looking at {}", config.pods_root.display())))?;
    // All of them, before the first is put in place of an earlier agent's: what the verifier refuses changes nothing.
    for (_, program) in object.programs_mut() {
        match program {
            Program::SockOps(program) => program.load()?,
            Program::CgroupSockAddr(program) => program.load()?,
            Program::CgroupSock(program) => program.load()?,
            Program::CgroupSkb(program) => program.load()?,
            _ => {}
        }
    }
    let links = links_dir(&config.pin_dir);
    let mut replaced = Vec::new();
    // Adopts the link of an earlier agent, or attaches and pins a new one.
    macro_rules! attach {
        ($kind:ty, $name:expr $(, $attach_type:expr)?) => {{
            let program: &mut $kind = program(object, $name)?;
            let adopted = adopt(&links.join($name), root_id, program.fd()?.as_fd())?;
            if adopted != Adopted::Yes {
                let id = program.attach(&root, $($attach_type,)? CgroupAttachMode::Single)?;
                let link = program.take_link(id)?;
                pin(FdLink::try_from(link), &links.join($name))?;
            }
            replaced.extend((adopted == Adopted::Lost).then_some($name));
        }};
    }
    // First what answers for redirected sockets and what keeps others out, then what redirects.
    attach!(SockOps, SOCK_OPS_HOOK);
    attach!(CgroupSock, SOCK_CREATE_HOOK);
    attach!(CgroupSkb, INGRESS_HOOK, CgroupSkbAttachType::Ingress);
    attach!(CgroupSkb, EGRESS_HOOK, CgroupSkbAttachType::Egress);
    for name in ADDRESS_HOOKS.into_iter().rev() {
        attach!(CgroupSockAddr, name);
    }
    Ok(replaced)
}

/// What came of an earlier agent's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adopted {
    /// It has the new program.
    Yes,
    /// There was none.
    Absent,
    /// Its cgroup is gone, and with it all that it held.
    Lost,
}

/// Puts the new program into a link that an earlier agent pinned, if it is attached to the live cgroup.
fn adopt(
    path: &Path,
    cgroup_id: u64,
    program: std::os::fd::BorrowedFd<'_>,
) -> Result<Adopted, InterceptError> {
    let what = || InterceptError::io(format!("adopting the link {}", path.display()));
    let Some(link) = PinnedLink::open(path).map_err(what())? else { return Ok(Adopted::Absent) };
    if link.cgroup_id().map_err(what())? == cgroup_id {
        link.update(program).map_err(what())?;
        return Ok(Adopted::Yes);
    }
    tracing::warn!(link = %path.display(), "a pinned link is not attached to the pods' cgroup: it is replaced");
    fs::remove_file(path).map_err(what())?;
    Ok(Adopted::Lost)
}
