//! Which addresses and ports of a host the kernel gives to the agent. In: where enrolled units listen, and how long each would
//! wait for a lost agent. Out: `STEERED` entries.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use mesh_common::SteeredKey;

use super::maps::{Maps, addr};

/// Where units listen, and for how many seconds of a lost agent that is closed (0: for ever).
pub(super) type Listens = HashMap<SocketAddr, u32>;

/// What the kernel was told.
#[derive(Debug)]
pub(super) struct Steered(HashMap<(u64, SocketAddr), u32>);

impl Steered {
    /// Begins with what an earlier agent told it.
    pub(super) fn adopt(maps: &Maps) -> Self {
        let entries = maps.steered.lock().iter().filter_map(Result::ok).collect::<Vec<_>>();
        let at = |key: &SteeredKey| SocketAddr::new(Ipv6Addr::from(key.addr).to_canonical(), key.port);
        Self(entries.iter().map(|(key, lost_after)| ((key.netns_cookie, at(key)), *lost_after)).collect())
    }

    /// Steers to the agent what units that `listen` in this network namespace are sent, and nothing else.
    pub(super) fn follow(&mut self, maps: &Maps, netns_cookie: u64, listen: &Listens) -> io::Result<()> {
        self.follow_also(maps, netns_cookie, listen)?;
        let mut steered = maps.steered.lock();
        self.0.retain(|entry, _| {
            let stays = entry.0 == netns_cookie && listen.contains_key(&entry.1);
            if !stays {
                // Gone already is as good.
                let _gone = steered.remove(&key(*entry));
            }
            stays
        });
        Ok(())
    }

    /// Steers to the agent what units that `listen` are sent as well.
    pub(super) fn follow_also(&mut self, maps: &Maps, netns_cookie: u64, listen: &Listens) -> io::Result<()> {
        let mut steered = maps.steered.lock();
        for (at, lost_after) in listen {
            let entry = (netns_cookie, *at);
            if self.0.get(&entry) != Some(lost_after) {
                steered.insert(key(entry), *lost_after, 0).map_err(io::Error::other)?;
                self.0.insert(entry, *lost_after);
            }
        }
        Ok(())
    }
}

fn key((netns_cookie, at): (u64, SocketAddr)) -> SteeredKey {
    SteeredKey { netns_cookie, addr: addr(at.ip()), port: at.port(), pad: [0; 3] }
}
