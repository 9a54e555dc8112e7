//! The series of the golden metrics: made on first use, capped, and removed some time after the workloads that they
//! name have left, because series never expire by themselves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::snapshot::Snapshot;
use parking_lot::RwLock;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::labels::{Labels, Party, SharedLabels};

/// Upper bounds of the duration histogram, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 60.0, 600.0, 3600.0];

/// Limits of the table.
#[derive(Clone, Copy, Debug)]
pub struct SeriesLimits {
    /// The most label sets; connections beyond are counted under `other`.
    pub most: usize,
    /// How long a series stays after its workloads have left.
    pub linger: Duration,
}

impl Default for SeriesLimits {
    fn default() -> Self {
        Self { most: 5_000, linger: Duration::from_secs(600) }
    }
}

/// The counters of one label set; a connection keeps them while it is open.
#[derive(Debug)]
pub struct Series {
    /// Connections opened.
    pub opened: Counter,
    /// Connections closed.
    pub closed: Counter,
    /// Bytes to the client.
    pub sent: Counter,
    /// Bytes from the client.
    pub received: Counter,
    /// Seconds.
    pub duration: Histogram,
}

#[derive(Debug)]
struct Held {
    series: Arc<Series>,
    left: Option<Instant>,
}

/// All series.
#[derive(Debug)]
pub struct SeriesTable {
    limits: SeriesLimits,
    opened: Family<SharedLabels, Counter>,
    closed: Family<SharedLabels, Counter>,
    sent: Family<SharedLabels, Counter>,
    received: Family<SharedLabels, Counter>,
    duration: Family<SharedLabels, Histogram>,
    overflow: Counter,
    held: RwLock<HashMap<SharedLabels, Held>>,
}

fn duration_histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl SeriesTable {
    /// Registers the metrics, without any series yet.
    pub fn new(limits: SeriesLimits, registry: &mut Registry) -> Self {
        let table = Self {
            limits,
            opened: Family::default(),
            closed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
            duration: Family::new_with_constructor(duration_histogram),
            overflow: Counter::default(),
            held: RwLock::default(),
        };
        let help = [
            ("tcp_connections_opened", "TCP connections opened", &table.opened),
            ("tcp_connections_closed", "TCP connections closed", &table.closed),
            ("tcp_sent_bytes", "Bytes sent to the client of a TCP connection", &table.sent),
            ("tcp_received_bytes", "Bytes received from the client of a TCP connection", &table.received),
        ];
        for (name, help, family) in help {
            registry.register(name, help, family.clone());
        }
        registry.register(
            "tcp_connection_duration_seconds",
            "How long TCP connections were open",
            table.duration.clone(),
        );
        registry.register(
            "metric_series_overflow",
            "Connections counted under `other` because there are too many label sets",
            table.overflow.clone(),
        );
        table
    }

    /// The series of `labels`, or of `other` beyond the cap.
    pub fn get(&self, labels: Labels) -> Arc<Series> {
        let key = SharedLabels(Arc::new(labels));
        if let Some(held) = self.held.read().get(&key) {
            return Arc::clone(&held.series);
        }
        let mut table = self.held.write();
        let key = if table.len() < self.limits.most || table.contains_key(&key) {
            key
        } else {
            self.overflow.inc();
            SharedLabels(Arc::new(key.0.other()))
        };
        let held = table.entry(key.clone()).or_insert_with(|| Held { series: self.make(&key), left: None });
        Arc::clone(&held.series)
    }

    /// Removes the series whose workloads have been absent from the snapshots for long enough. Call it now and then.
    pub fn expire(&self, snapshot: &Snapshot, now: Instant) -> usize {
        let present: HashSet<(&str, &str)> =
            snapshot.workloads().map(|w| (w.namespace(), &*w.owner.name)).collect();
        let is_present = |party: &Party| match party {
            Party::Workload { owner, identity, .. } => present.contains(&(identity.namespace(), &**owner)),
            Party::Unknown | Party::Principal(_) | Party::Other => true,
        };
        let mut table = self.held.write();
        let before = table.len();
        table.retain(|key, held| {
            let in_use = Arc::strong_count(&held.series) > 1;
            if in_use || (is_present(&key.0.source) && is_present(&key.0.destination)) {
                held.left = None;
                return true;
            }
            let left = *held.left.get_or_insert(now);
            let stays = now.saturating_duration_since(left) < self.limits.linger;
            if !stays {
                self.remove(key);
            }
            stays
        });
        before - table.len()
    }

    /// How many label sets are held.
    pub fn len(&self) -> usize {
        self.held.read().len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn make(&self, key: &SharedLabels) -> Arc<Series> {
        Arc::new(Series {
            opened: self.opened.get_or_create_owned(key),
            closed: self.closed.get_or_create_owned(key),
            sent: self.sent.get_or_create_owned(key),
            received: self.received.get_or_create_owned(key),
            duration: self.duration.get_or_create_owned(key),
        })
    }

    fn remove(&self, key: &SharedLabels) {
        for family in [&self.opened, &self.closed, &self.sent, &self.received] {
            family.remove(key);
        }
        self.duration.remove(key);
    }
}

#[cfg(test)]
#[path = "series_tests.rs"]
mod tests;
