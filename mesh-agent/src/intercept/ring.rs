//! The kernel's ring of events about connections whose SYN it holds. In: the ring. Out: each event, to the hub; one agent reads at
//! a time.

use std::io;
use std::sync::Arc;

use aya::maps::{Map, RingBuf};
use mesh_common::{HELD_GONE, HELD_SYN, HeldEvent, OrigKey};

use super::hub::{Answering, Hub};
use crate::sys;

/// The kernel's events; one task of one agent follows them.
pub struct HeldEvents {
    ring: Map,
    hub: Arc<Hub>,
    theirs: Answering,
}

impl std::fmt::Debug for HeldEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HeldEvents").finish_non_exhaustive()
    }
}

impl HeldEvents {
    pub(super) fn new(ring: Map, hub: Arc<Hub>) -> Self {
        Self { ring, hub, theirs: Answering::default() }
    }

    /// After another agent, which still answers `theirs` and follows no more.
    #[must_use]
    pub fn after(self, theirs: Answering) -> Self {
        Self { theirs, ..self }
    }

    /// Hands out every connection that is held, for ever. Call it within a runtime.
    pub async fn follow(self) -> io::Result<()> {
        let Self { ring, hub, theirs } = self;
        // Not before: how far the ring was read is looked at when it is opened.
        let ring = RingBuf::try_from(ring).map_err(io::Error::other)?;
        let mut ring = sys::watch_ring(ring)?;
        hub.begin(theirs);
        loop {
            let mut ready = ring.readable_mut().await?;
            let events = ready.get_inner_mut();
            while let Some(event) = events.next() {
                match read(&event) {
                    Some(HeldEvent { key, kind: HELD_SYN, .. }) => hub.syn(key),
                    Some(HeldEvent { key, kind: HELD_GONE, .. }) => hub.gone(&key),
                    _ => tracing::warn!(length = event.len(), "an event that this agent does not know"),
                }
            }
            ready.clear_ready();
        }
    }
}

/// Reads an event by its layout: an older or newer kernel program may have written it.
pub(super) fn read(bytes: &[u8]) -> Option<HeldEvent> {
    if bytes.len() != size_of::<HeldEvent>() {
        return None;
    }
    let (cookie, rest) = bytes.split_first_chunk()?;
    let (addr, rest) = rest.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let (kind, _) = rest.get(6..)?.split_first_chunk()?;
    let key = OrigKey {
        netns_cookie: u64::from_ne_bytes(*cookie),
        addr: *addr,
        port: u16::from_ne_bytes(*port),
        pad: [0; 3],
    };
    Some(HeldEvent { key, kind: u32::from_ne_bytes(*kind), pad: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_by_its_layout() {
        let mut bytes = vec![0; size_of::<HeldEvent>()];
        bytes[0] = 7;
        bytes[8..24].copy_from_slice(&mesh_common::mapped([127, 128, 0, 1]));
        bytes[24..26].copy_from_slice(&99_u16.to_ne_bytes());
        bytes[32..36].copy_from_slice(&HELD_GONE.to_ne_bytes());
        let event = read(&bytes).unwrap();
        assert_eq!((event.key.netns_cookie, event.key.port, event.kind), (7_u64.to_le(), 99, HELD_GONE));
        assert_eq!(event.key.addr, mesh_common::mapped([127, 128, 0, 1]));
        assert!(read(&bytes[1..]).is_none());
    }
}
