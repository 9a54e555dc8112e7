//! Accepts on one of a pod's listeners until it is stopped. No error ends the loop: what a client or a shortage of
//! resources causes is counted, and answered with a pause where trying at once would only spin.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::UnboundedReceiver;

use super::descriptors::Left;
use super::fleet::{Handed, Port};
use super::place::Place;
use crate::carrier::PodState;
use crate::intercept::Held;
use crate::observe::AcceptFailure;
use crate::sys;

/// The pauses after a failure that does not pass at once: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a pod at its limit is looked at again.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// A pod with fewer connections than this may use the reserve of descriptors.
const FEW: usize = 32;

/// Accepts for ever; stop it by aborting its task.
pub(super) async fn run(
    place: Rc<Place>,
    pod: Arc<PodState>,
    port: Port,
    listener: Rc<AsyncFd<TcpListener>>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        wait_for_room(&place, &pod, port).await;
        match listener.async_io(Interest::READABLE, accept).await {
            Ok(accepted) => {
                pause = FIRST_PAUSE;
                carry(&place, &pod, port, accepted);
            }
            Err(error) if is_passing(&error) => {
                place.carrier.ctx.metrics.accept_failed(AcceptFailure::Aborted);
                tokio::task::yield_now().await;
            }
            Err(error) => {
                place.carrier.ctx.metrics.accept_failed(AcceptFailure::Exhausted);
                tracing::warn!(pod = %pod.net.uid, ?port, %error, "accept failed; trying again after a pause");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Takes what waits at a listener that is about to close: its clients are connected already. What a limit leaves is counted.
pub(super) fn take_the_rest(
    place: &Rc<Place>,
    pod: &Arc<PodState>,
    port: Port,
    listener: &AsyncFd<TcpListener>,
) {
    loop {
        let reason = match accept(listener.get_ref()) {
            Ok((stream, peer)) => match held_back(place, pod, port) {
                None => {
                    carry(place, pod, port, (stream, peer));
                    continue;
                }
                // As its listener's close would.
                Some(limit) => {
                    if let Err(error) = sys::reset_on_close(&stream) {
                        tracing::debug!(%error, "the client sees FIN instead of RST");
                    }
                    limit
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if is_passing(&error) => AcceptFailure::Aborted,
            Err(error) => {
                place.carrier.ctx.metrics.accept_failed(AcceptFailure::Exhausted);
                tracing::warn!(pod = %pod.net.uid, ?port, %error, "what waits at a listener that closes is reset");
                return;
            }
        };
        place.carrier.ctx.metrics.accept_failed(reason);
    }
}

fn carry(place: &Rc<Place>, pod: &Arc<PodState>, port: Port, (stream, peer): (TcpStream, SocketAddr)) {
    let slot = pod.enter();
    let handshaking = (port == Port::Mtls).then(|| pod.handshaking());
    place.descriptors().grant();
    place.put(Handed { stream, peer, port, pod: Arc::clone(pod), slot, handshaking });
}

/// Takes one connection. No runtime knows it yet: the worker that will carry it is chosen first.
fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((stream.into(), peer))
}

/// Takes a pod's waiting clients for ever.
pub(super) async fn run_held(place: Rc<Place>, pod: Arc<PodState>, mut held: UnboundedReceiver<Held>) {
    while let Some(next) = held.recv().await {
        wait_for_room(&place, &pod, Port::Outbound).await;
        let slot = pod.enter();
        place.put_held(next, Arc::clone(&pod), slot);
    }
}

/// Waits while the pod may not have another connection at this port. Others are not held up: each pod's listeners have
/// loops of their own, and what the kernel queues meanwhile is bounded by the listener's backlog.
async fn wait_for_room(place: &Place, pod: &PodState, port: Port) {
    let Some(reason) = held_back(place, pod, port) else { return };
    place.carrier.ctx.metrics.accept_failed(reason);
    if pod.tell(Instant::now()) {
        tracing::warn!(pod = %pod.net.uid, ?port, ?reason, open = pod.open(), "a pod is held back at its limit");
    }
    while held_back(place, pod, port).is_some() {
        tokio::time::sleep(FULL_PAUSE).await;
    }
}

/// Which limit holds the pod back, if any.
fn held_back(place: &Place, pod: &PodState, port: Port) -> Option<AcceptFailure> {
    if pod.is_full() {
        return Some(AcceptFailure::PodLimit);
    }
    if port == Port::Mtls && pod.is_besieged() {
        return Some(AcceptFailure::HandshakeLimit);
    }
    match place.descriptors().left() {
        Left::Plenty => {}
        Left::Reserve if pod.open() < FEW => {}
        Left::Reserve | Left::Nothing => return Some(AcceptFailure::DescriptorReserve),
    }
    // Last: it takes what it finds.
    if port == Port::Outbound && !pod.may_dial(Instant::now()) {
        return Some(AcceptFailure::DialRate);
    }
    None
}

/// The errors that `accept(2)` reports of one connection; the next one may be fine.
fn is_passing(error: &io::Error) -> bool {
    let passing = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::PERM,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
    ];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}
