//! Connections whose SYN the kernel holds until the agent answers. In: the kernel's ring of events. Out: a [`Held`] for
//! each, to the pod that it belongs to, and the four answers that it may be given.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Map, RingBuf};
use mesh_common::{HELD_GONE, HELD_SYN, HeldEvent, OrigKey};
use socket2::SockAddr;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::connect::connect;
use super::hub::{Answering, Hub, State};
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

/// The kernel's events; one task of one agent follows them.
pub struct HeldEvents {
    ring: Map,
    hub: Arc<Hub>,
    theirs: Answering,
}

impl std::fmt::Debug for HeldEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldEvents").finish_non_exhaustive()
    }
}

impl HeldEvents {
    pub(super) fn new(ring: Map, hub: Arc<Hub>) -> Self {
        Self { ring, hub, theirs: Answering::default() }
    }

    /// After another agent, which still answers `theirs` and follows no more.
    #[must_use]
    pub fn after(self, theirs: Answering) -> Self {
        Self { theirs, ..self }
    }

    /// Hands out every connection that is held, for ever. Call it within a runtime.
    pub async fn follow(self) -> io::Result<()> {
        let Self { ring, hub, theirs } = self;
        // Not before: how far the ring was read is looked at when it is opened.
        let ring = RingBuf::try_from(ring).map_err(io::Error::other)?;
        let mut ring = sys::watch_ring(ring)?;
        hub.begin(theirs);
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
pub(super) fn read(bytes: &[u8]) -> Option<HeldEvent> {
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
    pub(super) syn: Syn,
    pub(super) mptcp: bool,
    pub(super) netns: Arc<NetNs>,
    pub(super) key: OrigKey,
    pub(super) state: watch::Receiver<State>,
    pub(super) hub: Arc<Hub>,
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
        connect(socket, to).await
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
            match connect(socket, self.syn.client).await {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable && tries < TIME_WAIT_TRIES => {
                    if self.hub.maps.held(&self.key).is_none() {
                        // Another agent was faster.
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    tries += 1;
                    tokio::time::sleep(TIME_WAIT_PAUSE).await;
                }
                Ok(stream) if self.mptcp => {
                    // The parent of a subflow that a simultaneous open established hears of it with the next packet.
                    sys::probe_peer(&stream)?;
                    return Ok(stream);
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
        self.hub.drop_held(&self.key);
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
