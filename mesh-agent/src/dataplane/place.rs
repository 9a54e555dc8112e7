//! One worker's place among the others. In: connections that were accepted, and clients that wait. Out: each is given to the
//! worker that has the least to do, and what is given to this one is carried.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::descriptors::Descriptors;
use super::fleet::{Busy, Fleet, Handed, Order, Port};
use crate::accept::{self, AcceptError, Accepted};
use crate::carrier::{Carrier, PodSlot, PodState};
use crate::intercept::Held;
use crate::observe::AcceptFailure;
use crate::{inbound, outbound};

/// Where connections are placed from, and carried; never leaves the worker's thread.
#[derive(Debug)]
pub(super) struct Place {
    index: usize,
    fleet: Arc<Fleet>,
    pub(super) carrier: Rc<Carrier>,
}

impl Place {
    pub(super) fn new(index: usize, fleet: Arc<Fleet>, carrier: Rc<Carrier>) -> Rc<Self> {
        Rc::new(Self { index, fleet, carrier })
    }

    pub(super) fn descriptors(&self) -> &Descriptors {
        &self.fleet.descriptors
    }

    /// Gives a socket to the least loaded worker.
    pub(super) fn put(self: &Rc<Self>, handed: Handed) {
        let index = self.fleet.choose(self.index);
        let busy = self.fleet.count(index);
        if index == self.index {
            return self.carry(handed, busy);
        }
        self.fleet.send(index, Order::Carry(handed, busy));
    }

    /// Carries a connection to its end.
    pub(super) fn carry(self: &Rc<Self>, handed: Handed, busy: Busy) {
        let Handed { stream, peer, port, pod, slot, handshaking } = handed;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return self.not_accepted(&AcceptError::Socket(error)),
        };
        let this = Rc::clone(self);
        spawn_local(async move {
            let (_busy, _slot) = (busy, slot);
            let net = Arc::clone(&pod.net);
            match port {
                Port::Outbound => match accept::outbound(stream, peer, net) {
                    Ok(accepted) => outbound::serve(&this.carrier, accepted, pod).await,
                    Err(error) => this.not_accepted(&error),
                },
                Port::Plain if net.host().is_some() => this.carry_to_unit(stream, peer, &pod).await,
                Port::Plain => match accept::inbound_plain(stream, peer, net) {
                    Ok(accepted) => inbound::serve_plain(&this.carrier, accepted, pod).await,
                    Err(error) => this.not_accepted(&error),
                },
                Port::Mtls => {
                    inbound::serve_mtls(Rc::clone(&this.carrier), (stream, peer), pod, handshaking).await
                }
            }
        });
    }

    /// A connection to one of a host's units.
    async fn carry_to_unit(&self, stream: TcpStream, peer: SocketAddr, place: &PodState) {
        let Some(host) = place.net.host() else { return accept::reset(stream) };
        let found = accept::inbound_on_host(&stream, host).and_then(|(uid, dst)| {
            let unit = self.carrier.neighbours.get(&uid);
            // It left just now.
            unit.map(|unit| (unit, dst)).ok_or(AcceptError::NotAnApplication { dst })
        });
        let (unit, orig_dst) = match found {
            Ok(found) => found,
            Err(error) => {
                accept::reset(stream);
                return self.not_accepted(&error);
            }
        };
        if unit.is_full() {
            self.carrier.ctx.metrics.accept_failed(AcceptFailure::PodLimit);
            return accept::reset(stream);
        }
        let _slot = unit.enter();
        let (client, pod) = (accept::canonical(peer), Arc::clone(&unit.net));
        let accepted = Accepted { io: stream, client, orig_dst, pod };
        inbound::serve_plain(&self.carrier, accepted, unit).await;
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

    /// Gives a waiting client to the least loaded worker.
    pub(super) fn put_held(self: &Rc<Self>, held: Held, pod: Arc<PodState>, slot: PodSlot) {
        let index = self.fleet.choose(self.index);
        let busy = self.fleet.count(index);
        if index == self.index {
            self.answer(held, pod, slot, busy);
        } else {
            self.fleet.send(index, Order::Answer(Box::new(held), pod, slot, busy));
        }
    }

    /// Answers a client that waits.
    pub(super) fn answer(self: &Rc<Self>, held: Held, pod: Arc<PodState>, slot: PodSlot, busy: Busy) {
        let this = Rc::clone(self);
        spawn_local(async move {
            let (_busy, _slot) = (busy, slot);
            outbound::answer(&this.carrier, held, pod).await;
        });
    }

    /// Dials plainly for a client that waits.
    pub(super) fn release(self: &Rc<Self>, held: Held, busy: Busy) {
        let this = Rc::clone(self);
        spawn_local(async move {
            let _busy = busy;
            outbound::release(&this.carrier, held).await;
        });
    }
}
