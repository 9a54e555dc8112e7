//! Agents without nodes: each joins as one does, holds a discovery stream, acknowledges what it is sent, and opens the stream
//! again when it breaks, with an agent's waits. In: nodes and the addresses that each asks for. Out: what came, and when.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_api::proto::admin_client::AdminClient;
use mesh_api::proto::agent_message::Kind;
use mesh_api::proto::certificate_authority_client::CertificateAuthorityClient;
use mesh_api::proto::discovery_client::DiscoveryClient;
use mesh_api::proto::{self, AgentMessage};
use mesh_api::{addr, proto::ControllerMessage};
use pem::Pem;
use prost::Message;
use rcgen::{CertificateParams, KeyPair};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// The name in the controller's certificate.
const SERVER_NAME: &str = "ferromesh-controller.ferromesh-system.svc";
/// How long a join token lives.
const TOKEN_SECONDS: u32 = 600;
/// The waits of an agent that has lost its stream, before jitter: the first and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How long an agent waits for its connection, and for its stream.
const LIMITS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));
/// The largest message.
const MAX_MESSAGE: usize = 64 << 20;

/// A message that came.
pub(super) struct Seen {
    pub(super) agent: usize,
    pub(super) at: Instant,
    pub(super) bytes: usize,
    pub(super) reset: bool,
    pub(super) resources: usize,
}

/// Where the controller is and whose word to take.
#[derive(Clone)]
pub(super) struct Controller {
    pub(super) address: String,
    pub(super) root: Vec<u8>,
    /// The administrator's certificate and key.
    pub(super) admin: (Vec<u8>, Vec<u8>),
}

impl Controller {
    async fn channel(&self, identity: Option<Identity>) -> Result<Channel> {
        let root = Certificate::from_pem(&self.root);
        let tls = ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(root);
        let tls = match identity {
            Some(identity) => tls.identity(identity),
            None => tls,
        };
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?.tls_config(tls)?;
        Ok(timeout(LIMITS.0, endpoint.connect()).await??)
    }

    /// Joins as the agents of these nodes.
    pub(super) async fn join(&self, nodes: Vec<String>) -> Result<Vec<Identity>> {
        let admin = Identity::from_pem(&self.admin.0, &self.admin.1);
        let mut admin = AdminClient::new(self.channel(Some(admin)).await?);
        let mut authority = CertificateAuthorityClient::new(self.channel(None).await?);
        let mut identities = Vec::with_capacity(nodes.len());
        for node in nodes {
            let wanted = proto::CreateJoinTokenRequest { node: node.clone(), ttl_seconds: TOKEN_SECONDS };
            let token = admin.create_join_token(wanted).await?.into_inner().token;
            let key = KeyPair::generate()?;
            let csr_der = CertificateParams::default().serialize_request(&key)?.der().to_vec();
            let signed = authority.join(proto::JoinRequest { node, token, csr_der }).await?.into_inner();
            let blocks = signed.chain_der.into_iter().map(|der| Pem::new("CERTIFICATE", der));
            let chain = pem::encode_many(&blocks.collect::<Vec<_>>());
            identities.push(Identity::from_pem(chain, key.serialize_pem()));
        }
        Ok(identities)
    }
}

/// An agent's stream, for as long as the task lives.
pub(super) async fn attend(
    controller: Controller,
    agent: usize,
    identity: Identity,
    addresses: Vec<IpAddr>,
    seen: mpsc::UnboundedSender<Seen>,
) {
    let mut wait = WAITS.0;
    // Waits are spread evenly over the agents instead of at random: the figures do not depend on luck.
    let jitter = |wait: Duration| wait / 2 + wait.mul_f64(0.5 * (agent % 97) as f64 / 97.0);
    loop {
        if let Ok((outbox, mut stream)) = open(&controller, identity.clone(), &addresses).await {
            while let Ok(Some(message)) = stream.message().await {
                wait = WAITS.0;
                let ack = proto::Ack { version: message.version, ..proto::Ack::default() };
                let told = outbox.send(AgentMessage { kind: Some(Kind::Ack(ack)) }).await;
                if told.is_err() || seen.send(note(agent, &message)).is_err() {
                    break;
                }
            }
        }
        tokio::time::sleep(jitter(wait)).await;
        wait = (wait * 2).min(WAITS.1);
    }
}

fn note(agent: usize, message: &ControllerMessage) -> Seen {
    Seen {
        agent,
        at: Instant::now(),
        bytes: message.encoded_len(),
        reset: message.reset,
        resources: message.upserts.len() + message.removes.len(),
    }
}

async fn open(
    controller: &Controller,
    identity: Identity,
    addresses: &[IpAddr],
) -> Result<(mpsc::Sender<AgentMessage>, Streaming<ControllerMessage>)> {
    let channel = controller.channel(Some(identity)).await?;
    let mut client = DiscoveryClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (outbox, messages) = mpsc::channel(8);
    let hello = proto::Hello {
        agent_version: "scale".into(),
        addresses: addresses.iter().map(|address| addr::to_bytes(*address)).collect(),
        certificates: Vec::new(),
    };
    outbox.send(AgentMessage { kind: Some(Kind::Hello(hello)) }).await.context("hello")?;
    let stream = timeout(LIMITS.1, client.stream(ReceiverStream::new(messages))).await??.into_inner();
    Ok((outbox, stream))
}
