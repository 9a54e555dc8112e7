//! How many connections this agent has open to each endpoint.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

/// Below this many endpoints nothing is swept.
const SWEEP_FLOOR: usize = 1024;

/// Shared counters, one an endpoint.
#[derive(Debug, Default)]
pub struct Loads {
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    counts: HashMap<SocketAddr, Arc<AtomicUsize>>,
    /// Unused counters are dropped when the table has grown to this size.
    sweep_at: usize,
}

/// One open connection.
#[derive(Debug)]
pub struct LoadGuard(Arc<AtomicUsize>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Loads {
    /// Counts a connection for as long as the guard lives.
    pub fn enter(&self, endpoint: SocketAddr) -> LoadGuard {
        let held = self.table.read().counts.get(&endpoint).cloned();
        let count = held.unwrap_or_else(|| self.table.write().add(endpoint));
        count.fetch_add(1, Ordering::Relaxed);
        LoadGuard(count)
    }

    /// The connections of each of `endpoints`.
    pub fn of(&self, endpoints: &[SocketAddr]) -> Vec<usize> {
        let table = self.table.read();
        let load = |endpoint| table.counts.get(endpoint).map_or(0, |count| count.load(Ordering::Relaxed));
        endpoints.iter().map(load).collect()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.read().counts.len()
    }
}

impl Table {
    fn add(&mut self, endpoint: SocketAddr) -> Arc<AtomicUsize> {
        if self.counts.len() >= self.sweep_at.max(SWEEP_FLOOR) {
            // A counter that somebody else holds is in use or about to be.
            self.counts.retain(|_, count| Arc::strong_count(count) > 1);
            self.sweep_at = self.counts.len() * 2;
        }
        Arc::clone(self.counts.entry(endpoint).or_default())
    }
}
