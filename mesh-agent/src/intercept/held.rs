//! Connections whose SYN the kernel holds until the agent answers. In: the kernel's ring of events. Out: a [`Held`] for
//! each, to the pod that it belongs to, and the four answers that it may be given.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::{HELD_GONE, HELD_SYN, HeldEvent, OrigKey, PORT_HELD};
use parking_lot::Mutex;
use socket2::SockAddr;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

use super::maps::{Maps, socket_addr};
use super::packet::{self, Missing, Syn};
use crate::sys::{self, NetNs};

/// How often a waiting client is looked up, in case that the event of its end was lost.
const LOOK: Duration = Duration::from_secs(5);
/// How often connecting back is tried again where the pair of addresses is still in TIME_WAIT.
const TIME_WAIT_TRIES: u32 = 30;
const TIME_WAIT_PAUSE: Duration = Duration::from_millis(50);

/// How a client is told that it was not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// RST: ECONNREFUSED.
    Refused,
    /// ICMP: ENETUNREACH or EHOSTUNREACH.
    Unreachable(Missing),
    /// Nothing, as from a black hole: ETIMEDOUT when the client's own patience ends.
    Silence,
}

/// What happened to a waiting client.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How often its SYN was sent again.
    again: u32,
    gone: bool,
}

type Name = (u64, mesh_common::Addr, u16);

fn name(key: &OrigKey) -> Name {
    (key.netns_cookie, key.addr, key.port)
}

/// Whose connections are held, and which of them are being answered.
#[derive(Debug)]
pub(super) struct Hub {
    maps: Arc<Maps>,
    /// By cookie of the network namespace.
    pods: Mutex<HashMap<u64, Served>>,
    waiting: Mutex<HashMap<Name, watch::Sender<State>>>,
}

#[derive(Debug)]
struct Served {
    /// The pod's cgroup: a process that only entered the pod's namespace is none of the pod.
    cgroup_id: u64,
    netns: Arc<NetNs>,
    sender: mpsc::UnboundedSender<Held>,
}

impl Hub {
    pub(super) fn new(maps: Arc<Maps>) -> Arc<Self> {
        Arc::new(Self { maps, pods: Mutex::default(), waiting: Mutex::default() })
    }

    /// From now on the held connections of a pod come out of the receiver; those that wait already after [`Hub::offer`].
    pub(super) fn serve(
        self: &Arc<Self>,
        netns: &Arc<NetNs>,
        cgroup_id: u64,
    ) -> mpsc::UnboundedReceiver<Held> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let served = Served { cgroup_id, netns: Arc::clone(netns), sender };
        self.pods.lock().insert(netns.cookie, served);
        receiver
    }

    /// Hands out a connection that waits, unless it is being answered already; false when its pod is not served.
    pub(super) fn offer(self: &Arc<Self>, key: OrigKey) -> bool {
        if !self.pods.lock().contains_key(&key.netns_cookie) {
            return false;
        }
        if !self.waiting.lock().contains_key(&name(&key)) {
            self.syn(key);
        }
        true
    }

    /// A connection of a pod that turned out not to be enrolled; `None` when it is answered already, or gone.
    pub(super) fn release(self: &Arc<Self>, key: OrigKey, netns: &Arc<NetNs>) -> Option<Held> {
        let mut waiting = self.waiting.lock();
        if waiting.contains_key(&name(&key)) {
            return None;
        }
        let held = self.maps.held(&key)?;
        Some(self.note(&mut waiting, (key, held), netns))
    }

    /// The pod is no longer served.
    pub(super) fn leave(&self, netns_cookie: u64) {
        self.pods.lock().remove(&netns_cookie);
    }

    fn syn(self: &Arc<Self>, key: OrigKey) {
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
        let pod = pods.get(&key.netns_cookie)?;
        if !held.cgroups.contains(&pod.cgroup_id) {
            tracing::debug!(netns = key.netns_cookie, "a connection is held of a process of another pod");
            return None;
        }
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
        let client = socket_addr(&held.client);
        let local = match Ipv6Addr::from(key.addr).to_canonical() {
            IpAddr::V4(token) => SocketAddr::new(token.into(), PORT_HELD),
            IpAddr::V6(_) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), PORT_HELD),
        };
        let (sender, state) = watch::channel(State::default());
        waiting.insert(name(&key), sender);
        Held {
            dst: socket_addr(&held.dst),
            syn: Syn { client, agent: local, isn: held.isn },
            netns: Arc::clone(netns),
            key,
            state,
            hub: Arc::clone(self),
        }
    }

    fn gone(&self, key: &OrigKey) {
        if let Some(state) = self.waiting.lock().remove(&name(key)) {
            state.send_modify(|state| state.gone = true);
        }
    }
}

impl super::Interceptor {
    /// What happens to held connections; given out once.
    pub fn held_events(&self) -> Option<HeldEvents> {
        self.held_events.lock().take()
    }
}

/// The kernel's events; one task of the agent follows them.
pub struct HeldEvents {
    ring: RingBuf<MapData>,
    hub: Arc<Hub>,
}

impl std::fmt::Debug for HeldEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldEvents").finish_non_exhaustive()
    }
}

impl HeldEvents {
    pub(super) fn new(ring: RingBuf<MapData>, hub: Arc<Hub>) -> Self {
        Self { ring, hub }
    }

    /// Hands out every connection that is held, for ever. Call it within a runtime.
    pub async fn follow(self) -> io::Result<()> {
        let Self { ring, hub } = self;
        let mut ring = sys::watch_ring(ring)?;
        loop {
            let mut ready = ring.readable_mut().await?;
            let events = ready.get_inner_mut();
            while let Some(event) = events.next() {
                match read(&event) {
                    Some(HeldEvent { key, kind: HELD_SYN, .. }) => hub.syn(key),
                    Some(HeldEvent { key, kind: HELD_GONE, .. }) => hub.gone(&key),
                    _ => tracing::warn!(length = event.len(), "an event that this agent does not know"),
                }
            }
            ready.clear_ready();
        }
    }
}

/// Reads an event by its layout: an older or newer kernel program may have written it.
fn read(bytes: &[u8]) -> Option<HeldEvent> {
    if bytes.len() != size_of::<HeldEvent>() {
        return None;
    }
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (addr, rest) = rest.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let (kind, _) = rest.get(6..)?.split_first_chunk()?;
    let key = OrigKey {
        netns_cookie: u64::from_ne_bytes(*cookie),
        addr: *addr,
        port: u16::from_ne_bytes(*port),
        pad: [0; 3],
    };
    Some(HeldEvent { key, kind: u32::from_ne_bytes(*kind), pad: 0 })
}

/// A client that waits in `connect()` for the agent's answer. Dropped without one, its next SYN asks anew.
#[derive(Debug)]
pub struct Held {
    /// What it dialled.
    pub dst: SocketAddr,
    syn: Syn,
    netns: Arc<NetNs>,
    key: OrigKey,
    state: watch::Receiver<State>,
    hub: Arc<Hub>,
}

impl Held {
    /// Where its connection comes from.
    pub fn client(&self) -> SocketAddr {
        self.syn.client
    }

    /// Dials what it dialled, plainly, in its own namespace.
    pub async fn dial(&self) -> io::Result<TcpStream> {
        let socket = self.netns.tcp_socket(self.dst.ip().to_canonical().is_ipv6())?;
        sys::face_application(&socket)?;
        let to = SocketAddr::new(self.dst.ip().to_canonical(), self.dst.port());
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }

    /// Connects back, a TCP simultaneous open: `connect()` succeeds. An error when the client waits no longer.
    pub async fn connected(&self) -> io::Result<TcpStream> {
        let mut tries = 0;
        loop {
            let socket = self.netns.tcp_socket(self.syn.client.is_ipv6())?;
            // The answers to other clients have the same address and port (IPv6), or the port (IPv4).
            socket.set_reuse_address(true)?;
            socket.bind(&self.syn.agent.into())?;
            sys::face_application(&socket)?;
            match TcpSocket::from_std_stream(socket.into()).connect(self.syn.client).await {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && tries < TIME_WAIT_TRIES => {
                    tries += 1;
                    tokio::time::sleep(TIME_WAIT_PAUSE).await;
                }
                connected => return connected,
            }
        }
    }

    /// Ends the client's `connect()`, unless the answer is silence.
    pub fn answer(&self, answer: Answer) -> io::Result<()> {
        let packet = match answer {
            Answer::Refused => packet::refused(&self.syn),
            Answer::Unreachable(missing) => packet::unreachable(&self.syn, missing),
            Answer::Silence => return Ok(()),
        };
        let socket = self.netns.raw_socket(self.syn.client.is_ipv6())?;
        let to = SockAddr::from(SocketAddr::new(self.syn.client.ip(), 0));
        socket.send_to(&packet, &to).map(drop)
    }

    /// Resolves when the client waits no longer, whatever it was told.
    pub async fn gone(&self) {
        let mut state = self.state.clone();
        loop {
            match tokio::time::timeout(LOOK, state.wait_for(|state| state.gone)).await {
                Ok(_) => return,
                Err(_) if self.hub.maps.held(&self.key).is_none() => return,
                Err(_) => {}
            }
        }
    }

    /// Waits until the client asks again (its kernel sent the SYN once more); false when it is gone first.
    pub async fn asks_again(&mut self) -> bool {
        let mut state = self.state.clone();
        let seen = self.state.borrow_and_update().again;
        tokio::select! {
            () = self.gone() => false,
            changed = state.wait_for(|state| state.gone || state.again != seen) => {
                changed.is_ok_and(|state| !state.gone)
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.hub.waiting.lock().remove(&name(&self.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_by_its_layout() {
        let mut bytes = vec![0; size_of::<HeldEvent>()];
        bytes[0] = 7;
        bytes[8..24].copy_from_slice(&mesh_common::mapped([127, 128, 0, 1]));
        bytes[24..26].copy_from_slice(&99_u16.to_ne_bytes());
        bytes[32..36].copy_from_slice(&HELD_GONE.to_ne_bytes());
        let event = read(&bytes).unwrap();
        assert_eq!((event.key.netns_cookie, event.key.port, event.kind), (7_u64.to_le(), 99, HELD_GONE));
        assert_eq!(event.key.addr, mesh_common::mapped([127, 128, 0, 1]));
        assert!(read(&bytes[1..]).is_none());
    }
}
