//! Discovery: one delta stream for each agent. It says hello, asks for addresses and acknowledges; it is sent what changed.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::proto::discovery_server::Discovery;
use mesh_api::proto::{self, agent_message::Kind};
use mesh_api::{addr, encode};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::agents::Session;
use super::caller::NodeCaller;
use super::{Agents, Callers, CompiledFeed, TlsState, View};
use crate::metrics::Metrics;

/// How many addresses one agent may hold.
const MAX_ADDRESSES: usize = 200_000;
/// An agent that takes no message for so long is let go.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// An agent that does not say hello for so long is let go.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone, Debug)]
pub(super) struct DiscoveryService {
    pub(super) callers: Callers,
    pub(super) compiled: CompiledFeed,
    pub(super) tls: watch::Receiver<Arc<TlsState>>,
    pub(super) agents: Arc<Agents>,
    pub(super) metrics: Arc<Metrics>,
}

type Outbound = mpsc::Sender<Result<proto::ControllerMessage, Status>>;

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type StreamStream = Pin<Box<dyn Stream<Item = Result<proto::ControllerMessage, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<proto::AgentMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let caller = self.callers.node(&request).map_err(|s| self.metrics.rejected("Stream", s))?;
        let inbound = request.into_inner();
        let (outbound, messages) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move { service.serve(caller, inbound, outbound).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}

impl DiscoveryService {
    async fn serve(
        self,
        caller: NodeCaller,
        mut inbound: Streaming<proto::AgentMessage>,
        outbound: Outbound,
    ) {
        self.metrics.streams.inc();
        let ended = match hello(&mut inbound).await {
            Ok(hello) => {
                tracing::info!(node = %caller.node, agent = %hello.agent_version, "agent connected");
                let session = self.agents.connect(&caller.node, &hello);
                let stream = StreamTask {
                    callers: self.callers,
                    compiled: self.compiled,
                    tls: self.tls,
                    metrics: Arc::clone(&self.metrics),
                    view: View::new(Arc::clone(&caller.node)),
                    caller,
                    session,
                    outbound: outbound.clone(),
                };
                stream.run(hello, &mut inbound).await
            }
            Err(status) => Err(status),
        };
        self.metrics.streams.dec();
        if let Err(status) = ended {
            let status = self.metrics.rejected("Stream", status);
            // The agent may be gone already; then nobody needs to be told.
            outbound.try_send(Err(status)).ok();
        }
    }
}

async fn hello(inbound: &mut Streaming<proto::AgentMessage>) -> Result<proto::Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    match first.map_err(|_| Status::deadline_exceeded("no Hello"))?? {
        Some(proto::AgentMessage { kind: Some(Kind::Hello(hello)) }) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be Hello")),
    }
}

struct StreamTask {
    callers: Callers,
    compiled: CompiledFeed,
    tls: watch::Receiver<Arc<TlsState>>,
    metrics: Arc<Metrics>,
    view: View,
    caller: NodeCaller,
    session: Session,
    outbound: Outbound,
}

impl StreamTask {
    /// Runs until the agent goes (`Ok`), or is let go.
    async fn run(
        mut self,
        hello: proto::Hello,
        inbound: &mut Streaming<proto::AgentMessage>,
    ) -> Result<(), Status> {
        self.subscribe(&hello.addresses)?;
        let gone = || Status::unavailable("the controller is stopping");
        self.compiled.wait_for(Option::is_some).await.map_err(|_| gone())?;
        self.tls.mark_unchanged();
        self.compiled.mark_unchanged();
        self.push(true).await?;
        let left = self.caller.not_after.duration_since(SystemTime::now()).unwrap_or_default();
        let expiry = tokio::time::sleep(left);
        tokio::pin!(expiry);
        loop {
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => self.take(message).await?,
                    Ok(None) => return Ok(()),
                    Err(status) => {
                        tracing::debug!(node = %self.caller.node, %status, "stream ended");
                        return Ok(());
                    }
                },
                changed = self.compiled.changed() => {
                    changed.map_err(|_| gone())?;
                    self.push(false).await?;
                }
                changed = self.tls.changed() => {
                    changed.map_err(|_| gone())?;
                    self.callers.still(&self.caller)?;
                    self.push(true).await?;
                }
                () = &mut expiry => return Err(Status::unauthenticated("the node certificate has expired")),
                () = self.outbound.closed() => return Ok(()),
            }
        }
    }

    async fn take(&mut self, message: proto::AgentMessage) -> Result<(), Status> {
        match message.kind {
            Some(Kind::Subscribe(subscribe)) => {
                self.subscribe(&subscribe.addresses)?;
                self.push(false).await
            }
            Some(Kind::Unsubscribe(unsubscribe)) => {
                self.view.unsubscribe(parse(&unsubscribe.addresses)?);
                self.push(false).await
            }
            Some(Kind::Ack(ack)) => {
                if !ack.error.is_empty() {
                    self.metrics.nacks.inc();
                    let (node, version) = (&self.caller.node, ack.version);
                    tracing::warn!(%node, version, error = %ack.error, "agent refused a delta");
                }
                self.session.acknowledged(&ack);
                Ok(())
            }
            Some(Kind::Hello(_)) => Err(Status::invalid_argument("Hello comes once")),
            // A kind that a newer agent knows.
            None => Ok(()),
        }
    }

    fn subscribe(&mut self, addresses: &[Vec<u8>]) -> Result<(), Status> {
        if self.view.subscribe(parse(addresses)?, MAX_ADDRESSES) {
            return Ok(());
        }
        Err(Status::resource_exhausted(format!("more than {MAX_ADDRESSES} addresses")))
    }

    /// Sends what changed, and the trust bundle if asked to.
    async fn push(&mut self, with_bundle: bool) -> Result<(), Status> {
        let Some(compiled) = self.compiled.borrow_and_update().clone() else { return Ok(()) };
        let delta = self.view.advance(&compiled);
        if delta.is_none() && !with_bundle {
            return Ok(());
        }
        let mut message = match &delta {
            Some(delta) => encode::delta(delta, &compiled.trust_domain),
            None => proto::ControllerMessage {
                version: compiled.version,
                trust_domain: compiled.trust_domain.to_string(),
                ..Default::default()
            },
        };
        if with_bundle {
            message.trust_bundle = Some(bundle(&self.tls.borrow_and_update()));
        }
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.outbound.send(Ok(message))).await;
        match sent {
            Ok(Ok(())) => self.session.sent(compiled.version),
            // The agent is gone; the loop sees it next.
            Ok(Err(_)) => {}
            Err(_) => return Err(Status::deadline_exceeded("the agent takes no messages")),
        }
        Ok(())
    }
}

/// The trust bundle as it is sent.
pub(super) fn bundle(tls: &TlsState) -> proto::TrustBundle {
    proto::TrustBundle {
        roots_der: tls.roots.iter().map(|root| root.to_vec()).collect(),
        issuer_der: tls.issuer.to_vec(),
        id: tls.roots_id.to_vec(),
    }
}

fn parse(addresses: &[Vec<u8>]) -> Result<Vec<IpAddr>, Status> {
    let parsed: Option<Vec<_>> = addresses.iter().map(|bytes| addr::from_bytes(bytes)).collect();
    parsed.ok_or_else(|| Status::invalid_argument("an address has 4 or 16 bytes"))
}
