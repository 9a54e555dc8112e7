//! Sockets that are older than their pod's enrolment (or than the agent): no hook has seen them, so they go past the
//! mesh. In: pods as they are enrolled, and the snapshot. Out: a list for status and metrics; those on a port that is
//! strict are closed after a grace period. A `connect()` that has no answer yet will never get one, for the kernel drops
//! its SYN from now on: it is ended soon, so that its application tries again and goes through the mesh.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_common::{CLIENT_TOKEN_MASK, CLIENT_TOKEN_PREFIX, ORIG_TOKEN_MASK, ORIG_TOKEN_PREFIX};
use mesh_core::model::{MtlsMode, Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use parking_lot::Mutex;

use super::diag::{self, DiagSocket};
use super::discover::{self, PodCgroup};
use crate::sys::NetNs;

/// What a strict pod's older sockets have left to end by themselves.
const GRACE: Duration = Duration::from_secs(10);
/// How long a pod is looked at in any case: handshakes that were under way at its enrolment end meanwhile.
const EARLY: Duration = Duration::from_secs(10);
/// How often, meanwhile, and how often after that a pod that still has such sockets.
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(5);
/// How often the thread looks whether something is due.
const TICK: Duration = Duration::from_millis(200);

/// A connection that goes past the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderSocket {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// When it will be closed; `None`: its port is permissive, it is only shown.
    pub closes_at: Option<Instant>,
}

/// The older sockets of this node's enrolled pods.
#[derive(Debug, Default)]
pub struct OlderSockets {
    pods: Mutex<HashMap<WorkloadUid, Watched>>,
    closed: AtomicU64,
}

#[derive(Debug)]
struct Watched {
    pod: Arc<Place>,
    early_until: Instant,
    /// `None`: it has none, and will not get any.
    due: Option<Instant>,
    /// By cookie.
    held: HashMap<u64, OlderSocket>,
}

#[derive(Debug)]
struct Place {
    netns: Arc<NetNs>,
    cgroup: PodCgroup,
    addresses: Vec<IpAddr>,
    /// On a host: the cgroup that the agent's own ends of connections are made in.
    agent: Option<u64>,
}

impl OlderSockets {
    /// Those of a pod.
    pub fn of(&self, pod: &WorkloadUid) -> Vec<OlderSocket> {
        let pods = self.pods.lock();
        let mut held: Vec<_> = pods.get(pod).into_iter().flat_map(|w| w.held.values().cloned()).collect();
        held.sort_by_key(|socket| (socket.local, socket.remote));
        held
    }

    /// How many there are now, and how many have been closed since the agent started.
    pub fn counts(&self) -> (u64, u64) {
        let now: usize = self.pods.lock().values().map(|watched| watched.held.len()).sum();
        (now as u64, self.closed.load(Ordering::Relaxed))
    }

    /// A pod is about to be enrolled: what is connected past the agent now, or by a handshake that is under way, is older.
    pub(super) fn watch(
        &self,
        workload: &Workload,
        cgroup: PodCgroup,
        netns: &Arc<NetNs>,
        agent: Option<u64>,
    ) {
        let (now, addresses) = (Instant::now(), workload.addresses.clone());
        let mut pods = self.pods.lock();
        let known = pods.get(&workload.uid).map(|watched| &watched.pod);
        if known.is_some_and(|pod| pod.netns.cookie == netns.cookie && pod.addresses == addresses) {
            return;
        }
        let pod = Arc::new(Place { netns: Arc::clone(netns), cgroup, addresses, agent });
        let watched = Watched { pod, early_until: now + EARLY, due: Some(now), held: HashMap::new() };
        pods.insert(workload.uid.clone(), watched);
    }

    /// Forgets the pods that are not enrolled any more.
    pub(super) fn retain(&self, enrolled: impl Fn(&WorkloadUid) -> bool) {
        self.pods.lock().retain(|uid, _| enrolled(uid));
    }

    /// Looks after them on a thread of its own, until `stop` is set.
    pub(super) fn start(
        self: &Arc<Self>,
        snapshots: &Arc<ArcSwap<Snapshot>>,
        stop: &Arc<AtomicBool>,
    ) -> io::Result<JoinHandle<()>> {
        let (this, snapshots, stop) = (Arc::clone(self), Arc::clone(snapshots), Arc::clone(stop));
        thread::Builder::new().name("older-sockets".into()).spawn(move || this.follow(&snapshots, &stop))
    }

    fn follow(&self, snapshots: &ArcSwap<Snapshot>, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.look(&snapshots.load(), Instant::now());
            thread::sleep(TICK);
        }
    }

    fn look(&self, snapshot: &Snapshot, now: Instant) {
        let due: Vec<_> = self
            .pods
            .lock()
            .iter()
            .filter(|(_, watched)| watched.due.is_some_and(|due| due <= now))
            .map(|(uid, watched)| (uid.clone(), Arc::clone(&watched.pod)))
            .collect();
        for (uid, pod) in due {
            // The lock is not held while the kernel is asked.
            let found = match pod.past_the_mesh() {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(pod = %uid, %error, "listing the pod's sockets");
                    continue;
                }
            };
            let strict = |port| snapshot.workload(&uid).is_some_and(|w| w.mtls.of(port) == MtlsMode::Strict);
            let doomed = match self.pods.lock().get_mut(&uid) {
                Some(watched) if Arc::ptr_eq(&watched.pod, &pod) => watched.note(&uid, &found, strict, now),
                _ => continue,
            };
            for socket in found.iter().filter(|socket| doomed.contains(&socket.cookie)) {
                match diag::destroy(&pod.netns, socket) {
                    Ok(()) => {
                        self.closed.fetch_add(1, Ordering::Relaxed);
                        let why =
                            if socket.connecting { "it has no answer yet" } else { "the port is strict" };
                        tracing::info!(pod = %uid, local = %socket.local, remote = %socket.remote, why,
                            "closed a connection that is older than the pod's enrolment");
                    }
                    Err(error) => {
                        tracing::error!(pod = %uid, local = %socket.local, remote = %socket.remote, %error,
                            "a connection that is older than the pod's enrolment cannot be closed");
                    }
                }
            }
        }
    }
}

impl Watched {
    /// Takes over what was found, and says which sockets have had their grace.
    fn note(
        &mut self,
        uid: &WorkloadUid,
        found: &[DiagSocket],
        strict: impl Fn(u16) -> bool,
        now: Instant,
    ) -> HashSet<u64> {
        let before = std::mem::take(&mut self.held);
        // At the first look the pod may not be enrolled yet, and the answer on its way.
        let unanswered = |socket: &&DiagSocket| socket.connecting && before.contains_key(&socket.cookie);
        let mut over: HashSet<u64> = found.iter().filter(unanswered).map(|socket| socket.cookie).collect();
        for socket in found {
            let known = before.get(&socket.cookie);
            if known.is_none() {
                tracing::info!(pod = %uid, local = %socket.local, remote = %socket.remote,
                    "a connection is older than the pod's enrolment and goes past the mesh");
            }
            let closes_at = strict(socket.local.port())
                .then(|| known.and_then(|known| known.closes_at).unwrap_or(now + GRACE));
            let (local, remote) = (socket.local, socket.remote);
            self.held.insert(socket.cookie, OlderSocket { local, remote, closes_at });
        }
        let ending = self.held.values().any(|socket| socket.closes_at.is_some());
        self.due = match () {
            () if now < self.early_until || ending => Some(now + OFTEN),
            () if !self.held.is_empty() => Some(now + SELDOM),
            () => None,
        };
        let due = |socket: &OlderSocket| socket.closes_at.is_some_and(|at| at <= now);
        over.extend(self.held.iter().filter(|(_, socket)| due(socket)).map(|(cookie, _)| *cookie));
        over
    }
}

impl Place {
    /// The connections of the pod's processes that neither the agent carries nor the mesh leaves alone. The agent's own
    /// sockets in the namespace were made in another cgroup.
    fn past_the_mesh(&self) -> io::Result<Vec<DiagSocket>> {
        let cgroups = discover::ids_below(&self.cgroup)?;
        let mut found = diag::connected(&self.netns)?;
        let carried: HashSet<(SocketAddr, SocketAddr)> = match self.agent {
            Some(agent) => {
                let its = found.iter().filter(|socket| socket.cgroup == Some(agent));
                its.map(|socket| (socket.remote, socket.local)).collect()
            }
            None => HashSet::new(),
        };
        found.retain(|socket| {
            let past = match self.agent {
                // Loopback is no less than anything else.
                Some(_) => {
                    let agents =
                        carried.contains(&(socket.local, socket.remote)) || is_token(socket.remote.ip());
                    !agents && !is_link_local(socket.remote.ip())
                }
                None => self.is_redirected(socket.remote.ip()),
            };
            past && socket.cgroup.is_some_and(|id| cgroups.contains(&id))
        });
        Ok(found)
    }

    /// Whether a connection to this address would be the agent's today.
    fn is_redirected(&self, remote: IpAddr) -> bool {
        !is_link_local(remote)
            && !remote.is_loopback()
            && !remote.is_unspecified()
            && !self.addresses.contains(&remote)
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether it is one of the loopback addresses that the agent speaks from.
fn is_token(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let bits = u32::from(v4);
            bits & !CLIENT_TOKEN_MASK == CLIENT_TOKEN_PREFIX || bits & !ORIG_TOKEN_MASK == ORIG_TOKEN_PREFIX
        }
        IpAddr::V6(_) => false,
    }
}
