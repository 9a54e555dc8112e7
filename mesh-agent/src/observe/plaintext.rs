//! Who speaks plaintext to this node's enrolled pods where that is still taken: what breaks when their ports become strict.
//! In: each plaintext connection that was carried, save the kubelet's probes, which strict takes as well. Out: a list.
//!
//! A source is known by its address alone, so it is a hint to an operator and never a proof. Memory is bounded: what is
//! beyond the caps is counted without a name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::model::{MtlsMode, Workload};
use mesh_core::snapshot::Snapshot;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The most ports of workloads that are remembered.
const MOST_TARGETS: usize = 256;
/// The most sources of each that have a name.
const MOST_SOURCES: usize = 32;
/// How long a source that has no connection open is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// The most sources whose names are asked for at once.
const MOST_QUESTIONS: usize = 64;

/// A workload: its namespace and its top owner's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Named {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The top owner's name.
    pub owner: Arc<str>,
}

impl From<&Workload> for Named {
    fn from(workload: &Workload) -> Self {
        Self { namespace: workload.namespace().into(), owner: Arc::clone(&workload.owner.name) }
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Speaker {
    /// The pods of a workload.
    Workload(Named),
    /// An address that is no pod's.
    Address(IpAddr),
    /// Any, beyond the cap.
    Others,
}

/// Who speaks to what, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plaintext {
    /// Who.
    pub source: Speaker,
    /// To whom.
    pub destination: Named,
    /// At which port of the pod.
    pub port: u16,
    /// How many connections there were.
    pub connections: u64,
    /// How many of them are open.
    pub open: usize,
    /// When the last one began or ended.
    pub last: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Target {
    workload: Named,
    port: u16,
}

#[derive(Debug)]
struct Heard {
    connections: u64,
    last: SystemTime,
    /// Each open connection has a clone.
    open: Arc<()>,
}

impl Heard {
    fn is_over(&self, now: SystemTime) -> bool {
        let idle = now.duration_since(self.last).unwrap_or_default();
        Arc::strong_count(&self.open) == 1 && idle >= REMEMBERED
    }
}

/// Everybody who was heard.
#[derive(Debug)]
pub struct PlaintextPeers {
    since: SystemTime,
    held: Mutex<Held>,
    questions: Semaphore,
}

#[derive(Debug, Default)]
struct Held {
    targets: HashMap<Target, HashMap<Speaker, Heard>>,
    missed: u64,
}

/// An open connection; dropping it says that it ended.
#[derive(Debug)]
pub struct Speaking<'a> {
    peers: &'a PlaintextPeers,
    of: Option<(Target, Speaker, Arc<()>)>,
}

impl Drop for Speaking<'_> {
    fn drop(&mut self) {
        let Some((target, source, open)) = self.of.take() else { return };
        let mut held = self.peers.held.lock();
        let heard = held.targets.get_mut(&target).and_then(|sources| sources.get_mut(&source));
        if let Some(heard) = heard {
            heard.last = SystemTime::now();
        }
        // Under the lock: whoever reads the list sees both or none.
        drop(open);
    }
}

impl PlaintextPeers {
    /// Nobody yet.
    pub fn new(now: SystemTime) -> Self {
        let (held, questions) = (Mutex::default(), Semaphore::new(MOST_QUESTIONS));
        Self { since: now, held, questions }
    }

    /// Since when connections are noted.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Connections of which nothing but their number is known: too many ports were spoken to.
    pub fn missed(&self) -> u64 {
        self.held.lock().missed
    }

    /// Whether it is worth to ask whose an address is that would speak to `port` of a workload: `None` where its answer
    /// would not be kept, so that nobody outside makes this agent ask without end. To be held while it is asked.
    pub fn may_ask(&self, workload: &Workload, port: u16) -> Option<SemaphorePermit<'_>> {
        let target = Target { workload: workload.into(), port };
        let held = self.held.lock();
        let room = match held.targets.get(&target) {
            Some(sources) => sources.len() < MOST_SOURCES,
            None => held.targets.len() < MOST_TARGETS,
        };
        drop(held);
        room.then(|| self.questions.try_acquire().ok()).flatten()
    }

    /// Notes a connection of `source` to `port` of a workload, until what is given back is dropped.
    pub fn note(&self, source: Speaker, workload: &Workload, port: u16, now: SystemTime) -> Speaking<'_> {
        let target = Target { workload: workload.into(), port };
        let mut held = self.held.lock();
        if held.targets.len() >= MOST_TARGETS && !held.targets.contains_key(&target) {
            held.forget(now);
            if held.targets.len() >= MOST_TARGETS {
                held.missed += 1;
                return Speaking { peers: self, of: None };
            }
        }
        let sources = held.targets.entry(target.clone()).or_default();
        let mut source = source;
        if sources.len() >= MOST_SOURCES && !sources.contains_key(&source) {
            sources.retain(|_, heard| !heard.is_over(now));
            if sources.len() >= MOST_SOURCES {
                source = Speaker::Others;
            }
        }
        let fresh = || Heard { connections: 0, last: now, open: Arc::new(()) };
        let heard = sources.entry(source.clone()).or_insert_with(fresh);
        heard.connections += 1;
        heard.last = now;
        let open = Arc::clone(&heard.open);
        Speaking { peers: self, of: Some((target, source, open)) }
    }

    /// Who spoke to the pods of `node` at ports that still take plaintext, sorted.
    pub fn list(&self, snapshot: &Snapshot, node: &str, now: SystemTime) -> Vec<Plaintext> {
        let mut held = self.held.lock();
        held.forget(now);
        let local: Vec<_> = snapshot.workloads().filter(|w| w.enrolled && *w.node == *node).collect();
        let takes = |target: &Target| {
            let of = |w: &Workload| {
                *w.owner.name == *target.workload.owner && w.namespace() == &*target.workload.namespace
            };
            local.iter().any(|w| of(w) && w.mtls.of(target.port) == MtlsMode::Permissive)
        };
        let open = held.targets.iter().filter(|(target, _)| takes(target));
        let mut all: Vec<Plaintext> = open
            .flat_map(|(target, sources)| sources.iter().map(|(s, heard)| told(target, s, heard)))
            .collect();
        all.sort_by(|a, b| (&a.destination, a.port, &a.source).cmp(&(&b.destination, b.port, &b.source)));
        all
    }
}

impl Held {
    fn forget(&mut self, now: SystemTime) {
        self.targets.retain(|_, sources| {
            sources.retain(|_, heard| !heard.is_over(now));
            !sources.is_empty()
        });
    }
}

fn told(target: &Target, source: &Speaker, heard: &Heard) -> Plaintext {
    Plaintext {
        source: source.clone(),
        destination: target.workload.clone(),
        port: target.port,
        connections: heard.connections,
        open: Arc::strong_count(&heard.open) - 1,
        last: heard.last,
    }
}

#[cfg(test)]
#[path = "plaintext_tests.rs"]
mod tests;
