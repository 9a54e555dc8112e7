//! Tells the kernel which virtual addresses nobody serves, so that `connect()` itself is refused where it is answered before
//! the agent has looked (`connect: Eager`). In: snapshots. Out: the entries of `UNSERVED`.
//!
//! What the map cannot take is counted and refused by the agent instead: accepted, then reset.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::snapshot::Snapshot;

use super::maps::{Maps, endpoint, socket_addr};

/// What was written so far.
#[derive(Debug)]
pub(super) struct Unserved {
    maps: Arc<Maps>,
    written: HashSet<SocketAddr>,
    /// The snapshot that `written` was made from.
    seen: Option<Arc<Snapshot>>,
    left_out: Arc<AtomicU64>,
}

impl Unserved {
    /// Begins with what an earlier agent wrote.
    pub(super) fn adopt(maps: &Arc<Maps>, left_out: Arc<AtomicU64>) -> Self {
        let written = maps.unserved.lock().keys().map_while(Result::ok).map(|at| socket_addr(&at)).collect();
        Self { maps: Arc::clone(maps), written, seen: None, left_out }
    }

    /// Brings the map in step with `snapshot`. First what is served again goes: that makes room.
    pub(super) fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        if self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, snapshot)) {
            return;
        }
        self.seen = Some(Arc::clone(snapshot));
        let wanted = snapshot.unserved();
        let mut map = self.maps.unserved.lock();
        self.written.retain(|address| {
            let stays = wanted.contains(address);
            if !stays && let Err(error) = map.remove(&endpoint(*address)) {
                tracing::warn!(%address, %error, "removing an address that is served again");
            }
            stays
        });
        let (mut left_out, mut last) = (0, None);
        for address in wanted {
            if self.written.contains(address) {
                continue;
            }
            match map.insert(endpoint(*address), 0, 0) {
                Ok(()) => drop(self.written.insert(*address)),
                Err(error) => (left_out, last) = (left_out + 1, Some(error)),
            }
        }
        if let Some(error) = last {
            self.left_out.fetch_add(left_out, Ordering::Relaxed);
            tracing::warn!(left_out, %error, "addresses without an endpoint that the agent refuses, not the kernel");
        }
    }
}
