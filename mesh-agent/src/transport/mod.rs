//! Stage 6: dial, mutual TLS, tunnel, pool, copy. Two transports behind one seam, chosen by ALPN: `ferromesh/1` and `h2`
//! (HBONE). Everything here lives on one worker thread (`spawn_local`).

mod buf;
mod dialer;
mod dialled;
pub mod hbone;
mod key;
pub mod lease;
pub mod near;
pub mod plain;
mod seldom;
mod serve;
mod tls_io;
mod tunnel;
mod watch;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_common::PORT_MTLS;
use mesh_core::identity::SpiffeId;
use mesh_core::model::Workload;
use tokio::net::TcpStream;

use crate::authorize::CutReason;
use crate::identify::{HandshakeFailure, Svid};
use crate::intercept::PodNet;

pub use dialer::{Connect, Dialer, DialerSettings, PodConnect, TransportPreference};
pub use serve::{Acceptor, AcceptorSettings, Drain, DrainHandle, ServeError};
pub use tunnel::{NotOpened, Opened, Tunnel};
pub use watch::{Counters, Meter, Watch};

/// ALPN of leased connections.
pub const ALPN_FERROMESH: &[u8] = b"ferromesh/1";
/// ALPN of HBONE.
pub const ALPN_HBONE: &[u8] = b"h2";

/// Which transport carried a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Plain TCP.
    Plain,
    /// `ferromesh/1`.
    Ferromesh,
    /// HTTP/2 CONNECT.
    Hbone,
}

/// What OPEN and CONNECT carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The pod address and port of the application.
    pub destination: SocketAddr,
    /// The client's address, as the source agent saw it.
    pub client: SocketAddr,
}

/// Where a tunnel goes, and as whom.
#[derive(Clone, Debug)]
pub struct Target {
    /// The pod that asks: the tunnel is dialled in its network namespace.
    pub source_pod: Arc<PodNet>,
    /// Its SVID.
    pub svid: Arc<Svid>,
    /// The workload behind the endpoint: the server must prove exactly its identity.
    pub workload: Arc<Workload>,
    /// The application there, and our client.
    pub open: Open,
    /// How long TCP may take to connect, where that is less than the dialler's own limit.
    pub patience: Duration,
}

impl Target {
    /// The far agent's mutual TLS port, in the network namespace of the destination.
    pub(crate) fn agent(&self) -> SocketAddr {
        SocketAddr::new(self.open.destination.ip(), PORT_MTLS)
    }
}

/// Why the far agent refused an OPEN or CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// For logs; may be empty.
    pub message: String,
}

/// Kinds of [`Refusal`]; the numbers are on the wire.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalCode {
    /// Policy denies it. HBONE: 403.
    Denied = 1,
    /// The destination is not an address of this pod, or a port of the agent. HBONE: 400.
    BadDestination = 2,
    /// The application refused the connection. HBONE: 503 with `x-ferromesh-refusal: connection-refused`.
    ConnectionRefused = 3,
    /// The application could not be reached. HBONE: 503.
    Unreachable = 4,
    /// The agent drains or the pod is leaving. HBONE: 503 with `x-ferromesh-refusal: draining`.
    Draining = 5,
    /// A limit was reached. HBONE: 429.
    Overloaded = 6,
}

impl RefusalCode {
    /// The kind with this number.
    pub fn from_wire(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Denied,
            2 => Self::BadDestination,
            3 => Self::ConnectionRefused,
            4 => Self::Unreachable,
            5 => Self::Draining,
            6 => Self::Overloaded,
            _ => return None,
        })
    }

    /// The kind as one word, for metrics and response flags, and as HBONE sends it in `x-ferromesh-refusal`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::BadDestination => "bad-destination",
            Self::ConnectionRefused => "connection-refused",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
            Self::Overloaded => "overloaded",
        }
    }
}

/// Why no tunnel came to be.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// TCP to the far agent failed.
    #[error("dialling {address}: {source}")]
    Dial {
        /// The far agent.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TLS handshake failed (no common root, expired, no certificate, reset).
    #[error("TLS handshake with {address}: {reason}")]
    Handshake {
        /// The far agent.
        address: SocketAddr,
        /// What failed.
        reason: HandshakeFailure,
    },
    /// The far side proved another identity than the endpoint's.
    #[error("{address} proved another identity than {expected}: {reason}")]
    WrongIdentity {
        /// The far agent.
        address: SocketAddr,
        /// Who was to be there.
        expected: SpiffeId,
        /// What was found.
        reason: String,
    },
    /// Nobody answered the SYN: the far side is gone, or something between drops what goes to this port.
    #[error(
        "{address} does not answer: is its node there, and is TCP {port} let through (NetworkPolicy, firewall)?",
        port = address.port()
    )]
    Unanswered {
        /// The far agent.
        address: SocketAddr,
    },
    /// The handshake took longer than the limit.
    #[error("{address} did not answer in time")]
    Timeout {
        /// The far agent.
        address: SocketAddr,
    },
}

impl OpenError {
    /// The reason as one word, for metrics and response flags.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Dial { .. } => "dial_failed",
            Self::Handshake { reason, .. } => reason.code(),
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::Unanswered { .. } => "tunnel_unanswered",
            Self::Timeout { .. } => "timeout",
        }
    }
}

/// How a relayed connection ended.
#[derive(Debug)]
pub enum End {
    /// FIN in both directions.
    Finished,
    /// The near side (the socket given to `relay`) was reset.
    ResetByNear,
    /// The far side sent RESET.
    ResetByFar,
    /// The tunnel broke (lost TLS connection, keepalive time-out, protocol error).
    TunnelLost(String),
    /// Ended by this agent.
    Cut(CutReason),
    /// The far agent refused; nothing reached an application. `near` and `replay` allow another try elsewhere.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The client's connection, still open.
        near: TcpStream,
        /// What had been read from it.
        replay: Bytes,
    },
}

/// What a relayed connection carried, and how it ended. Directions are as the near socket sees them.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes read from the near socket and sent.
    pub from_near: u64,
    /// Bytes written to the near socket.
    pub to_near: u64,
    /// How it ended.
    pub end: End,
}

/// An admitted inbound connection: the application's socket, and how to end it and tell of it.
#[derive(Debug)]
pub struct Admitted<R> {
    /// Connected to the application.
    pub app: TcpStream,
    /// Ends it from outside, and counts it.
    pub watch: Watch,
    /// Given back with the outcome.
    pub record: R,
}

/// Decides about each OPEN and CONNECT of an inbound tunnel (authorization, dialling the application, one record).
pub trait Admit {
    /// Travels with the connection and is given to [`Admit::ended`]; writes its record on drop if never given back.
    type Record;

    /// The handshake is over: the peer has proven who it is.
    fn proven(&self) {}

    /// `peer` was proven by the certificate.
    fn admit(
        &self,
        peer: &SpiffeId,
        protocol: Protocol,
        open: Open,
    ) -> impl Future<Output = Result<Admitted<Self::Record>, Refusal>>;

    /// A CONNECT was refused because it names no destination that could be admitted.
    fn unreadable(&self, peer: &SpiffeId, protocol: Protocol, reason: &str);

    /// The connection is over.
    fn ended(&self, record: Self::Record, relayed: Relayed);
}
