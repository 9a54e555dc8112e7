//! A connection whose SYN the kernel holds until the agent answers. In: the SYN, and what becomes of its client. Out: the four
//! answers that it may be given.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::OrigKey;
use socket2::SockAddr;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::connect::connect;
use super::maps::Maps;
use super::packet::{self, Missing, Syn};
use super::waiting::{State, Waiting};
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
    pub(super) maps: Arc<Maps>,
    pub(super) waiting: Arc<Waiting>,
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
                    if self.maps.held(&self.key).is_none() {
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
                Err(_) if self.maps.held(&self.key).is_none() => return,
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
        self.waiting.forget(&self.key);
    }
}
