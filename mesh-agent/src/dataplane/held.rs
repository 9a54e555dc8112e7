//! Clients that wait in `connect()`: from the kernel's events and the pods' queues to the worker that answers them.

use std::rc::Rc;
use std::sync::Arc;

use tokio::task::{AbortHandle, spawn_local};

use super::worker::{Busy, Fleet, Order, Worker};
use crate::carrier::{PodSlot, PodState};
use crate::intercept::{Held, HeldEvents};
use crate::outbound;

impl Fleet {
    /// Gives a client whose pod is not enrolled to the least loaded worker.
    pub(super) fn release(&self, held: Box<Held>) {
        let index = self.choose(0);
        let busy = self.count(index);
        self.send(index, Order::Release(held, busy));
    }
}

impl Worker {
    /// Hands out the connections that the kernel holds, until the agent drains.
    pub(super) fn follow_held(&self, events: HeldEvents) {
        let follow = spawn_local(async move {
            if let Err(error) = events.follow().await {
                tracing::error!(%error, "the kernel's events cannot be followed: held connections wait for the next scan");
            }
        });
        *self.following.borrow_mut() = Some(follow.abort_handle());
    }

    /// What is held from now on is the next agent's to answer.
    pub(super) fn leave_held(&self) {
        self.following.take().iter().for_each(AbortHandle::abort);
    }

    /// Gives a waiting client to the least loaded worker.
    pub(super) fn place_held(self: &Rc<Self>, held: Held, pod: Arc<PodState>, slot: PodSlot) {
        let index = self.fleet.choose(self.index);
        let busy = self.fleet.count(index);
        if index == self.index {
            self.answer(held, pod, slot, busy);
        } else {
            self.fleet.send(index, Order::Answer(Box::new(held), pod, slot, busy));
        }
    }

    pub(super) fn answer(self: &Rc<Self>, held: Held, pod: Arc<PodState>, slot: PodSlot, busy: Busy) {
        let worker = Rc::clone(self);
        spawn_local(async move {
            let (_busy, _slot) = (busy, slot);
            outbound::answer(&worker.carrier, held, pod).await;
        });
    }

    pub(super) fn release(self: &Rc<Self>, held: Held, busy: Busy) {
        let worker = Rc::clone(self);
        spawn_local(async move {
            let _busy = busy;
            outbound::release(&worker.carrier, held).await;
        });
    }
}
