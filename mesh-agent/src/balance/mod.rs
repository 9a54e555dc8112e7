//! Stage 5: one endpoint of several. Power of two choices on the connections that this agent has open to each, after
//! session affinity has had its say.

mod affinity;
mod load;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mesh_core::balance::pick_two_choices;
use mesh_core::model::Affinity;
use mesh_core::route::Candidate;

use crate::route::Routed;

pub use affinity::AffinityTable;
pub use load::{LoadGuard, Loads};

/// Shared by all workers.
#[derive(Debug, Default)]
pub struct Balancer {
    loads: Loads,
    affinity: AffinityTable,
}

/// Who asks for an endpoint: the client's address, and the service's port that it dialled.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The client.
    pub client: IpAddr,
    /// The port.
    pub port: u16,
}

impl Balancer {
    /// An endpoint that is not among `tried`. `random` is one uniformly drawn word.
    pub fn pick<'a>(
        &self,
        routed: &'a Routed,
        asker: Asker,
        tried: &[SocketAddr],
        random: u64,
        now: Instant,
    ) -> Option<&'a Candidate> {
        let left: Vec<&Candidate> =
            routed.candidates.iter().filter(|candidate| !tried.contains(&candidate.address)).collect();
        let (Some(service), Affinity::ClientIp(timeout)) = (&routed.service, routed.affinity) else {
            return self.two_choices(&left, random);
        };
        let key = (service.clone(), asker.port, asker.client);
        let kept = self.affinity.get(&key, now);
        let picked = match left.iter().find(|candidate| Some(candidate.address) == kept) {
            Some(candidate) => *candidate,
            None => self.two_choices(&left, random)?,
        };
        self.affinity.put(key, picked.address, timeout, now);
        Some(picked)
    }

    /// Counts a connection to `endpoint` for as long as the guard lives.
    pub fn enter(&self, endpoint: SocketAddr) -> LoadGuard {
        self.loads.enter(endpoint)
    }

    fn two_choices<'a>(&self, left: &[&'a Candidate], random: u64) -> Option<&'a Candidate> {
        let pick = match left {
            [only] => return Some(only),
            _ => {
                let addresses: Vec<SocketAddr> = left.iter().map(|candidate| candidate.address).collect();
                let loads = self.loads.of(&addresses);
                pick_two_choices(left.len(), random, |index| loads.get(index).copied().unwrap_or(0))
            }
        };
        pick.and_then(|index| left.get(index).copied())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
