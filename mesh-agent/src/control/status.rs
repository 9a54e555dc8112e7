//! How the control plane fares: written by the discovery client and the certificate keepers, read by the administration
//! socket and by readiness.

use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The discovery stream, as of now.
#[derive(Clone, Debug, Default)]
pub struct StreamStatus {
    /// Whether a stream is up.
    pub connected: bool,
    /// When that last changed.
    pub since: Option<SystemTime>,
    /// Whether a snapshot was ever applied.
    pub applied: bool,
    /// Why the last stream ended, or could not be opened; kept until a delta is applied.
    pub last_error: Option<String>,
    /// Why the last delta was refused; the snapshot is the last good one while this is set.
    pub refused: Option<String>,
}

/// One identity whose certificate is wanted and not held, or could not be renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateProblem {
    /// Whose.
    pub identity: String,
    /// Whether no valid certificate is held at all.
    pub missing: bool,
    /// What the last attempt met; empty before the first one ended.
    pub problem: String,
}

/// The snapshot on disk, as of now.
#[derive(Clone, Debug, Default)]
pub struct KeptStatus {
    /// Version of the snapshot that was taken over at the start, and when it had been written.
    pub restored: Option<(u64, SystemTime)>,
    /// When this agent last wrote it.
    pub saved: Option<SystemTime>,
    /// Why it was not taken over, or could not be written.
    pub problem: Option<String>,
}

/// Shared state of the control plane.
#[derive(Debug, Default)]
pub struct ControlStatus {
    stream: Mutex<StreamStatus>,
    kept: Mutex<KeptStatus>,
    certificates: Mutex<Vec<CertificateProblem>>,
    node: Mutex<NodeStatus>,
    /// Wakes the discovery client: the controller is to hear of a new certificate.
    pub(super) certificates_changed: Notify,
}

/// The node certificate, as of now.
#[derive(Clone, Debug, Default)]
pub struct NodeStatus {
    /// The node's SPIFFE ID.
    pub spiffe_id: String,
    /// End of validity.
    pub not_after: Option<SystemTime>,
    /// Why the last renewal failed.
    pub problem: Option<String>,
}

impl ControlStatus {
    /// The discovery stream.
    pub fn stream(&self) -> StreamStatus {
        self.stream.lock().clone()
    }

    /// The node certificate.
    pub fn node(&self) -> NodeStatus {
        self.node.lock().clone()
    }

    /// Identities whose certificates are missing or could not be renewed.
    pub fn certificates(&self) -> Vec<CertificateProblem> {
        self.certificates.lock().clone()
    }

    /// The snapshot on disk.
    pub fn kept(&self) -> KeptStatus {
        self.kept.lock().clone()
    }

    /// Why the agent is not ready to carry traffic, or nothing when the control plane has given it all it needs.
    pub fn not_ready(&self) -> Option<String> {
        if !self.stream.lock().applied && self.kept.lock().restored.is_none() {
            return Some("no snapshot has been received from the controller".to_owned());
        }
        let certificates = self.certificates.lock();
        certificates
            .iter()
            .find(|problem| problem.missing)
            .map(|problem| format!("no certificate for {}: {}", problem.identity, problem.problem))
    }

    pub(super) fn connected(&self) {
        let mut stream = self.stream.lock();
        stream.connected = true;
        stream.since = Some(SystemTime::now());
    }

    pub(super) fn ended(&self, error: String) {
        let mut stream = self.stream.lock();
        if stream.connected {
            stream.since = Some(SystemTime::now());
        }
        stream.connected = false;
        stream.last_error = Some(error);
    }

    pub(super) fn applied(&self) {
        let mut stream = self.stream.lock();
        stream.applied = true;
        stream.last_error = None;
        stream.refused = None;
    }

    pub(super) fn refused(&self, error: String) {
        self.stream.lock().refused = Some(error);
    }

    pub(super) fn restored(&self, version: u64, saved: SystemTime) {
        self.kept.lock().restored = Some((version, saved));
    }

    pub(super) fn kept_problem(&self, problem: String) {
        self.kept.lock().problem = Some(problem);
    }

    pub(super) fn saved(&self, at: SystemTime) {
        let mut kept = self.kept.lock();
        kept.saved = Some(at);
        kept.problem = None;
    }

    pub(super) fn set_certificates(&self, problems: Vec<CertificateProblem>) {
        *self.certificates.lock() = problems;
    }

    pub(super) fn set_node(&self, node: NodeStatus) {
        *self.node.lock() = node;
    }

    pub(super) fn node_problem(&self, problem: String) {
        self.node.lock().problem = Some(problem);
    }
}
