//! What the control plane counts. Handles are made once and shared; `register` puts them into the agent's registry.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges of the control plane. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ControlMetrics {
    /// Whether the discovery stream is up (1) or not (0).
    pub connected: Gauge,
    /// Version of the snapshot in use.
    pub snapshot_version: Gauge,
    /// Discovery streams that were opened.
    pub streams: Counter,
    /// Discovery streams that failed or ended.
    pub streams_ended: Counter,
    /// Deltas that became part of the snapshot.
    pub deltas_applied: Counter,
    /// Deltas that were refused.
    pub deltas_refused: Counter,
    /// Snapshots on disk that were refused at a start.
    pub kept_refused: Counter,
    /// Snapshots that could not be written to disk.
    pub kept_failed: Counter,
    /// Addresses that had to be asked for.
    pub lookup_misses: Counter,
    /// Connections that waited for an answer in vain.
    pub lookup_timeouts: Counter,
    /// Addresses that were not asked for because too many are.
    pub lookup_refused: Counter,
    /// Addresses that are subscribed to.
    pub lookup_subscriptions: Gauge,
    /// Certificates that were obtained, first ones and renewals.
    pub certificates_signed: Counter,
    /// Attempts to obtain a certificate that failed.
    pub certificate_failures: Counter,
}

impl ControlMetrics {
    /// Adds every metric to `registry`, which gives the common prefix.
    pub fn register(&self, registry: &mut Registry) {
        let gauges: [(&str, &str, &Gauge); 3] = [
            ("control_connected", "Whether the discovery stream to the controller is up", &self.connected),
            ("snapshot_version", "Version of the snapshot in use", &self.snapshot_version),
            ("lookup_subscriptions", "Addresses subscribed to at the controller", &self.lookup_subscriptions),
        ];
        let counters: [(&str, &str, &Counter); 11] = [
            ("control_streams", "Discovery streams opened", &self.streams),
            ("control_streams_ended", "Discovery streams failed or ended", &self.streams_ended),
            ("deltas_applied", "Deltas that became part of the snapshot", &self.deltas_applied),
            ("deltas_refused", "Deltas refused; the last good snapshot stayed", &self.deltas_refused),
            ("kept_snapshot_refused", "Snapshots on disk refused at a start", &self.kept_refused),
            ("kept_snapshot_failed", "Snapshots that could not be written to disk", &self.kept_failed),
            ("lookup_misses", "Addresses that had to be asked for", &self.lookup_misses),
            ("lookup_timeouts", "Connections that waited for a lookup in vain", &self.lookup_timeouts),
            ("lookup_refused", "Lookups refused because too many are held", &self.lookup_refused),
            ("certificates_signed", "Certificates obtained", &self.certificates_signed),
            ("certificate_failures", "Failed attempts to obtain a certificate", &self.certificate_failures),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}
