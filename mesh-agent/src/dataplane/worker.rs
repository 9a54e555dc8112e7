//! One worker: a thread with a `current_thread` runtime, its dialler, its open connections; and the fleet of them, with
//! how much each has to do.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_core::model::WorkloadUid;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::Instant;

use super::accept_loop;
use super::accepting::Accepting;
use super::descriptors::Descriptors;
use crate::accept::{self, AcceptError};
use crate::carrier::{Carrier, Handshaking, PodSlot, PodState};
use crate::context::Context;
use crate::intercept::{Held, HeldEvents, PodListeners, PodNet};
use crate::observe::AcceptFailure;
use crate::{inbound, outbound, sys};

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
        (Arc::new(Self { members, descriptors: Descriptors::of_process() }), inboxes)
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

/// One worker's state; never leaves its thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) carrier: Rc<Carrier>,
    pub(super) fleet: Arc<Fleet>,
    accepting: RefCell<HashMap<WorkloadUid, Accepting>>,
    /// Hands out what the kernel holds.
    pub(super) following: RefCell<Option<AbortHandle>>,
}

/// Starts the thread of worker `index`.
pub(super) fn spawn(
    index: usize,
    ctx: Arc<Context>,
    fleet: Arc<Fleet>,
    inbox: UnboundedReceiver<Order>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let local = LocalSet::new();
        local.block_on(&runtime, async move {
            let worker = Rc::new(Worker::new(index, ctx, fleet));
            worker.carrier.follow_policy();
            worker.follow(inbox).await;
        });
    })
}

impl Worker {
    pub(super) fn new(index: usize, ctx: Arc<Context>, fleet: Arc<Fleet>) -> Self {
        Self {
            index,
            carrier: Carrier::new(ctx),
            fleet,
            accepting: RefCell::default(),
            following: RefCell::default(),
        }
    }

    async fn follow(self: Rc<Self>, mut inbox: UnboundedReceiver<Order>) {
        while let Some(order) = inbox.recv().await {
            match order {
                Order::Accept(pod, listeners) => self.accept(&pod, listeners),
                Order::StopAccepting(uid) => self.stop_accepting(&uid),
                Order::Lend(to) => self.lend(&to),
                Order::Carry(handed, busy) => self.carry(handed, busy),
                Order::Follow(events) => self.follow_held(*events),
                Order::Leave(left) => {
                    self.leave_held();
                    // Whoever asked may have given up.
                    let _unwanted = left.send(());
                }
                Order::Answer(held, pod, slot, busy) => self.answer(*held, pod, slot, busy),
                Order::Release(held, busy) => self.release(*held, busy),
                Order::CutPod(uid) => self.carrier.cut_pod(&uid),
                Order::Drain => {
                    let all: Vec<WorkloadUid> = self.accepting.borrow().keys().cloned().collect();
                    all.iter().for_each(|uid| self.stop_accepting(uid));
                    self.leave_held();
                    self.carrier.dialer.close_idle();
                }
                Order::CutAll => self.carrier.cut_all(),
                Order::Exit => return,
            }
        }
    }

    fn accept(self: &Rc<Self>, pod: &Arc<PodState>, listeners: PodListeners) {
        let PodListeners { outbound, inbound, mtls, held } = listeners;
        let ports: [(Port, Vec<TcpListener>); 3] =
            [(Port::Outbound, outbound), (Port::Plain, inbound), (Port::Mtls, mtls)];
        let mut accepting = Accepting { pod: Arc::clone(pod), listeners: Vec::new(), held: None };
        for (port, listeners) in ports {
            for listener in listeners {
                match sys::watch_listener(listener) {
                    Ok(listener) => {
                        let listener = Rc::new(listener);
                        let run =
                            accept_loop::run(Rc::clone(self), Arc::clone(pod), port, Rc::clone(&listener));
                        accepting.listeners.push((port, listener, spawn_local(run).abort_handle()));
                    }
                    Err(error) => {
                        tracing::error!(pod = %pod.net.uid, ?port, %error, "a listener cannot be watched; it stays closed");
                    }
                }
            }
        }
        if let Some(held) = held {
            let run = accept_loop::run_held(Rc::clone(self), Arc::clone(pod), held);
            accepting.held = Some(spawn_local(run).abort_handle());
        }
        if let Some(old) = self.accepting.borrow_mut().insert(pod.net.uid.clone(), accepting) {
            old.stop();
        }
    }

    fn stop_accepting(self: &Rc<Self>, uid: &WorkloadUid) {
        let Some(old) = self.accepting.borrow_mut().remove(uid) else { return };
        for (port, listener, _) in &old.listeners {
            accept_loop::take_the_rest(self, &old.pod, *port, listener);
        }
        old.stop();
    }

    fn lend(&self, to: &UnboundedSender<Lent>) {
        for Accepting { pod, listeners, .. } in self.accepting.borrow().values() {
            for (port, listener, _) in listeners {
                let copy = listener.as_fd().try_clone_to_owned().map(TcpListener::from);
                // Whoever asked may have given up.
                let _unwanted = to.send(Lent { pod: Arc::clone(&pod.net), port: *port, listener: copy });
            }
        }
    }

    pub(super) fn descriptors(&self) -> &Descriptors {
        &self.fleet.descriptors
    }

    /// Gives a socket to the least loaded worker.
    pub(super) fn place(self: &Rc<Self>, handed: Handed) {
        let index = self.fleet.choose(self.index);
        let busy = self.fleet.count(index);
        if index == self.index {
            return self.carry(handed, busy);
        }
        self.fleet.send(index, Order::Carry(handed, busy));
    }

    fn carry(self: &Rc<Self>, handed: Handed, busy: Busy) {
        let Handed { stream, peer, port, pod, slot, handshaking } = handed;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return self.not_accepted(&AcceptError::Socket(error)),
        };
        let worker = Rc::clone(self);
        spawn_local(async move {
            let (_busy, _slot) = (busy, slot);
            let net = Arc::clone(&pod.net);
            match port {
                Port::Outbound => match accept::outbound(stream, peer, net) {
                    Ok(accepted) => outbound::serve(&worker.carrier, accepted, pod).await,
                    Err(error) => worker.not_accepted(&error),
                },
                Port::Plain => match accept::inbound_plain(stream, peer, net) {
                    Ok(accepted) => inbound::serve_plain(&worker.carrier, accepted, pod).await,
                    Err(error) => worker.not_accepted(&error),
                },
                Port::Mtls => {
                    inbound::serve_mtls(Rc::clone(&worker.carrier), (stream, peer), pod, handshaking).await
                }
            }
        });
    }

    fn not_accepted(&self, error: &AcceptError) {
        let reason = match error {
            AcceptError::NoOriginalDestination { .. } => AcceptFailure::NoOriginalDestination,
            AcceptError::NotAnApplication { .. } => AcceptFailure::NotAnApplication,
            AcceptError::Socket(_) => AcceptFailure::Socket,
        };
        self.carrier.ctx.metrics.accept_failed(reason);
        tracing::info!(%error, "a socket was not accepted");
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
