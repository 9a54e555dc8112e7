//! All workers: what each is told, and how much each has to do. In: connections and pods. Out: orders to the worker that has the
//! least.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::model::WorkloadUid;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::descriptors::Descriptors;
use crate::carrier::{Handshaking, Neighbours, PodSlot, PodState};
use crate::intercept::{Held, HeldEvents, PodListeners, PodNet};

/// A socket stays on the worker that accepted it unless another one has fewer by more than this.
const SLACK: usize = 1;
/// How often a drain looks whether all has ended.
const IDLE_POLL: Duration = Duration::from_millis(20);

/// Which of the agent's ports in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// 15001.
    Outbound,
    /// 15006.
    Plain,
    /// 15008.
    Mtls,
}

/// An accepted socket, not bound to a runtime yet.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) stream: std::net::TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) port: Port,
    pub(super) pod: Arc<PodState>,
    pub(super) slot: PodSlot,
    /// On 15008, until the client has proven who it is.
    pub(super) handshaking: Option<Handshaking>,
}

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Accept on a pod's listeners.
    Accept(Arc<PodState>, PodListeners),
    /// Close a pod's listeners.
    StopAccepting(WorkloadUid),
    /// Carry a connection that another worker accepted; it is counted already.
    Carry(Handed, Busy),
    /// Give a copy of each listener, and go on accepting.
    Lend(UnboundedSender<Lent>),
    /// Hand out the connections that the kernel holds, as their pods' tasks take them.
    Follow(Box<HeldEvents>),
    /// Hand them out no more, and say when that is so.
    Leave(oneshot::Sender<()>),
    /// Answer a client that waits; it is counted already.
    Answer(Box<Held>, Arc<PodState>, PodSlot, Busy),
    /// Dial plainly for a client whose pod is not enrolled; it is counted already.
    Release(Box<Held>, Busy),
    /// End the connections and close the idle tunnels of a pod that is gone.
    CutPod(WorkloadUid),
    /// Close all listeners and idle tunnels.
    Drain,
    /// End every connection.
    CutAll,
    /// End the thread; what still runs is dropped.
    Exit,
}

/// A copy of one of a pod's listeners: the same socket of the kernel.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) pod: Arc<PodNet>,
    pub(super) port: Port,
    pub(super) listener: io::Result<TcpListener>,
}

/// All workers.
#[derive(Debug)]
pub(super) struct Fleet {
    members: Vec<(UnboundedSender<Order>, Arc<AtomicUsize>)>,
    pub(super) descriptors: Descriptors,
    /// The units that are served, where the workloads are units.
    pub(super) neighbours: Arc<Neighbours>,
}

/// Counts a socket as a worker's.
#[derive(Debug)]
pub(super) struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fleet {
    pub(super) fn new(count: usize) -> (Arc<Self>, Vec<UnboundedReceiver<Order>>) {
        let (members, inboxes) = (0..count)
            .map(|_| {
                let (sender, inbox) = unbounded_channel();
                ((sender, Arc::default()), inbox)
            })
            .unzip();
        (
            Arc::new(Self { members, descriptors: Descriptors::of_process(), neighbours: Arc::default() }),
            inboxes,
        )
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn open(&self) -> usize {
        self.members.iter().map(|(_, load)| load.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn send(&self, index: usize, order: Order) {
        let sent = self.members.get(index).map(|(sender, _)| sender.send(order));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!(worker = index, "a worker has ended");
        }
    }

    pub(super) fn order(&self, order: impl Fn() -> Order) {
        for index in 0..self.members.len() {
            self.send(index, order());
        }
    }

    /// Gives a client whose pod is not enrolled to the least loaded worker.
    pub(super) fn release(&self, held: Box<Held>) {
        let index = self.choose(0);
        let busy = self.count(index);
        self.send(index, Order::Release(held, busy));
    }

    /// Waits until nothing is open; false when that took longer than `limit`.
    pub(super) async fn wait_idle(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.open() > 0 {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(IDLE_POLL).await;
        }
        true
    }

    /// The worker that takes a socket which `local` accepted.
    pub(super) fn choose(&self, local: usize) -> usize {
        let load = |index: usize| match self.members.get(index) {
            Some((_, load)) => load.load(Ordering::Relaxed),
            None => usize::MAX,
        };
        let least = (0..self.members.len()).min_by_key(|index| load(*index)).unwrap_or(local);
        if load(local) > load(least).saturating_add(SLACK) { least } else { local }
    }

    pub(super) fn count(&self, index: usize) -> Busy {
        let load = self.members.get(index).map(|(_, load)| Arc::clone(load)).unwrap_or_default();
        load.fetch_add(1, Ordering::Relaxed);
        Busy(load)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_stays_where_it_was_accepted_while_loads_are_close_and_else_goes_to_the_idlest() {
        let (fleet, _inboxes) = Fleet::new(3);
        assert_eq!(fleet.choose(1), 1);
        let first = fleet.count(1);
        assert_eq!(fleet.choose(1), 1, "one more is close");
        let _second = fleet.count(1);
        assert_eq!(fleet.choose(1), 0);
        let _third = fleet.count(0);
        assert_eq!(fleet.choose(1), 2);
        drop(first);
        assert_eq!(fleet.choose(1), 1);
        assert_eq!(fleet.open(), 2);
    }
}
