//! Takes back records that nobody came for. In: the maps. Out: entries that were there at two sweeps in a row are gone.
//!
//! Such records stay when a listener closes with connections in its queue, or an application's listener is outside of
//! the pods' cgroups; the maps are shared by the node's pods and must not fill up.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{HashMap, MapData};
use mesh_common::Endpoint;

use super::maps::Maps;

/// Longer than any handshake may take.
const INTERVAL: Duration = Duration::from_secs(150);

/// What the last sweep saw.
#[derive(Debug)]
pub(super) struct Sweeper {
    due: Instant,
    originals: HashSet<Name>,
    clients: HashSet<Name>,
}

/// A key by its fields: the ABI structs have no hash.
type Name = (u64, mesh_common::Addr, u16);

impl Sweeper {
    pub(super) fn new() -> Self {
        Self { due: Instant::now() + INTERVAL, originals: HashSet::new(), clients: HashSet::new() }
    }

    /// Sweeps when it is time.
    pub(super) fn tick(&mut self, maps: &Maps, now: Instant) {
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        sweep(&mut maps.originals.lock(), &mut self.originals, |key| (key.netns_cookie, key.addr, key.port));
        sweep(&mut maps.clients.lock(), &mut self.clients, |key| (key.netns_cookie, key.addr, key.port));
    }
}

fn sweep<K: Pod, H: Eq + Hash>(
    map: &mut HashMap<MapData, K, Endpoint>,
    seen: &mut HashSet<H>,
    name: impl Fn(&K) -> H,
) {
    // A key that cannot be read ends the walk; the next sweep goes on.
    let keys: Vec<K> = map.keys().map_while(Result::ok).collect();
    let mut still = HashSet::new();
    for key in keys {
        let name = name(&key);
        if seen.contains(&name) {
            // Taken meanwhile is as good.
            let _taken = map.remove(&key);
        } else {
            still.insert(name);
        }
    }
    *seen = still;
}

/// Removes every record of one namespace, or all of them.
pub(super) fn clear(maps: &Maps, netns_cookie: Option<u64>) {
    let mine = |cookie: u64| netns_cookie.is_none_or(|wanted| wanted == cookie);
    let mut originals = maps.originals.lock();
    let keys: Vec<_> = originals.keys().map_while(Result::ok).filter(|key| mine(key.netns_cookie)).collect();
    for key in keys {
        let _taken = originals.remove(&key);
    }
    drop(originals);
    let mut clients = maps.clients.lock();
    let keys: Vec<_> = clients.keys().map_while(Result::ok).filter(|key| mine(key.netns_cookie)).collect();
    for key in keys {
        let _taken = clients.remove(&key);
    }
}
