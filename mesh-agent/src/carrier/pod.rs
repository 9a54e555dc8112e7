//! What the workers share about one pod: its network namespace, what it has of what is limited, and whether it is leaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::intercept::PodNet;
use crate::transport::{Drain, DrainHandle};

/// How often the log says that a pod is held back.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One pod, from its enrolment on.
#[derive(Debug)]
pub(crate) struct PodState {
    /// Its network namespace.
    pub(crate) net: Arc<PodNet>,
    gone: AtomicBool,
    open: AtomicUsize,
    handshakes: AtomicUsize,
    dials: Mutex<Allowance>,
    most: Caps,
    /// When the log last said that a limit holds the pod back.
    told: Mutex<Option<Instant>>,
    drain: (DrainHandle, Drain),
}

/// What one pod may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    /// Connections open at once, all ports together.
    pub(crate) connections: usize,
    /// Connections to 15008 that have not proven who they are.
    pub(crate) handshakes: usize,
    /// Connections that it makes in a second; as many may come at once.
    pub(crate) dials_per_second: u32,
}

/// A bucket that fills with time.
#[derive(Debug)]
struct Allowance {
    left: f64,
    seen: Instant,
}

/// A connection to 15008 whose handshake has not ended.
#[derive(Debug)]
pub(crate) struct Handshaking(Arc<PodState>);

impl Drop for Handshaking {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One accepted socket of a pod.
#[derive(Debug)]
pub(crate) struct PodSlot(Arc<PodState>);

impl Drop for PodSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PodState {
    pub(crate) fn new(net: Arc<PodNet>, most: Caps) -> Self {
        let dials = Allowance { left: f64::from(most.dials_per_second), seen: Instant::now() };
        Self {
            net,
            gone: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            dials: Mutex::new(dials),
            most,
            told: Mutex::new(None),
            drain: Drain::pair(),
        }
    }

    /// The pod no longer exists: a connection that comes to be after this is ended by whoever registers it.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Tunnels to this pod end when they are idle.
    pub(crate) fn begin_drain(&self) {
        self.drain.0.drain();
    }

    /// For one tunnel to this pod.
    pub(crate) fn drain(&self) -> Drain {
        self.drain.1.clone()
    }

    /// Connections open now.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether the pod has as many connections as it may have.
    pub(crate) fn is_full(&self) -> bool {
        self.open() >= self.most.connections
    }

    /// Whether as many strangers wait at 15008 as may.
    pub(crate) fn is_besieged(&self) -> bool {
        self.handshakes.load(Ordering::Relaxed) >= self.most.handshakes
    }

    /// Whether the pod may make a connection at `now`; if so, it has made it.
    pub(crate) fn may_dial(&self, now: Instant) -> bool {
        let most = f64::from(self.most.dials_per_second);
        let mut dials = self.dials.lock();
        let since = now.saturating_duration_since(dials.seen).as_secs_f64();
        *dials = Allowance { left: since.mul_add(most, dials.left).min(most), seen: now };
        let may = dials.left >= 1.0;
        if may {
            dials.left -= 1.0;
        }
        may
    }

    /// Counts a handshake for as long as this lives.
    pub(crate) fn handshaking(self: &Arc<Self>) -> Handshaking {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        Handshaking(Arc::clone(self))
    }

    /// Whether the log should say again that a limit holds the pod back: once in a while.
    pub(crate) fn tell(&self, now: Instant) -> bool {
        let mut told = self.told.lock();
        let due = told.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        if due {
            *told = Some(now);
        }
        due
    }

    /// Counts a connection for as long as the slot lives.
    pub(crate) fn enter(self: &Arc<Self>) -> PodSlot {
        self.open.fetch_add(1, Ordering::Relaxed);
        PodSlot(Arc::clone(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_pod_dials_as_fast_as_it_may_and_no_faster() {
        let net = PodNet::unintercepted(fixture::uid("web"), Vec::new());
        let caps = Caps { connections: 10, handshakes: 1, dials_per_second: 5 };
        let pod = Arc::new(PodState::new(Arc::new(net), caps));
        let now = Instant::now();
        let taken = |at| (0..20).filter(|_| pod.may_dial(at)).count();
        assert_eq!(taken(now), 5);
        assert_eq!(taken(now + Duration::from_millis(450)), 2);
        assert_eq!(taken(now + Duration::from_secs(60)), 5);
        let handshake = pod.handshaking();
        assert!(pod.is_besieged());
        drop(handshake);
        assert!(!pod.is_besieged());
        assert!(pod.tell(now) && !pod.tell(now + Duration::from_secs(9)));
        assert!(pod.tell(now + Duration::from_secs(11)));
    }
}
