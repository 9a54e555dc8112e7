//! Whose connections are held, which of them are being answered, and by which of two agents while one takes over from the
//! other. In: keys, as the kernel's events and the map of held connections bring them. Out: a [`Held`] for each that this
//! agent has to answer.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use mesh_common::{HELD_MPTCP, OrigKey, PORT_HELD};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use super::held::Held;
use super::maps::{Maps, socket_addr};
use super::packet::Syn;
use super::waiting::{Name, State, Waiting, name};
use crate::sys::NetNs;

/// Bytes of a key in [`Answering`].
const KEY: usize = 8 + 16 + 2;

/// Connections that an agent is answering while its successor takes over: the successor leaves them to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answering(HashSet<Name>);

impl Answering {
    /// For the handover: 26 bytes a connection.
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = |(cookie, addr, port): &Name| {
            let mut bytes = cookie.to_be_bytes().to_vec();
            bytes.extend(addr);
            bytes.extend(port.to_be_bytes());
            bytes
        };
        self.0.iter().flat_map(key).collect()
    }

    /// What [`Self::to_bytes`] made; a rest that is no connection is none.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let key = |bytes: &[u8]| {
            let (cookie, rest) = bytes.split_first_chunk()?;
            let (addr, rest) = rest.split_first_chunk()?;
            let (port, _) = rest.split_first_chunk()?;
            Some((u64::from_be_bytes(*cookie), *addr, u16::from_be_bytes(*port)))
        };
        Self(bytes.chunks_exact(KEY).filter_map(key).collect())
    }
}

/// Who answers.
#[derive(Debug)]
enum Turn {
    /// The agent before this one, still.
    Others,
    /// This one, all but what the agent before has begun to answer.
    Own(Answering),
}

/// Whose connections are held, and which of them are being answered.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) maps: Arc<Maps>,
    turn: Mutex<Turn>,
    /// By cookie of the network namespace; on a host several are in one.
    pods: Mutex<HashMap<u64, Vec<Served>>>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Served {
    /// The pod's cgroup: a process that only entered the pod's namespace is none of the pod.
    cgroup_id: u64,
    netns: Arc<NetNs>,
    /// Whether the namespace is the pod's own.
    alone: bool,
    sender: mpsc::UnboundedSender<Held>,
}

impl Hub {
    pub(super) fn new(maps: Arc<Maps>) -> Arc<Self> {
        let turn = Mutex::new(Turn::Others);
        Arc::new(Self { maps, turn, pods: Mutex::default(), waiting: Arc::default() })
    }

    /// From now on this agent answers, all but what the agent before `answers`.
    pub(super) fn begin(&self, answers: Answering) {
        *self.turn.lock() = Turn::Own(answers);
    }

    /// What this agent is answering now.
    pub(super) fn answering(&self) -> Answering {
        Answering(self.waiting.lock().keys().copied().collect())
    }

    /// From now on the held connections of a pod come out of the receiver; those that wait already after [`Hub::offer`].
    pub(super) fn serve(
        self: &Arc<Self>,
        netns: &Arc<NetNs>,
        cgroup_id: u64,
    ) -> mpsc::UnboundedReceiver<Held> {
        self.enter(netns, cgroup_id, true)
    }

    /// [`Hub::serve`], where others are in the namespace as well.
    pub(super) fn serve_beside_others(
        self: &Arc<Self>,
        netns: &Arc<NetNs>,
        cgroup_id: u64,
    ) -> mpsc::UnboundedReceiver<Held> {
        self.enter(netns, cgroup_id, false)
    }

    fn enter(&self, netns: &Arc<NetNs>, cgroup_id: u64, alone: bool) -> mpsc::UnboundedReceiver<Held> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let served = Served { cgroup_id, netns: Arc::clone(netns), alone, sender };
        let mut pods = self.pods.lock();
        let there = pods.entry(netns.cookie).or_default();
        there.retain(|other| !alone && other.cgroup_id != cgroup_id);
        there.push(served);
        receiver
    }

    /// Hands out a connection that waits, unless it is being answered already; false when its pod is not served. In a pod's own
    /// namespace a process of another one waits.
    pub(super) fn offer(self: &Arc<Self>, key: OrigKey) -> bool {
        let cgroups = || self.maps.held(&key).map(|held| held.cgroups);
        let served = match self.pods.lock().get(&key.netns_cookie) {
            None => false,
            Some(there) => {
                cgroups().is_none_or(|ids| there.iter().any(|pod| pod.alone || ids.contains(&pod.cgroup_id)))
            }
        };
        if !served {
            return false;
        }
        if self.is_own(&key) && !self.waiting.lock().contains_key(&name(&key)) {
            self.hand_out(key);
        }
        true
    }

    /// A connection of a pod that turned out not to be enrolled; `None` when it is answered already, or gone.
    pub(super) fn release(self: &Arc<Self>, key: OrigKey, netns: &Arc<NetNs>) -> Option<Held> {
        if !self.is_own(&key) {
            return None;
        }
        let mut waiting = self.waiting.lock();
        if waiting.contains_key(&name(&key)) {
            return None;
        }
        let held = self.maps.held(&key)?;
        Some(self.note(&mut waiting, (key, held), netns))
    }

    /// The pod is no longer served.
    pub(super) fn leave(&self, netns_cookie: u64, cgroup_id: u64) {
        let mut pods = self.pods.lock();
        if let Some(there) = pods.get_mut(&netns_cookie) {
            there.retain(|pod| pod.cgroup_id != cgroup_id);
            if there.is_empty() {
                pods.remove(&netns_cookie);
            }
        }
    }

    /// Whether this agent answers a connection that did not ask (again).
    fn is_own(&self, key: &OrigKey) -> bool {
        match &*self.turn.lock() {
            Turn::Others => false,
            Turn::Own(others) => !others.0.contains(&name(key)),
        }
    }

    /// A client sent its SYN, for the first time or again.
    pub(super) fn syn(self: &Arc<Self>, key: OrigKey) {
        if let Turn::Own(others) = &mut *self.turn.lock() {
            // The agent before does not hear that it asks again, and so has nothing more to say.
            others.0.remove(&name(&key));
        }
        self.hand_out(key);
    }

    fn hand_out(self: &Arc<Self>, key: OrigKey) {
        let Some((held, sender)) = self.admit(key) else { return };
        if sender.send(held).is_err() {
            tracing::debug!(netns = key.netns_cookie, "nobody answers for this pod now");
        }
    }

    /// Notes a waiting client; `None` when it is noted already, gone, or nobody's.
    fn admit(self: &Arc<Self>, key: OrigKey) -> Option<(Held, mpsc::UnboundedSender<Held>)> {
        let mut waiting = self.waiting.lock();
        if let Some(state) = waiting.get(&name(&key)) {
            state.send_modify(|state| state.again += 1);
            return None;
        }
        let held = self.maps.held(&key)?;
        let pods = self.pods.lock();
        let there = pods.get(&key.netns_cookie)?;
        let Some(pod) = there.iter().find(|pod| held.cgroups.contains(&pod.cgroup_id)) else {
            tracing::debug!(netns = key.netns_cookie, "a connection is held of a process of another pod");
            return None;
        };
        let sender = pod.sender.clone();
        Some((self.note(&mut waiting, (key, held), &pod.netns), sender))
    }

    /// Begins to follow a waiting client.
    fn note(
        self: &Arc<Self>,
        waiting: &mut HashMap<Name, watch::Sender<State>>,
        (key, held): (OrigKey, mesh_common::Held),
        netns: &Arc<NetNs>,
    ) -> Held {
        let (sender, state) = watch::channel(State::default());
        waiting.insert(name(&key), sender);
        Held {
            dst: socket_addr(&held.dst),
            syn: syn(&key, &held),
            mptcp: held.flags & HELD_MPTCP != 0,
            netns: Arc::clone(netns),
            key,
            state,
            maps: Arc::clone(&self.maps),
            waiting: Arc::clone(&self.waiting),
        }
    }

    /// A client waits no longer.
    pub(super) fn gone(&self, key: &OrigKey) {
        self.waiting.gone(key);
    }
}

/// The SYN that a record of the kernel tells of.
pub(super) fn syn(key: &OrigKey, held: &mesh_common::Held) -> Syn {
    let agent = match Ipv6Addr::from(key.addr).to_canonical() {
        IpAddr::V4(token) => SocketAddr::new(token.into(), PORT_HELD),
        IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT_HELD),
    };
    Syn { client: socket_addr(&held.client), agent, isn: held.isn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_answered_survives_the_handover() {
        let names = [(7, mesh_common::mapped([127, 128, 0, 1]), 0), (9, [1; 16], 40_000)];
        let answering = Answering(names.into_iter().collect());
        let bytes = answering.to_bytes();
        assert_eq!(bytes.len(), 2 * KEY);
        assert_eq!(Answering::from_bytes(&bytes), answering);
        assert_eq!(Answering::from_bytes(&bytes[..KEY + 3]).0.len(), 1);
        assert_eq!(Answering::from_bytes(&[]), Answering::default());
    }
}
