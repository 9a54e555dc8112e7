//! What is known of the agents: connected or not, what they were sent, what they acknowledged, what they hold and trust.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::proto;
use parking_lot::Mutex;

/// The most certificates and the longest text that are kept of one agent's report.
const MAX_CERTIFICATES: usize = 4096;
const MAX_TEXT_BYTES: usize = 1024;

/// The agents that have ever connected to this controller.
#[derive(Debug, Default)]
pub struct Agents {
    known: Mutex<BTreeMap<Arc<str>, Known>>,
}

#[derive(Debug, Default)]
struct Known {
    streams: usize,
    /// The newest stream; older ones of the same node no longer say anything.
    newest: u64,
    version: String,
    sent: u64,
    acknowledged: u64,
    last_error: String,
    certificates: Vec<proto::CertificateInfo>,
    /// Which roots it trusts.
    roots_id: Vec<u8>,
}

/// One open stream of an agent; it is closed when this is dropped.
#[derive(Debug)]
pub struct Session {
    agents: Arc<Agents>,
    node: Arc<str>,
    number: u64,
}

impl Agents {
    /// A stream was opened.
    pub fn connect(self: &Arc<Self>, node: &Arc<str>, hello: &proto::Hello) -> Session {
        let mut known = self.known.lock();
        let agent = known.entry(Arc::clone(node)).or_default();
        agent.streams += 1;
        agent.newest += 1;
        agent.version = clip(&hello.agent_version);
        (agent.sent, agent.acknowledged) = (0, 0);
        agent.last_error.clear();
        agent.roots_id.clear();
        agent.certificates = clip_certificates(&hello.certificates);
        Session { agents: Arc::clone(self), node: Arc::clone(node), number: agent.newest }
    }

    /// How many are connected and trust the roots of `roots_id`.
    pub fn trusting(&self, roots_id: &[u8]) -> usize {
        let known = self.known.lock();
        known.values().filter(|agent| agent.streams > 0 && agent.roots_id == roots_id).count()
    }

    /// The nodes whose agents do not trust them, as far as is known: those that are connected, or `away` too.
    pub fn behind(&self, roots_id: &[u8], away: bool) -> Vec<String> {
        let known = self.known.lock();
        let behind = |agent: &Known| agent.roots_id != roots_id && (agent.streams > 0 || away);
        known.iter().filter(|(_, agent)| behind(agent)).map(|(node, _)| node.to_string()).collect()
    }

    /// The state of each agent.
    pub fn statuses(&self) -> Vec<proto::AgentStatus> {
        let known = self.known.lock();
        let status = |(node, agent): (&Arc<str>, &Known)| proto::AgentStatus {
            node: node.to_string(),
            agent_version: agent.version.clone(),
            connected: agent.streams > 0,
            sent_version: agent.sent,
            acknowledged_version: agent.acknowledged,
            last_error: agent.last_error.clone(),
            certificates: agent.certificates.clone(),
        };
        known.iter().map(status).collect()
    }
}

impl Session {
    /// A version was sent.
    pub fn sent(&self, version: u64) {
        self.update(|agent| agent.sent = version);
    }

    /// The agent answered.
    pub fn acknowledged(&self, ack: &proto::Ack) {
        self.update(|agent| {
            if ack.error.is_empty() {
                agent.acknowledged = ack.version;
            }
            agent.last_error = clip(&ack.error);
            agent.roots_id.clone_from(&ack.bundle_id);
            agent.certificates = clip_certificates(&ack.certificates);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.agents.known.lock();
        if let Some(agent) = known.get_mut(&self.node).filter(|agent| agent.newest == self.number) {
            change(agent);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(agent) = self.agents.known.lock().get_mut(&self.node) {
            agent.streams = agent.streams.saturating_sub(1);
        }
    }
}

fn clip(text: &str) -> String {
    let end =
        text.char_indices().map(|(i, c)| i + c.len_utf8()).take_while(|end| *end <= MAX_TEXT_BYTES).last();
    text[..end.unwrap_or(0)].to_owned()
}

fn clip_certificates(certificates: &[proto::CertificateInfo]) -> Vec<proto::CertificateInfo> {
    let clipped = |c: &proto::CertificateInfo| proto::CertificateInfo {
        spiffe_id: clip(&c.spiffe_id),
        not_after_unix: c.not_after_unix,
    };
    certificates.iter().take(MAX_CERTIFICATES).map(clipped).collect()
}
