//! One worker: a thread with a `current_thread` runtime. In: orders. Out: it accepts for its pods, hands out what the kernel holds,
//! and ends what it is told to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mesh_core::model::WorkloadUid;
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::{AbortHandle, spawn_local};

use super::accept_loop;
use super::accepting::Accepting;
use super::fleet::{Fleet, Lent, Order, Port};
use super::place::Place;
use crate::carrier::{Carrier, PodState};
use crate::context::Context;
use crate::intercept::{HeldEvents, PodListeners};
use crate::sys;

/// One worker's state; never leaves its thread.
#[derive(Debug)]
struct Worker {
    place: Rc<Place>,
    accepting: RefCell<HashMap<WorkloadUid, Accepting>>,
    /// Hands out what the kernel holds.
    following: RefCell<Option<AbortHandle>>,
}

/// Starts the thread of worker `index`.
pub(super) fn spawn(
    index: usize,
    ctx: Arc<Context>,
    fleet: Arc<Fleet>,
    inbox: UnboundedReceiver<Order>,
) -> io::Result<JoinHandle<()>> {
    let (made, outcome) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let built =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let (runtime, told) = match built {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Who started the thread waits for this.
        let _heard = made.send(told);
        let Some(runtime) = runtime else { return };
        runtime.block_on(async move {
            let worker = Rc::new(Worker::new(index, ctx, fleet));
            worker.place.carrier.follow_policy();
            worker.follow(inbox).await;
        });
    })?;
    outcome.recv().map_err(io::Error::other)??;
    Ok(thread)
}

impl Worker {
    fn new(index: usize, ctx: Arc<Context>, fleet: Arc<Fleet>) -> Self {
        let carrier = Carrier::new(ctx, Arc::clone(&fleet.neighbours));
        let place = Place::new(index, fleet, carrier);
        Self { place, accepting: RefCell::default(), following: RefCell::default() }
    }

    async fn follow(self: Rc<Self>, mut inbox: UnboundedReceiver<Order>) {
        while let Some(order) = inbox.recv().await {
            match order {
                Order::Accept(pod, listeners) => self.accept(&pod, listeners),
                Order::StopAccepting(uid) => self.stop_accepting(&uid),
                Order::Lend(to) => self.lend(&to),
                Order::Carry(handed, busy) => self.place.carry(handed, busy),
                Order::Follow(events) => self.follow_held(*events),
                Order::Leave(left) => {
                    self.leave_held();
                    // Whoever asked may have given up.
                    let _unwanted = left.send(());
                }
                Order::Answer(held, pod, slot, busy) => self.place.answer(*held, pod, slot, busy),
                Order::Release(held, busy) => self.place.release(*held, busy),
                Order::CutPod(uid) => self.place.carrier.cut_pod(&uid),
                Order::Drain => {
                    let all: Vec<WorkloadUid> = self.accepting.borrow().keys().cloned().collect();
                    all.iter().for_each(|uid| self.stop_accepting(uid));
                    self.leave_held();
                    self.place.carrier.dialer.close_idle();
                }
                Order::CutAll => self.place.carrier.cut_all(),
                Order::Exit => return,
            }
        }
    }

    fn accept(&self, pod: &Arc<PodState>, listeners: PodListeners) {
        let PodListeners { outbound, inbound, mtls, held } = listeners;
        let ports: [(Port, Vec<TcpListener>); 3] =
            [(Port::Outbound, outbound), (Port::Plain, inbound), (Port::Mtls, mtls)];
        let mut accepting = Accepting { pod: Arc::clone(pod), listeners: Vec::new(), held: None };
        for (port, listeners) in ports {
            for listener in listeners {
                match sys::watch_listener(listener) {
                    Ok(listener) => {
                        let listener = Rc::new(listener);
                        let run = accept_loop::run(
                            Rc::clone(&self.place),
                            Arc::clone(pod),
                            port,
                            Rc::clone(&listener),
                        );
                        accepting.listeners.push((port, listener, spawn_local(run).abort_handle()));
                    }
                    Err(error) => {
                        tracing::error!(pod = %pod.net.uid, ?port, %error, "a listener cannot be watched; it stays closed");
                    }
                }
            }
        }
        if let Some(held) = held {
            let run = accept_loop::run_held(Rc::clone(&self.place), Arc::clone(pod), held);
            accepting.held = Some(spawn_local(run).abort_handle());
        }
        if let Some(old) = self.accepting.borrow_mut().insert(pod.net.uid.clone(), accepting) {
            old.stop();
        }
    }

    fn stop_accepting(&self, uid: &WorkloadUid) {
        let Some(old) = self.accepting.borrow_mut().remove(uid) else { return };
        for (port, listener, _) in &old.listeners {
            accept_loop::take_the_rest(&self.place, &old.pod, *port, listener);
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

    /// Hands out the connections that the kernel holds, until the agent drains.
    fn follow_held(&self, events: HeldEvents) {
        let follow = spawn_local(async move {
            if let Err(error) = events.follow().await {
                tracing::error!(%error, "the kernel's events cannot be followed: held connections wait for the next scan");
            }
        });
        *self.following.borrow_mut() = Some(follow.abort_handle());
    }

    /// What is held from now on is the next agent's to answer.
    fn leave_held(&self) {
        self.following.take().iter().for_each(AbortHandle::abort);
    }
}
