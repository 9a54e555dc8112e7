//! What the workers share about one pod: its network namespace, how many connections it has, and whether it is leaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::intercept::PodNet;
use crate::transport::{Drain, DrainHandle};

/// One pod, from its enrolment on.
#[derive(Debug)]
pub(crate) struct PodState {
    /// Its network namespace.
    pub(crate) net: Arc<PodNet>,
    gone: AtomicBool,
    open: AtomicUsize,
    most: usize,
    drain: (DrainHandle, Drain),
}

/// One accepted socket of a pod.
#[derive(Debug)]
pub(super) struct PodSlot(Arc<PodState>);

impl Drop for PodSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PodState {
    pub(super) fn new(net: Arc<PodNet>, most: usize) -> Self {
        let (gone, open) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { net, gone, open, most, drain: Drain::pair() }
    }

    /// The pod no longer exists: a connection that comes to be after this is ended by whoever registers it.
    pub(super) fn mark_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Tunnels to this pod end when they are idle.
    pub(super) fn begin_drain(&self) {
        self.drain.0.drain();
    }

    /// For one tunnel to this pod.
    pub(crate) fn drain(&self) -> Drain {
        self.drain.1.clone()
    }

    /// Whether the pod may not have another connection now.
    pub(super) fn is_full(&self) -> bool {
        self.open.load(Ordering::Relaxed) >= self.most
    }

    /// Counts a connection for as long as the slot lives.
    pub(super) fn enter(self: &Arc<Self>) -> PodSlot {
        self.open.fetch_add(1, Ordering::Relaxed);
        PodSlot(Arc::clone(self))
    }
}
