//! How fast one node may have certificates signed: a bucket for each node. A node's name and the time in, yes or no out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

/// At once: every service account of a full node, twice.
const BURST: f64 = 512.0;
/// In the long run, in a second.
const RATE: f64 = 10.0;
/// Names that are remembered; full buckets are forgotten first.
const MOST_NODES: usize = 16_384;

/// The buckets.
#[derive(Clone, Debug, Default)]
pub(super) struct SignLimit {
    buckets: Arc<Mutex<HashMap<Arc<str>, Bucket>>>,
}

#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn level(&self, now: Instant) -> f64 {
        (self.level + now.saturating_duration_since(self.at).as_secs_f64() * RATE).min(BURST)
    }
}

impl SignLimit {
    /// Takes one; `false` when there is none.
    pub(super) fn take(&self, node: &str, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.len() >= MOST_NODES && !buckets.contains_key(node) {
            buckets.retain(|_, bucket| bucket.level(now) < BURST);
            if buckets.len() >= MOST_NODES {
                return false;
            }
        }
        let bucket = buckets.entry(node.into()).or_insert(Bucket { level: BURST, at: now });
        let level = bucket.level(now);
        let enough = level >= 1.0;
        *bucket = Bucket { level: if enough { level - 1.0 } else { level }, at: now };
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_node_that_asks_too_fast_waits_and_others_do_not() {
        let (limit, begin) = (SignLimit::default(), Instant::now());
        assert!((0..512).all(|_| limit.take("a", begin)));
        assert!(!limit.take("a", begin));
        assert!(limit.take("b", begin));
        let later = begin + Duration::from_millis(250);
        assert!(limit.take("a", later) && limit.take("a", later) && !limit.take("a", later));
    }
}
