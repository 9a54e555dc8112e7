//! The data plane: worker threads, the pods that they serve, and draining. [`PodEvent`]s come in; connections are
//! carried until [`Dataplane::drain`].
//!
//! Each pod's listeners are accepted on one worker; an accepted socket goes to the least loaded one, where it lives and
//! dies.

mod accept_loop;
mod accepting;
mod descriptors;
mod fleet;
mod lend;
mod place;
mod worker;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_core::model::WorkloadUid;
use tokio::sync::{mpsc, oneshot};

use crate::carrier::{Caps, PodState};
use crate::context::Context;
use crate::intercept::{HeldEvents, PodEvent, PodListeners, PodNet};

use fleet::{Fleet, Order};
pub use lend::{LendError, Lender};

/// How long workers get to write what was cut off before their threads end.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// Why the data plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread, or no runtime on it.
    #[error("starting worker {index}: {source}")]
    Worker {
        /// Which.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The running data plane.
#[derive(Debug)]
pub struct Dataplane {
    fleet: Arc<Fleet>,
    threads: Vec<JoinHandle<()>>,
    stop: oneshot::Sender<()>,
    dispatcher: tokio::task::JoinHandle<()>,
}

impl Dataplane {
    /// Starts the workers and serves the pods that `events` brings. Call it within the control plane's runtime.
    pub fn start(ctx: Arc<Context>, events: mpsc::Receiver<PodEvent>) -> Result<Self, StartError> {
        let count = match ctx.config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let (fleet, inboxes) = Fleet::new(count);
        let mut threads = Vec::with_capacity(count);
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let thread = worker::spawn(index, Arc::clone(&ctx), Arc::clone(&fleet), inbox);
            threads.push(thread.map_err(|source| StartError::Worker { index, source })?);
        }
        let (stop, stopped) = oneshot::channel();
        let most = Caps {
            connections: ctx.config.connections_per_pod.min(fleet.descriptors.fair_share()),
            handshakes: ctx.config.handshakes_per_pod,
            dials_per_second: ctx.config.dials_per_second,
        };
        let pods = Pods { fleet: Arc::clone(&fleet), most, known: HashMap::new() };
        let dispatcher = tokio::spawn(pods.follow(events, stopped));
        Ok(Self { fleet, threads, stop, dispatcher })
    }

    /// Hands out the connections that the kernel holds, to the pods that are served.
    pub fn follow_held(&self, events: HeldEvents) {
        self.fleet.send(0, Order::Follow(Box::new(events)));
    }

    /// Hands out no more of them: when it returns, another agent may. What was handed out is answered all the same.
    pub async fn leave_held(&self) {
        let (to, left) = oneshot::channel();
        self.fleet.send(0, Order::Leave(to));
        if left.await.is_err() {
            tracing::error!("the worker that follows held connections has ended");
        }
    }

    /// Connections that are open now, tunnels without one included.
    pub fn open(&self) -> usize {
        self.fleet.open()
    }

    /// Gives copies of the listeners to a successor.
    pub fn lender(&self) -> Lender {
        Lender::new(Arc::clone(&self.fleet))
    }

    /// Stops accepting, waits for the open connections up to `limit`, ends the rest, and returns when all have ended.
    pub async fn drain(self, limit: Duration) {
        if self.stop.send(()).is_err() {
            tracing::warn!("the pods' dispatcher had ended before the drain");
        }
        if let Err(error) = self.dispatcher.await {
            tracing::error!(%error, "the pods' dispatcher failed");
        }
        self.fleet.order(|| Order::Drain);
        if !self.fleet.wait_idle(limit).await {
            tracing::info!(open = self.fleet.open(), "the drain time is over: open connections are ended");
        }
        self.fleet.order(|| Order::CutAll);
        if !self.fleet.wait_idle(CUT_GRACE).await {
            tracing::warn!(open = self.fleet.open(), "connections that did not end are dropped");
        }
        self.fleet.order(|| Order::Exit);
        let joined = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        match joined.await {
            Ok(0) => {}
            Ok(failed) => tracing::error!(failed, "worker threads had failed"),
            Err(error) => tracing::error!(%error, "waiting for the workers failed"),
        }
    }
}

/// The pods that are served.
struct Pods {
    fleet: Arc<Fleet>,
    most: Caps,
    /// Pods that were seen and are not gone, with the worker that accepts for them.
    known: HashMap<WorkloadUid, (Arc<PodState>, usize)>,
}

impl Pods {
    async fn follow(mut self, mut events: mpsc::Receiver<PodEvent>, mut stopped: oneshot::Receiver<()>) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                _ = &mut stopped => break,
            };
            match event {
                Some(PodEvent::Up(net, listeners)) => self.up(net, listeners),
                Some(PodEvent::Down { uid, gone }) => self.down(&uid, gone),
                Some(PodEvent::Plain(held)) => self.fleet.release(held),
                None => {
                    // The interceptor has ended; what runs goes on until the drain.
                    if stopped.await.is_err() {
                        tracing::debug!("the data plane was dropped without a drain");
                    }
                    break;
                }
            }
        }
        for (pod, _) in self.known.values() {
            pod.begin_drain();
        }
    }

    fn up(&mut self, net: Arc<PodNet>, listeners: PodListeners) {
        let uid = net.uid.clone();
        // An agent that missed the Down of an earlier namespace must not accept for both.
        if self.known.contains_key(&uid) {
            self.down(&uid, false);
        }
        let index = self.least_pods();
        let pod = Arc::new(PodState::new(net, self.most));
        if pod.net.host().is_some() {
            self.fleet.neighbours.enter(&pod);
        }
        self.known.insert(uid, (Arc::clone(&pod), index));
        self.fleet.send(index, Order::Accept(pod, listeners));
    }

    fn down(&mut self, uid: &WorkloadUid, gone: bool) {
        if let Some((pod, index)) = self.known.get(uid) {
            if gone {
                pod.mark_gone();
            }
            pod.begin_drain();
            self.fleet.neighbours.leave(uid);
            self.fleet.send(*index, Order::StopAccepting(uid.clone()));
        }
        if gone {
            // Its connections may be on any worker, and may be older than its last enrolment.
            self.fleet.order(|| Order::CutPod(uid.clone()));
            self.known.remove(uid);
        }
    }

    fn least_pods(&self) -> usize {
        let mut pods = vec![0_usize; self.fleet.len()];
        for (_, index) in self.known.values() {
            if let Some(count) = pods.get_mut(*index) {
                *count += 1;
            }
        }
        pods.iter().enumerate().min_by_key(|(_, count)| **count).map_or(0, |(index, _)| index)
    }
}

#[cfg(test)]
#[path = "dataplane/tests.rs"]
mod tests;
