//! Accepts on one of a pod's listeners until it is stopped. No error ends the loop: what a client or a shortage of
//! resources causes is counted, and answered with a pause where trying at once would only spin.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpListener;

use super::pod::PodState;
use super::worker::{Handed, Port, Worker};
use crate::observe::AcceptFailure;

/// The pauses after a failure that does not pass at once: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How often a pod at its limit is looked at again.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Accepts for ever; stop it by aborting its task.
pub(super) async fn run(worker: Rc<Worker>, pod: Arc<PodState>, port: Port, listener: Rc<TcpListener>) {
    let mut pause = FIRST_PAUSE;
    loop {
        wait_for_room(&worker, &pod).await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                pause = FIRST_PAUSE;
                let slot = pod.enter();
                worker.place(Handed { stream, peer, port, pod: Arc::clone(&pod), slot });
            }
            Err(error) if is_passing(&error) => {
                worker.ctx.metrics.accept_failed(AcceptFailure::Aborted);
                tokio::task::yield_now().await;
            }
            Err(error) => {
                worker.ctx.metrics.accept_failed(AcceptFailure::Exhausted);
                tracing::warn!(pod = %pod.net.uid, ?port, %error, "accept failed; trying again after a pause");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

async fn wait_for_room(worker: &Worker, pod: &PodState) {
    if !pod.is_full() {
        return;
    }
    worker.ctx.metrics.accept_failed(AcceptFailure::PodLimit);
    while pod.is_full() {
        tokio::time::sleep(FULL_PAUSE).await;
    }
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
