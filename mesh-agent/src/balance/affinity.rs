//! `sessionAffinity: ClientIP`: a client stays with its endpoint until it has been silent for the service's time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_core::model::ServiceName;
use parking_lot::Mutex;

/// Below this many entries nothing is swept.
const SWEEP_FLOOR: usize = 1024;

/// A service, its port and a client.
pub(super) type AffinityKey = (ServiceName, u16, IpAddr);

/// Which endpoint each client had.
#[derive(Debug, Default)]
pub struct AffinityTable {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<AffinityKey, Entry>,
    sweep_at: usize,
}

#[derive(Debug)]
struct Entry {
    endpoint: SocketAddr,
    expires: Instant,
}

impl AffinityTable {
    /// The endpoint that the client had, if it has not been silent for too long.
    pub fn get(&self, key: &AffinityKey, now: Instant) -> Option<SocketAddr> {
        let table = self.table.lock();
        table.entries.get(key).filter(|entry| entry.expires > now).map(|entry| entry.endpoint)
    }

    /// Notes the endpoint of a client that connects at `now`.
    pub fn put(&self, key: AffinityKey, endpoint: SocketAddr, timeout: Duration, now: Instant) {
        let mut table = self.table.lock();
        if table.entries.len() >= table.sweep_at.max(SWEEP_FLOOR) {
            table.entries.retain(|_, entry| entry.expires > now);
            table.sweep_at = table.entries.len() * 2;
        }
        table.entries.insert(key, Entry { endpoint, expires: now + timeout });
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.table.lock().entries.len()
    }
}
