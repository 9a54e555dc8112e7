//! Keeps the kernel in step with the snapshot. In: snapshots, and the pods' cgroups as they come and go. Out: `PODS`
//! entries, listeners, `sk_lookup` instances, and [`PodEvent`]s for the data plane.
//!
//! Order of enrolment: listeners, their slots, `sk_lookup`, the event, and the `PODS` entry last, so that no connection is
//! redirected to nobody and none slips by in plaintext. Un-enrolment goes the other way round. One thread of its own does
//! all of it: it enters namespaces and waits for the verifier.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_common::{LISTENERS_PER_POD, MAX_PODS, Pod};
use mesh_core::model::{ConnectMode, Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use tokio::sync::{mpsc, watch};

mod closed;
mod depart;
mod entry;
mod host;
mod listeners;
mod namespace;
mod orphans;
mod release;
mod tell;

use super::bound::Bound;
use super::config::Config;
use super::discover::{self, PodCgroup, Refusal, Scanned};
use super::exempt::Exempt;
use super::host::Host;
use super::hub::Hub;
use super::inherit::Inherited;
use super::listen;
use super::listening::Listening;
use super::load::Interceptor;
use super::lookups;
use super::node_network::NodeNetwork;
use super::older::OlderSockets;
use super::pod::{PodEvent, PodListeners, PodNet};
use super::problem::{EnrolError, PodProblem};
use super::running::{Holder, Running};
use super::steered::Steered;
use super::sweep::{self, Sweeper};
use super::udp::Udp;
use super::unserved::Unserved;
use crate::sys::NetNs;
use entry::{entry, interface, seconds};

/// How often the pods' cgroups are looked at.
const SCAN: Duration = Duration::from_millis(200);
/// How often the thread asks for a newer snapshot.
const TICK: Duration = Duration::from_millis(20);
/// How long what a pod began before it joined may go on: no kernel keeps a handshake longer (`tcp_synack_retries`: 63 s).
const JOINS_FOR: Duration = Duration::from_secs(64);

impl Interceptor {
    /// Starts to keep the kernel in step. Until a first snapshot (version above 0) is published, whatever an earlier
    /// agent enrolled stays closed.
    pub fn run(
        &self,
        snapshots: Arc<ArcSwap<Snapshot>>,
        versions: watch::Receiver<u64>,
        events: mpsc::Sender<PodEvent>,
    ) -> io::Result<Running> {
        self.run_after(None, snapshots, versions, events)
    }

    /// [`Interceptor::run`], with the listeners that the agent before handed over.
    pub fn run_after(
        &self,
        inherited: Option<Inherited>,
        snapshots: Arc<ArcSwap<Snapshot>>,
        versions: watch::Receiver<u64>,
        events: mpsc::Sender<PodEvent>,
    ) -> io::Result<Running> {
        if inherited.is_none() {
            self.maps.forget_agents(self.agent_cgroup);
        }
        let (stop, holder) = (Arc::new(AtomicBool::new(false)), Holder::default());
        // In another map the slots are empty.
        let same_map = inherited.as_ref().is_some_and(|i| i.listeners_map == self.maps.listeners_id);
        let mut sync = Sync {
            config: self.config.clone(),
            maps: Arc::clone(&self.maps),
            hub: Arc::clone(&self.hub),
            node_cookie: self.node_cookie,
            host: self.host.clone(),
            agent: self.agent_on_host,
            open: None,
            problems: Arc::clone(&self.problems),
            older: Arc::clone(&self.older),
            unserved_left_out: Arc::clone(&self.unserved_left_out),
            events,
            stop: Arc::clone(&stop),
            pods: HashMap::new(),
            orphans: HashMap::new(),
            exempt: Exempt::default(),
            bound: Bound::default(),
            node_network: NodeNetwork::new(Arc::clone(&self.on_node_network)),
            scan_error: None,
            pins_checked: false,
            takes_over: inherited.is_some(),
            inherited: inherited.unwrap_or_default(),
            same_map,
            holder: holder.clone(),
            classifies: false,
            listening: Listening::adopt(&self.maps),
            steered: Steered::adopt(&self.maps),
            udp: Udp::adopt(&self.maps, snapshots.load_full()),
        };
        let older = self.older.start(&snapshots, &stop)?;
        let thread = thread::Builder::new()
            .name("intercept".into())
            .spawn(move || sync.serve(&snapshots, versions))?;
        Ok(Running::new(stop, holder, vec![thread, older]))
    }
}

/// A pod that the kernel was told of.
#[derive(Debug)]
struct Local {
    cgroup: PodCgroup,
    index: u32,
    addresses: Vec<IpAddr>,
    /// Of a unit: the host's addresses.
    on_host: Option<Vec<IpAddr>>,
    /// How long the agent may be lost until the kernel lets the pod pass.
    opens_after: Option<Duration>,
    /// Index of the interface with its addresses; 0: not known.
    interface: u32,
    connect: ConnectMode,
    /// Whether the kernel knows on which ports applications listen.
    ports_known: bool,
    /// When it was enrolled, if it was known not to be before.
    joined: Option<Instant>,
    /// `Some` while it is enrolled.
    netns: Option<Arc<NetNs>>,
}

#[derive(Debug)]
struct Sync {
    config: Config,
    maps: Arc<super::maps::Maps>,
    hub: Arc<Hub>,
    node_cookie: u64,
    /// Where the workloads are units.
    host: Option<Arc<Host>>,
    /// Then the cgroup that this agent itself is in.
    agent: Option<u64>,
    /// What is open for all of them together.
    open: Option<host::Open>,
    problems: Arc<parking_lot::Mutex<Vec<PodProblem>>>,
    older: Arc<OlderSockets>,
    unserved_left_out: Arc<AtomicU64>,
    events: mpsc::Sender<PodEvent>,
    stop: Arc<AtomicBool>,
    pods: HashMap<WorkloadUid, Local>,
    /// Entries of an earlier agent (by cgroup id) that no pod has claimed yet: they stay closed.
    orphans: HashMap<u64, Pod>,
    exempt: Exempt,
    bound: Bound,
    node_network: NodeNetwork,
    scan_error: Option<io::ErrorKind>,
    pins_checked: bool,
    /// Another agent runs and gives way: its records are still to be taken.
    takes_over: bool,
    inherited: Inherited,
    /// The slots have the inherited listeners already.
    same_map: bool,
    holder: Holder,
    /// Every cgroup of this node has been looked at once.
    classifies: bool,
    listening: Listening,
    steered: Steered,
    udp: Udp,
}

impl Sync {
    fn serve(&mut self, snapshots: &ArcSwap<Snapshot>, mut versions: watch::Receiver<u64>) {
        if !self.takes_over {
            sweep::clear(&self.maps, None);
        }
        self.orphans = self.maps.pods.lock().iter().filter_map(Result::ok).collect();
        let mut sweeper = Sweeper::new();
        let mut unserved = Unserved::adopt(&self.maps, Arc::clone(&self.unserved_left_out));
        let mut scan_due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) && !self.events.is_closed() {
            let now = Instant::now();
            self.beat();
            // A closed channel means that the control plane ended: the cgroups are followed all the same.
            let pauses = self.holder.pauses();
            let newer = versions.has_changed().unwrap_or(false);
            if !pauses && (newer || now >= scan_due) {
                versions.mark_unchanged();
                scan_due = now + SCAN;
                let snapshot = snapshots.load_full();
                if snapshot.version == 0 {
                    self.release_exempt();
                } else {
                    unserved.follow(&snapshot);
                    self.udp.follow(&snapshot);
                    self.reconcile(&snapshot);
                }
                sweeper.tick(&self.maps, now);
            }
            thread::sleep(TICK);
        }
    }

    fn reconcile(&mut self, snapshot: &Snapshot) {
        let scanned = match self.config.scan() {
            Ok(scanned) => scanned,
            Err(error) => {
                // Nothing is known of any pod now: all stays as it is.
                if self.scan_error.replace(error.kind()) != Some(error.kind()) {
                    tracing::error!(root = %self.config.pods_root.display(), %error, "cannot read the pods' cgroups");
                }
                return;
            }
        };
        self.scan_error = None;
        self.bound.renew();
        let local: HashMap<&WorkloadUid, &Workload> = snapshot
            .workloads()
            .filter(|workload| workload.node == self.config.node)
            .map(|workload| (&workload.uid, workload.as_ref()))
            .collect();
        self.depart(&local);
        self.older.retain(|uid| local.get(uid).is_some_and(|workload| workload.enrolled));
        let mut problems = Vec::new();
        for workload in local.values() {
            // Each may wait for the verifier.
            self.beat();
            if let Err(error) = self.arrive(workload, &scanned) {
                problems.push(PodProblem::new(workload, &error));
            }
        }
        self.follow_host();
        self.release_orphans(&local, &scanned);
        self.note_node_network(&scanned);
        self.inherited.retain(|uid| local.get(uid).is_some_and(|workload| workload.enrolled));
        let orphans = self.orphans.values().map(|pod| pod.netns_cookie).collect();
        let own = self.pods.values().filter(|pod| pod.on_host.is_none());
        let namespaces = own.filter_map(|pod| pod.netns.as_ref()).cloned().collect();
        self.listening.look_again(&self.maps, namespaces, orphans);
        problems.extend(self.udp.problems());
        self.publish(problems);
        self.release(&local, &scanned);
        self.classifies = true;
        self.holder.settle();
    }

    /// Gives a sign of life. On a host not before everybody's own services are known: they would wait for it.
    fn beat(&self) {
        if self.classifies || self.host.is_none() {
            self.maps.beat();
        }
    }

    /// Enrols a pod, or records that it is not to be.
    fn arrive(&mut self, workload: &Workload, scanned: &Scanned) -> Result<(), EnrolError> {
        let known = self.pods.get_mut(&workload.uid);
        if let Some(pod) = known.filter(|pod| pod.netns.is_some() == workload.enrolled) {
            let connect = self.config.connect.of(workload.connect);
            let joined = pod.joined.filter(|at| at.elapsed() < JOINS_FOR);
            if (pod.opens_after, pod.connect, pod.joined) != (workload.opens_after(), connect, joined) {
                (pod.opens_after, pod.connect, pod.joined) = (workload.opens_after(), connect, joined);
                self.maps.pods.lock().insert(pod.cgroup.id, entry(pod), 0)?;
                if let Some(host) = &self.host {
                    host.waits(&workload.uid, seconds(pod.opens_after));
                }
            }
            return Ok(());
        }
        let known = self.pods.get(&workload.uid);
        let Some(cgroup) = scanned.get(&workload.uid).cloned() else {
            return if workload.enrolled { Err(Refusal::NoCgroup.into()) } else { Ok(()) };
        };
        let orphan = self.orphans.get(&cgroup.id).filter(|pod| orphans::has_place(pod)).map(|pod| pod.index);
        let index =
            known.map(|pod| pod.index).or(orphan).or_else(|| self.free_index()).ok_or(EnrolError::TooMany)?;
        let mut pod = Local {
            cgroup: cgroup.clone(),
            index,
            addresses: workload.addresses.clone(),
            on_host: self.host.as_ref().map(|host| host::own_addresses(host)),
            opens_after: workload.opens_after(),
            interface: 0,
            connect: self.config.connect.of(workload.connect),
            ports_known: false,
            joined: known.map(|_| Instant::now()),
            netns: None,
        };
        if workload.enrolled {
            let netns = match self.host.clone() {
                Some(host) => {
                    host::fit(&host, &cgroup, pod.connect)?;
                    Arc::clone(&host.netns)
                }
                None => Arc::new(self.namespace(workload, &cgroup, scanned)?),
            };
            self.older.watch(workload, cgroup.clone(), &netns, self.agent);
            if self.host.is_none() {
                pod.interface = interface(&netns, workload);
                pod.ports_known = self.listening.look_first(&self.maps, &netns);
            }
            self.udp.arrive(index, workload);
            if let Err(error) = self.enrol(workload, &pod, &netns) {
                self.keep_closed(&workload.uid, pod, netns, &error);
                return Err(error);
            }
            pod.netns = Some(netns);
        } else {
            self.maps.pods.lock().insert(cgroup.id, entry(&pod), 0)?;
            if orphan.is_some() {
                self.dismantle(cgroup.id, index);
            }
        }
        self.orphans.remove(&cgroup.id);
        self.pods.insert(workload.uid.clone(), pod);
        Ok(())
    }

    fn enrol(&mut self, workload: &Workload, pod: &Local, netns: &Arc<NetNs>) -> Result<(), EnrolError> {
        match self.host.clone() {
            Some(host) => self.enrol_unit(&host, workload, pod)?,
            None => self.enrol_pod(workload, pod, netns)?,
        }
        let enrolled = Local {
            netns: Some(Arc::clone(netns)),
            cgroup: pod.cgroup.clone(),
            addresses: workload.addresses.clone(),
            on_host: pod.on_host.clone(),
            ..*pod
        };
        let written = self.maps.pods.lock().insert(pod.cgroup.id, entry(&enrolled), 0);
        if let Err(error) = written {
            self.dismantle(pod.cgroup.id, pod.index);
            self.send(PodEvent::Down { uid: workload.uid.clone(), gone: false })?;
            return Err(error.into());
        }
        tracing::info!(pod = %workload.uid, name = %workload.name, index = pod.index, "enrolled");
        Ok(())
    }

    /// Serves a pod in a network namespace of its own.
    fn enrol_pod(&mut self, workload: &Workload, pod: &Local, netns: &Arc<NetNs>) -> Result<(), EnrolError> {
        let sockets = self.listeners(workload, pod, netns)?;
        lookups::attach_lookup(&self.config, pod.cgroup.id, pod.index, netns)?;
        let net = PodNet::new(
            workload.uid.clone(),
            workload.addresses.clone(),
            Arc::clone(netns),
            Arc::clone(&self.maps),
        );
        let mut listeners = sockets.into_listeners();
        listeners.held = Some(self.hub.serve(netns, pod.cgroup.id));
        // Stopping: what is attached stays pinned with empty slots, which is closed.
        self.send(PodEvent::Up(Arc::new(net), listeners))
    }

    fn free_index(&self) -> Option<u32> {
        let used: HashSet<u32> = self
            .pods
            .values()
            .map(|pod| pod.index)
            .chain(self.orphans.values().map(|pod| pod.index))
            .chain(self.open.as_ref().map(|open| open.index))
            .collect();
        (0..MAX_PODS).find(|index| !used.contains(index))
    }
}
