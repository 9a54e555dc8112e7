//! Which addresses and ports of a host the kernel gives to the agent. In: where enrolled units listen. Out: `STEERED` entries.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use mesh_common::SteeredKey;

use super::maps::{Maps, addr};

/// What the kernel was told.
#[derive(Debug)]
pub(super) struct Steered(HashSet<(u64, SocketAddr)>);

impl Steered {
    /// Begins with what an earlier agent told it.
    pub(super) fn adopt(maps: &Maps) -> Self {
        let keys = maps.steered.lock().keys().map_while(Result::ok).collect::<Vec<_>>();
        let at = |key: &SteeredKey| SocketAddr::new(Ipv6Addr::from(key.addr).to_canonical(), key.port);
        Self(keys.iter().map(|key| (key.netns_cookie, at(key))).collect())
    }

    /// Steers to the agent what units that `listen` are sent, in this network namespace, and nothing else.
    pub(super) fn follow(
        &mut self,
        maps: &Maps,
        netns_cookie: u64,
        listen: &HashSet<SocketAddr>,
    ) -> io::Result<()> {
        let wanted: HashSet<_> = listen.iter().map(|at| (netns_cookie, *at)).collect();
        self.add(maps, &wanted)?;
        let gone: Vec<_> = self.0.difference(&wanted).copied().collect();
        let mut steered = maps.steered.lock();
        for entry in gone {
            // Gone already is as good.
            let _gone = steered.remove(&key(entry));
            self.0.remove(&entry);
        }
        Ok(())
    }

    /// Steers to the agent what units that `listen` are sent as well.
    pub(super) fn follow_also(
        &mut self,
        maps: &Maps,
        netns_cookie: u64,
        listen: &HashSet<SocketAddr>,
    ) -> io::Result<()> {
        let wanted = listen.iter().map(|at| (netns_cookie, *at)).collect();
        self.add(maps, &wanted)
    }

    fn add(&mut self, maps: &Maps, wanted: &HashSet<(u64, SocketAddr)>) -> io::Result<()> {
        let mut steered = maps.steered.lock();
        for entry in wanted {
            if !self.0.contains(entry) {
                steered.insert(key(*entry), 0, 0).map_err(io::Error::other)?;
                self.0.insert(*entry);
            }
        }
        Ok(())
    }
}

fn key((netns_cookie, at): (u64, SocketAddr)) -> SteeredKey {
    SteeredKey { netns_cookie, addr: addr(at.ip()), port: at.port(), pad: [0; 3] }
}
