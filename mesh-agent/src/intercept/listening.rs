//! Looks at which ports of a pod an application listens on. In: the pod's namespace, and what the kernel's callbacks
//! counted. Out: `SEEDED` entries for the rest.
//!
//! The callbacks see what begins to listen while they are attached; what is older, or what they could not count, is found
//! here, when the pod is enrolled and every few seconds after.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::{PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND, PortKey};

use super::diag;
use super::maps::Maps;
use crate::sys::NetNs;

/// How often a pod is looked at again.
const INTERVAL: Duration = Duration::from_secs(3);

/// What was found so far, by the cookie of the pod's namespace.
#[derive(Debug)]
pub(super) struct Listening {
    seeded: HashMap<u64, HashSet<u16>>,
    due: Instant,
}

impl Listening {
    /// Begins with what an earlier agent found.
    pub(super) fn adopt(maps: &Maps) -> Self {
        let mut seeded: HashMap<u64, HashSet<u16>> = HashMap::new();
        for key in maps.seeded.lock().keys().map_while(Result::ok) {
            seeded.entry(key.netns_cookie).or_default().insert(key.port);
        }
        Self { seeded, due: Instant::now() + INTERVAL }
    }

    /// The look before a pod is enrolled. `false` when nothing is known: then nothing may be refused for it.
    pub(super) fn look_first(&mut self, maps: &Maps, netns: &NetNs) -> bool {
        match self.look(maps, netns) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "the ports that a pod listens on are not known; closed ones are not refused at once");
                false
            }
        }
    }

    /// Looks at every enrolled pod when it is time, and forgets the namespaces that are neither theirs nor `others`.
    pub(super) fn look_again(&mut self, maps: &Maps, pods: Vec<Arc<NetNs>>, others: HashSet<u64>) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + INTERVAL;
        for netns in &pods {
            if let Err(error) = self.look(maps, netns) {
                tracing::warn!(%error, "looking at the ports that a pod listens on");
            }
        }
        let known = |cookie: u64| others.contains(&cookie) || pods.iter().any(|netns| netns.cookie == cookie);
        self.seeded.retain(|cookie, _| known(*cookie));
        let mut seeded = maps.seeded.lock();
        let gone: Vec<PortKey> =
            seeded.keys().map_while(Result::ok).filter(|key| !known(key.netns_cookie)).collect();
        for key in gone {
            // Gone already is as good.
            let _gone = seeded.remove(&key);
        }
        drop(seeded);
        // Should a socket begin to listen right now, it goes uncounted, and the next look finds it.
        let mut counted = maps.listening.lock();
        let unused: Vec<PortKey> = counted
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, count)| *count == 0)
            .map(|(key, _)| key)
            .collect();
        for key in unused {
            let _gone = counted.remove(&key);
        }
    }

    /// Brings the entries of one pod in step with what listens in it.
    fn look(&mut self, maps: &Maps, netns: &NetNs) -> io::Result<()> {
        let listening = diag::listening(netns)?;
        let key = |port: u16| PortKey { netns_cookie: netns.cookie, port, pad: [0; 3] };
        let own = [PORT_OUTBOUND, PORT_INBOUND, PORT_MTLS];
        let counted = maps.listening.lock();
        let is_counted = |port: u16| counted.get(&key(port), 0).is_ok_and(|count| count != 0);
        let wanted: HashSet<u16> =
            listening.into_iter().filter(|port| !own.contains(port) && !is_counted(*port)).collect();
        drop(counted);
        let held = self.seeded.entry(netns.cookie).or_default();
        let mut seeded = maps.seeded.lock();
        for port in wanted.difference(held) {
            seeded.insert(key(*port), 0, 0).map_err(io::Error::other)?;
        }
        for port in held.difference(&wanted) {
            // Gone already is as good.
            let _gone = seeded.remove(&key(*port));
        }
        *held = wanted;
        Ok(())
    }
}
