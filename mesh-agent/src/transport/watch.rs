//! What the agent holds of a connection that is being carried: the signal that ends it, and the meter that counts it while
//! it is open. A relay takes both; what it counted last is what it carried.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

use crate::authorize::Cut;

/// Watches one relay.
#[derive(Debug)]
pub struct Watch {
    /// Ends it.
    pub cut: Cut,
    /// Counts it.
    pub meter: Meter,
}

impl Watch {
    /// A relay that nobody counts.
    pub fn uncounted(cut: Cut) -> Self {
        Self { cut, meter: Meter::default() }
    }
}

/// Adds what one connection carries to counters while it is open, and remembers how much that was. The default counts
/// nowhere.
#[derive(Clone, Debug, Default)]
pub struct Meter(Option<Arc<Counted>>);

#[derive(Debug)]
struct Counted {
    counters: Counters,
    opened: AtomicBool,
    from_near: AtomicU64,
    to_near: AtomicU64,
}

/// Where one connection is counted. Directions are as the near socket sees them.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Connections that both ends have.
    pub opened: Counter,
    /// Bytes read from the near socket.
    pub from_near: Counter,
    /// Bytes written to the near socket.
    pub to_near: Counter,
}

impl Meter {
    /// Of a connection that is not open yet.
    pub fn new(counters: Counters) -> Self {
        Self(Some(Arc::new(Counted {
            counters,
            opened: AtomicBool::new(false),
            from_near: AtomicU64::new(0),
            to_near: AtomicU64::new(0),
        })))
    }

    /// The connection is open, and has carried so many bytes until now. Only the relay calls this.
    pub(super) fn note(&self, from_near: u64, to_near: u64) {
        let Some(counted) = &self.0 else { return };
        if !counted.opened.load(Ordering::Relaxed) {
            counted.opened.store(true, Ordering::Relaxed);
            counted.counters.opened.inc();
        }
        add(&counted.from_near, &counted.counters.from_near, from_near);
        add(&counted.to_near, &counted.counters.to_near, to_near);
    }

    /// Whether it was open, and the bytes from and to the near socket that were counted.
    pub fn counted(&self) -> (bool, u64, u64) {
        self.0.as_ref().map_or((false, 0, 0), |counted| {
            let bytes = [&counted.from_near, &counted.to_near].map(|bytes| bytes.load(Ordering::Relaxed));
            (counted.opened.load(Ordering::Relaxed), bytes[0], bytes[1])
        })
    }
}

fn add(before: &AtomicU64, counter: &Counter, now: u64) {
    // One writer: the relay.
    let more = now.saturating_sub(before.load(Ordering::Relaxed));
    if more > 0 {
        counter.inc_by(more);
        before.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_added_once_and_the_connection_counts_as_opened_once() {
        let counters = Counters::default();
        let meter = Meter::new(counters.clone());
        assert_eq!((counters.opened.get(), meter.counted()), (0, (false, 0, 0)));
        meter.note(0, 0);
        meter.note(5, 3);
        meter.note(5, 7);
        assert_eq!((counters.opened.get(), counters.from_near.get(), counters.to_near.get()), (1, 5, 7));
        assert_eq!(meter.counted(), (true, 5, 7));
        Meter::default().note(5, 3);
    }
}
