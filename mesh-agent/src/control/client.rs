//! The discovery client: one delta stream to the controller, opened again with jittered waits for as long as the agent
//! lives. Messages come in; each is applied whole and published, or refused whole (an `Ack` with the error) while the
//! last good snapshot stays.
//!
//! After a refusal the later deltas have nothing to build on, so they are left aside until the controller sends a reset,
//! or the stream is opened anew.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::decode::{self, DecodeError};
use mesh_api::encode;
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::discovery_client::DiscoveryClient;
use mesh_api::proto::{Ack, AgentMessage, CertificateInfo, ControllerMessage, Hello, Subscribe, Unsubscribe};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::bundle::Bundle;
use super::certs::unix_seconds;
use super::dial::explain_status;
use super::lookup::Changes;
use super::{Backoff, ControlMetrics, ControlStatus, Controller, Lookup, Published};
use crate::identify::SvidStore;

const OPEN_LIMIT: Duration = Duration::from_secs(10);
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// New certificates are told together: at a start there is one for each identity.
const REPORT_DELAY: Duration = Duration::from_millis(500);
/// Messages to the controller that wait for the network.
const OUTBOX: usize = 64;
/// The largest message that is taken: about 100,000 endpoints.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Why a delta is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(
        "the controller is of the trust domain {theirs:?}, this agent of {ours:?}; a trust domain never changes under an agent"
    )]
    TrustDomain { ours: String, theirs: String },
    #[error("the first message of a stream has to be a reset")]
    NoReset,
    #[error("the trust bundle: {0}")]
    TrustBundle(String),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Rpc(String),
    #[error("the controller did not open the stream within {OPEN_LIMIT:?}")]
    OpenTimeout,
    #[error("the controller closed the stream")]
    Closed,
    #[error("the controller does not read what this agent sends")]
    Stuck,
    #[error("asking for everything again after a refused delta: {0}")]
    Refused(String),
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc(explain_status(&status))
    }
}

/// The discovery client.
#[derive(Debug)]
pub(super) struct Discovery {
    pub(super) controller: Arc<Controller>,
    pub(super) published: Published,
    pub(super) svids: Arc<SvidStore>,
    pub(super) bundle: Bundle,
    pub(super) lookup: Lookup,
    pub(super) status: Arc<ControlStatus>,
    pub(super) metrics: ControlMetrics,
    pub(super) backoff: Backoff,
}

/// What one stream remembers.
struct Session {
    outbox: mpsc::Sender<AgentMessage>,
    /// A reset was applied on this stream.
    begun: bool,
    /// The version that was last acknowledged.
    version: u64,
    refused: Option<Refusal>,
    /// When the controller is told of new certificates.
    report: Option<Instant>,
}

struct Refusal {
    error: String,
    /// When the stream is given up.
    deadline: Instant,
}

impl Discovery {
    /// Keeps a stream up, for ever.
    pub(super) async fn run(mut self) {
        loop {
            let Err(ended) = self.stream().await;
            self.metrics.connected.set(0);
            self.metrics.streams_ended.inc();
            self.status.ended(ended.to_string());
            let wait = self.backoff.wait();
            tracing::warn!(error = %ended, ?wait, "the discovery stream ended; the last good snapshot stays");
            sleep(wait).await;
        }
    }

    async fn stream(&mut self) -> Result<std::convert::Infallible, Ended> {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut session = Session { outbox, begun: false, version: 0, refused: None, report: None };
        let hello = Hello {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: self.lookup.begin().into_iter().map(encode::address).collect(),
            certificates: self.certificates(),
        };
        session.send(Kind::Hello(hello)).await?;
        let mut client =
            DiscoveryClient::new(self.controller.channel()).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let opened = timeout(OPEN_LIMIT, client.stream(ReceiverStream::new(messages)));
        let mut inbound: Streaming<ControllerMessage> =
            opened.await.map_err(|_| Ended::OpenTimeout)??.into_inner();
        self.metrics.connected.set(1);
        self.metrics.streams.inc();
        self.status.connected();
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let message = message?.ok_or(Ended::Closed)?;
                    self.take(message, &mut session).await?;
                }
                changes = self.lookup.changes() => session.tell(changes).await?,
                error = session.given_up() => return Err(Ended::Refused(error)),
                () = self.status.certificates_changed.notified() => {
                    session.report.get_or_insert(Instant::now() + REPORT_DELAY);
                }
                () = session.report_due() => {
                    session.report = None;
                    self.report(&session).await?;
                }
            }
        }
    }

    /// Applies one message or refuses it, and says so.
    async fn take(&mut self, message: ControllerMessage, session: &mut Session) -> Result<(), Ended> {
        if session.refused.is_some() && !message.reset {
            return Ok(());
        }
        let version = message.version;
        session.version = version;
        let outcome =
            if session.begun || message.reset { self.apply(message) } else { Err(Refused::NoReset) };
        let error = match outcome {
            Ok(()) => {
                session.begun = true;
                session.refused = None;
                self.backoff.reset();
                self.metrics.deltas_applied.inc();
                self.metrics.snapshot_version.set(i64::try_from(version).unwrap_or(i64::MAX));
                self.status.applied();
                String::new()
            }
            Err(refused) => {
                let error = refused.to_string();
                tracing::error!(version, %error, "refused a delta; the last good snapshot stays");
                self.metrics.deltas_refused.inc();
                self.status.refused(error.clone());
                let deadline = Instant::now() + self.backoff.wait();
                session.refused = Some(Refusal { error: error.clone(), deadline });
                error
            }
        };
        session.send(Kind::Ack(self.ack(version, error))).await
    }

    fn ack(&self, version: u64, error: String) -> Ack {
        Ack { version, error, certificates: self.certificates(), bundle_id: self.bundle.id() }
    }

    /// Tells of new certificates by acknowledging the same version again.
    async fn report(&self, session: &Session) -> Result<(), Ended> {
        // After a refusal the next stream's Hello tells.
        if !session.begun || session.refused.is_some() {
            return Ok(());
        }
        session.send(Kind::Ack(self.ack(session.version, String::new()))).await
    }

    fn apply(&self, message: ControllerMessage) -> Result<(), Refused> {
        let before = self.published.load();
        let ours = before.trust_domain.as_str();
        // Later deltas may leave the name out; the first may not.
        if message.trust_domain != ours && (message.reset || !message.trust_domain.is_empty()) {
            return Err(Refused::TrustDomain { ours: ours.to_owned(), theirs: message.trust_domain });
        }
        let mut message = message;
        let bundle = message.trust_bundle.take();
        let delta = decode::delta(message)?;
        if let Some(bundle) = bundle {
            self.bundle.adopt(bundle, &self.svids).map_err(Refused::TrustBundle)?;
        }
        self.published.publish(before.apply(delta));
        Ok(())
    }

    fn certificates(&self) -> Vec<CertificateInfo> {
        let held = self.svids.all();
        let mut all: Vec<_> = held
            .values()
            .map(|svid| CertificateInfo {
                spiffe_id: svid.identity.to_string(),
                not_after_unix: unix_seconds(svid.not_after),
            })
            .collect();
        all.sort_by(|a, b| a.spiffe_id.cmp(&b.spiffe_id));
        all
    }
}

impl Session {
    async fn send(&self, kind: Kind) -> Result<(), Ended> {
        let message = AgentMessage { kind: Some(kind) };
        match timeout(SEND_LIMIT, self.outbox.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Closed),
            Err(_) => Err(Ended::Stuck),
        }
    }

    async fn tell(&self, changes: Changes) -> Result<(), Ended> {
        let bytes = |list: Vec<std::net::IpAddr>| list.into_iter().map(encode::address).collect();
        if !changes.unsubscribe.is_empty() {
            self.send(Kind::Unsubscribe(Unsubscribe { addresses: bytes(changes.unsubscribe) })).await?;
        }
        if !changes.subscribe.is_empty() {
            self.send(Kind::Subscribe(Subscribe { addresses: bytes(changes.subscribe) })).await?;
        }
        Ok(())
    }

    async fn report_due(&self) {
        match self.report {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Resolves when a refused delta has waited long enough for a reset; never without one.
    async fn given_up(&self) -> String {
        match &self.refused {
            Some(refusal) => {
                sleep_until(refusal.deadline).await;
                refusal.error.clone()
            }
            None => std::future::pending().await,
        }
    }
}
