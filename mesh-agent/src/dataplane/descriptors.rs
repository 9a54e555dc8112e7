//! How many file descriptors the process has left. In: the limit, and how many the kernel says are open. Out: whether they
//! are scarce (only pods with few connections may open more), or spent but for what the agent needs itself.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};

/// How long a count is believed; what is granted meanwhile is added.
const FRESH: Duration = Duration::from_millis(5);
/// An accepted connection, what is dialled for it, and a tunnel's handshake beside it.
const PER_CONNECTION: usize = 3;
/// What the agent itself needs: the controller, certificates, kernel maps, pods that come.
const OWN: usize = 64;
/// The part of the limit that is kept for pods with few connections: one in so many.
const RESERVE: usize = 4;

/// The process's descriptors.
#[derive(Debug)]
pub(super) struct Descriptors {
    limit: usize,
    count: fn() -> usize,
    start: Instant,
    /// Microseconds after `start` of the last count, plus one; 0: never.
    looked: AtomicU64,
    used: AtomicUsize,
    granted: AtomicUsize,
}

/// How much is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Enough.
    Plenty,
    /// The reserve: for pods that have few connections.
    Reserve,
    /// Nothing but what the agent needs itself.
    Nothing,
}

impl Descriptors {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        Self::new(limit.unwrap_or(usize::MAX), open_now)
    }

    fn new(limit: usize, count: fn() -> usize) -> Self {
        let (looked, used, granted) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { limit, count, start: Instant::now(), looked, used, granted }
    }

    /// The most connections that one pod may have, whatever is configured: half of what all may have.
    pub(super) fn fair_share(&self) -> usize {
        (self.limit / 2 / PER_CONNECTION).max(1)
    }

    /// A connection was accepted.
    pub(super) fn grant(&self) {
        self.granted.fetch_add(1, Ordering::Relaxed);
    }

    /// How much is left now.
    pub(super) fn left(&self) -> Left {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let looked = self.looked.load(Ordering::Relaxed);
        let fresh = u64::try_from(FRESH.as_micros()).unwrap_or(u64::MAX);
        if looked == 0 || now.saturating_sub(looked) > fresh {
            self.looked.store(now.max(1), Ordering::Relaxed);
            self.granted.store(0, Ordering::Relaxed);
            self.used.store((self.count)(), Ordering::Relaxed);
        }
        let granted = self.granted.load(Ordering::Relaxed).saturating_mul(PER_CONNECTION);
        let used = self.used.load(Ordering::Relaxed).saturating_add(granted);
        let reserve = self.limit / RESERVE;
        if used.saturating_add(OWN) >= self.limit {
            Left::Nothing
        } else if used.saturating_add(OWN).saturating_add(reserve) >= self.limit {
            Left::Reserve
        } else {
            Left::Plenty
        }
    }
}

/// How many descriptors this process has open. Since Linux 6.2 the folder's size says so; else they are counted.
fn open_now() -> usize {
    let folder = "/proc/self/fd";
    match std::fs::metadata(folder).map(|folder| folder.len()) {
        Ok(size) if size > 0 => usize::try_from(size).unwrap_or(usize::MAX),
        // It cannot be read when nothing is left to read it with.
        _ => std::fs::read_dir(folder).map_or(usize::MAX, Iterator::count),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_granted_counts_before_the_kernel_says_so() {
        let descriptors = Descriptors::new(1000, || 600);
        assert_eq!(descriptors.left(), Left::Plenty);
        for _ in 0..30 {
            descriptors.grant();
        }
        // 600 and 90: with the agent's own 64 the last quarter begins. The count may have been renewed meanwhile.
        let used = 600 + 3 * descriptors.granted.load(Ordering::Relaxed);
        let expected = if used + 64 + 250 >= 1000 { Left::Reserve } else { Left::Plenty };
        assert_eq!(descriptors.left(), expected);
        assert_eq!(Descriptors::new(1000, || 700).left(), Left::Reserve);
        assert_eq!(Descriptors::new(1000, || 940).left(), Left::Nothing);
        assert_eq!(Descriptors::new(1200, || 0).fair_share(), 200);
    }

    #[test]
    fn the_kernels_count_follows_what_is_open() {
        let before = open_now();
        let files: Vec<File> = (0..50).map(|_| File::open("/dev/null").unwrap()).collect();
        // Other tests open and close meanwhile.
        assert!(open_now() + 40 > before + files.len(), "{} after {before}", open_now());
    }
}
