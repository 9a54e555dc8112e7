//! Everything that the data plane counts, and the registry that the node's HTTP port writes out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use super::plaintext::PlaintextPeers;
use super::series::{SeriesLimits, SeriesTable};
use crate::control::Published;
use crate::identify::SvidStore;

/// How often series of gone workloads are looked for.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(30);

type Reason = [(&'static str, &'static str); 1];

/// Why an accept did not give a connection; the word is the metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptFailure {
    /// No original destination: reset.
    NoOriginalDestination,
    /// Not a port of the pod's applications: reset.
    NotAnApplication,
    /// The socket failed before it was looked at.
    Socket,
    /// The client gave up before `accept()`.
    Aborted,
    /// Out of file descriptors or memory.
    Exhausted,
    /// A tunnel on 15008 broke, or its peer did not speak the transport that it chose.
    TunnelError,
    /// The pod has as many connections as it may have; accept pauses.
    PodLimit,
    /// As many clients of the pod's 15008 as may have not proven who they are; accept pauses.
    HandshakeLimit,
    /// The pod makes connections faster than it may; accept pauses.
    DialRate,
    /// The process has few descriptors left, and the pod more than a few connections; accept pauses.
    DescriptorReserve,
}

impl AcceptFailure {
    fn word(self) -> &'static str {
        match self {
            Self::NoOriginalDestination => "no_original_destination",
            Self::NotAnApplication => "not_an_application",
            Self::Socket => "socket_failed",
            Self::Aborted => "aborted",
            Self::Exhausted => "exhausted",
            Self::TunnelError => "tunnel_error",
            Self::PodLimit => "pod_limit",
            Self::HandshakeLimit => "handshake_limit",
            Self::DialRate => "dial_rate",
            Self::DescriptorReserve => "descriptor_reserve",
        }
    }
}

/// All metrics of the data plane.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// The golden metrics.
    pub series: SeriesTable,
    /// Who speaks plaintext to the pods.
    pub plaintext: PlaintextPeers,
    /// Connections that have a record which is not written yet.
    pub open: Gauge,
    /// Records that were written because nothing else ended the connection.
    pub aborted: Counter,
    /// Held connections of pods that proved not to be enrolled.
    pub released: Counter,
    /// Connections of the node's kubelet to a port of a probe.
    pub probes: Counter,
    denials: Family<Reason, Counter>,
    handshakes: Family<Reason, Counter>,
    accepts: Family<Reason, Counter>,
}

impl Metrics {
    /// Empty metrics.
    pub fn new(limits: SeriesLimits) -> Arc<Self> {
        let mut registry = Registry::with_prefix("ferromesh");
        let series = SeriesTable::new(limits, &mut registry);
        let metrics = Self {
            registry: Mutex::default(),
            series,
            plaintext: PlaintextPeers::new(SystemTime::now()),
            open: Gauge::default(),
            aborted: Counter::default(),
            released: Counter::default(),
            probes: Counter::default(),
            denials: Family::default(),
            handshakes: Family::default(),
            accepts: Family::default(),
        };
        let families = [
            (
                "authorization_denials",
                "Connections that this agent refused or ended by policy",
                &metrics.denials,
            ),
            ("handshake_failures", "TLS handshakes that failed, both directions", &metrics.handshakes),
            ("accept_failures", "Sockets that did not become a connection", &metrics.accepts),
        ];
        for (name, help, family) in families {
            registry.register(name, help, family.clone());
        }
        registry.register("connections_open", "Connections open now", metrics.open.clone());
        registry.register(
            "connections_aborted",
            "Connections whose task ended without a result",
            metrics.aborted.clone(),
        );
        registry.register(
            "held_released",
            "Connections that were held until their pod proved not to be enrolled",
            metrics.released.clone(),
        );
        registry.register(
            "probes",
            "Connections of the node's kubelet to ports that a pod's probes declare, which need no certificate",
            metrics.probes.clone(),
        );
        *metrics.registry.lock() = registry;
        Arc::new(metrics)
    }

    /// Adds metrics of other parts of the agent; the registry gives the prefix `ferromesh`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock());
    }

    /// Adds the kernel programs' counters, read when metrics are fetched.
    pub fn register_kernel(&self, read: impl Fn() -> Vec<(&'static str, u64)> + Send + Sync + 'static) {
        self.registry.lock().register_collector(Box::new(Kernel(Box::new(read))));
    }

    /// Adds how many enrolled pods are not served.
    pub fn register_unserved_pods(&self, read: impl Fn() -> usize + Send + Sync + 'static) {
        let help = "Enrolled pods of this node that the agent does not serve; status says why";
        self.register_count("unserved_pods", help, Box::new(read));
    }

    /// Adds how many pods are on the node's own network.
    pub fn register_pods_on_node_network(&self, read: impl Fn() -> usize + Send + Sync + 'static) {
        let help = "Pods of this node that are on its own network (hostNetwork) and left alone";
        self.register_count("pods_on_node_network", help, Box::new(read));
    }

    fn register_count(&self, name: &'static str, help: &'static str, read: Read) {
        self.registry.lock().register_collector(Box::new(Count { name, help, read }));
    }

    /// Adds the connections that are older than their pod's enrolment: how many there are, how many were closed.
    pub fn register_older_sockets(&self, read: impl Fn() -> (u64, u64) + Send + Sync + 'static) {
        self.registry.lock().register_collector(Box::new(OlderSockets(Box::new(read))));
    }

    /// Adds the ends of the certificates that `store` holds.
    pub fn register_certificates(&self, store: Arc<SvidStore>) {
        self.registry.lock().register_collector(Box::new(Certificates(store)));
    }

    /// A connection was denied by policy.
    pub fn denied(&self, reason: &'static str) {
        self.denials.get_or_create_owned(&[("reason", reason)]).inc();
    }

    /// A handshake failed.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshakes.get_or_create_owned(&[("reason", reason)]).inc();
    }

    /// An accept did not give a connection.
    pub fn accept_failed(&self, reason: AcceptFailure) {
        self.accepts.get_or_create_owned(&[("reason", reason.word())]).inc();
    }

    /// The OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }

    /// Removes the series of gone workloads, for ever. Cancel by dropping.
    pub async fn expire_series(self: Arc<Self>, published: Published) {
        loop {
            tokio::time::sleep(EXPIRY_INTERVAL).await;
            let removed = self.series.expire(&published.load(), Instant::now());
            if removed > 0 {
                tracing::debug!(removed, "series of gone workloads were removed");
            }
        }
    }
}

/// The kernel's counters.
struct Kernel(Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>);

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kernel")
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Outcomes of the kernel programs";
        let mut metric =
            encoder.encode_descriptor("kernel_decisions", help, None, ConstCounter::<u64>::TYPE)?;
        for (reason, count) in (self.0)() {
            ConstCounter::new(count).encode(metric.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }
}

/// How many of something there are, asked when metrics are fetched.
struct Count {
    name: &'static str,
    help: &'static str,
    read: Read,
}

type Read = Box<dyn Fn() -> usize + Send + Sync>;

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for Count {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from((self.read)()).unwrap_or(i64::MAX));
        gauge.encode(encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?)
    }
}

/// Connections that go past the mesh.
struct OlderSockets(Box<dyn Fn() -> (u64, u64) + Send + Sync>);

impl fmt::Debug for OlderSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OlderSockets")
    }
}

impl Collector for OlderSockets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (now, closed) = (self.0)();
        let help = "Connections of enrolled pods that are older than the enrolment and go past the mesh";
        let metric = encoder.encode_descriptor("older_sockets", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(now).unwrap_or(i64::MAX)).encode(metric)?;
        let help = "Such connections that were closed because their port is strict";
        let metric =
            encoder.encode_descriptor("older_sockets_closed", help, None, ConstCounter::<u64>::TYPE)?;
        ConstCounter::new(closed).encode(metric)
    }
}

/// The ends of certificates.
#[derive(Debug)]
struct Certificates(Arc<SvidStore>);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "When a workload certificate of this node ends, in seconds since 1970";
        let name = "certificate_not_after_seconds";
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (identity, svid) in self.0.all().iter() {
            let end = svid.not_after.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let end = i64::try_from(end).unwrap_or(i64::MAX);
            ConstGauge::new(end).encode(metric.encode_family(&[("identity", identity.to_string())])?)?;
        }
        Ok(())
    }
}
