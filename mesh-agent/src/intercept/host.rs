//! A host's own network namespace, which its systemd units share. In: the units that are enrolled, each by its cgroup. Out: whose
//! a port is, and whose socket took a connection: asked of the kernel, by the cgroup that the socket was made in.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::model::WorkloadUid;
use parking_lot::Mutex;

use super::diag::{self, DiagSocket};
use super::discover::{self, PodCgroup};
use super::steered::Listens;
use crate::sys::NetNs;

/// How often a connection that was dialled is looked for at its other end: the last segment of its handshake may be on its way.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// How many cgroups are remembered: those that are gone among them.
const MOST_KNOWN: usize = 4096;

/// The network namespace that the agent itself is in, with the units that it enrolled there.
#[derive(Debug)]
pub struct Host {
    pub(super) netns: Arc<NetNs>,
    units: Mutex<Units>,
}

#[derive(Debug, Default)]
struct Units {
    enrolled: HashMap<WorkloadUid, Unit>,
    /// Whose a cgroup is, as far as it was looked up; `None`: nobody's who is enrolled. No id is given twice, and none moves to
    /// another parent.
    known: HashMap<u64, Option<WorkloadUid>>,
}

#[derive(Debug)]
struct Unit {
    cgroup: PodCgroup,
    /// For how many seconds of a lost agent it stays closed; 0: for ever.
    lost_after: u32,
}

/// Who listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An enrolled unit alone.
    Unit(WorkloadUid),
    /// Somebody who is not enrolled.
    Other,
    /// Several at once: whom a connection would reach cannot be said.
    Several,
    /// Nobody.
    Nobody,
}

impl Host {
    pub(super) fn new(netns: NetNs) -> Self {
        Self { netns: Arc::new(netns), units: Mutex::default() }
    }

    /// What is an enrolled unit's from now on.
    pub(super) fn enter(&self, uid: &WorkloadUid, cgroup: &PodCgroup, lost_after: u32) {
        let mut units = self.units.lock();
        // What was nobody's may be this unit's.
        units.known.clear();
        units.enrolled.insert(uid.clone(), Unit { cgroup: cgroup.clone(), lost_after });
    }

    /// The unit is not enrolled any more.
    pub(super) fn leave(&self, uid: &WorkloadUid) {
        let mut units = self.units.lock();
        units.enrolled.remove(uid);
        units.known.clear();
    }

    /// Whether no unit is enrolled.
    pub(super) fn is_empty(&self) -> bool {
        self.units.lock().enrolled.is_empty()
    }

    /// Whether a connection to `address` stays on this host.
    pub fn is_local(&self, address: IpAddr) -> io::Result<bool> {
        let address = address.to_canonical();
        Ok(address.is_loopback() || self.netns.addresses()?.contains(&address))
    }

    /// The address that a connection from this host to `to` comes from.
    pub fn source(&self, to: IpAddr) -> io::Result<IpAddr> {
        self.netns.source(to)
    }

    /// Who listens where a connection to `at` would arrive.
    pub fn owner(&self, at: SocketAddr) -> io::Result<Owner> {
        let (port, at) = (at.port(), at.ip().to_canonical());
        let mut listening = diag::listeners(&self.netns)?;
        listening.retain(|socket| socket.local.port() == port);
        // As the kernel prefers them: of the very address, of any of the family, of any at all.
        let rank = |socket: &DiagSocket| match socket.local.ip() {
            own if own == at => Some(0),
            own if own.is_unspecified() && own.is_ipv4() == at.is_ipv4() => Some(1),
            _ if is_for_both(socket) => Some(2),
            _ => None,
        };
        let best = listening.iter().filter_map(rank).min();
        let first = listening.iter().filter(|socket| best.is_some() && rank(socket) == best);
        let owners = first.map(|socket| self.unit_of(socket)).collect::<io::Result<HashSet<_>>>()?;
        let mut owners = owners.into_iter();
        Ok(match (owners.next(), owners.next()) {
            (None, _) => Owner::Nobody,
            (Some(_), Some(_)) => Owner::Several,
            (Some(Some(unit)), None) => Owner::Unit(unit),
            (Some(None), None) => Owner::Other,
        })
    }

    /// Whose socket took the connection from `from` (the agent's own end) to `at`; `None`: nobody's who is enrolled. An error
    /// where there is no such socket.
    pub async fn taker(&self, at: SocketAddr, from: SocketAddr) -> io::Result<Option<WorkloadUid>> {
        for _ in 0..LOOKS {
            if let Some(socket) = diag::find(&self.netns, at, from)? {
                return self.unit_of(&socket);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        Err(io::Error::other("nobody has the other end of what was dialled"))
    }

    /// Its owner would wait so long for a lost agent now.
    pub(super) fn waits(&self, uid: &WorkloadUid, lost_after: u32) {
        if let Some(unit) = self.units.lock().enrolled.get_mut(uid) {
            unit.lost_after = lost_after;
        }
    }

    /// Where enrolled units listen.
    pub(super) fn listens(&self) -> io::Result<Listens> {
        let mut found = Listens::new();
        for socket in diag::listeners(&self.netns)? {
            let Some(uid) = self.unit_of(&socket)? else { continue };
            let lost_after = self.units.lock().enrolled.get(&uid).map_or(0, |unit| unit.lost_after);
            let every = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), socket.local.port());
            for at in [Some(socket.local), is_for_both(&socket).then_some(every)].into_iter().flatten() {
                // Of two that share it, the one that is closed for longer counts.
                let held = found.entry(at).or_insert(lost_after);
                *held = if lost_after == 0 || *held == 0 { 0 } else { lost_after.max(*held) };
            }
        }
        Ok(found)
    }

    /// The enrolled unit that a socket was made in.
    fn unit_of(&self, socket: &DiagSocket) -> io::Result<Option<WorkloadUid>> {
        let Some(id) = socket.cgroup else { return Ok(None) };
        let mut units = self.units.lock();
        if let Some(unit) = units.known.get(&id) {
            return Ok(unit.clone());
        }
        // A unit may make cgroups below its own at any time.
        let mut found = None;
        for (uid, unit) in &units.enrolled {
            match discover::ids_below(&unit.cgroup) {
                Ok(below) if below.contains(&id) => found = Some(uid.clone()),
                // A unit that has ended has no socket left.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        if units.known.len() >= MOST_KNOWN {
            units.known.clear();
        }
        units.known.insert(id, found.clone());
        Ok(found)
    }
}

/// Whether a socket listens on every address of both families.
fn is_for_both(socket: &DiagSocket) -> bool {
    socket.local.ip().is_unspecified() && socket.local.is_ipv6() && !socket.v6only
}
