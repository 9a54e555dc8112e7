//! Handles of the threads that keep the kernel in step: stop them, pause them while another agent is about to take over, ask
//! whether they have done their first round.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// The running synchronisation. Dropping it stops the threads and leaves the kernel as it is.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    holder: Holder,
    threads: Vec<JoinHandle<()>>,
}

/// Makes the synchronisation pause while another agent is about to take over.
#[derive(Clone, Debug, Default)]
pub struct Holder(Arc<Pace>);

#[derive(Debug, Default)]
struct Pace {
    hold: AtomicBool,
    held: AtomicBool,
    settled: AtomicBool,
}

impl Holder {
    /// Asks for a pause, or for its end.
    pub fn hold(&self, hold: bool) {
        // An answer to an earlier question is none to this one.
        self.0.held.store(false, Ordering::SeqCst);
        self.0.hold.store(hold, Ordering::SeqCst);
    }

    /// Whether the thread does nothing now, and will not until the pause ends.
    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::SeqCst)
    }

    /// Whether a snapshot was brought into the kernel at least once.
    pub fn is_settled(&self) -> bool {
        self.0.settled.load(Ordering::SeqCst)
    }

    /// A snapshot was brought into the kernel.
    pub(super) fn settle(&self) {
        self.0.settled.store(true, Ordering::SeqCst);
    }

    /// Whether the thread has to pause.
    pub(crate) fn pauses(&self) -> bool {
        let hold = self.0.hold.load(Ordering::SeqCst);
        self.0.held.store(hold, Ordering::SeqCst);
        hold
    }
}

impl Running {
    pub(super) fn new(stop: Arc<AtomicBool>, holder: Holder, threads: Vec<JoinHandle<()>>) -> Self {
        Self { stop, holder, threads }
    }

    /// Pauses it.
    pub fn holder(&self) -> Holder {
        self.holder.clone()
    }

    /// Stops and waits until the threads have ended.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the interception had panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
