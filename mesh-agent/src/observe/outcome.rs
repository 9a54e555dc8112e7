//! How a connection ended, in the three forms that people ask for: a coarse result, one word (the `response_flags` of
//! log and metrics), and a sentence.

use std::io;

use mesh_core::authorize::DenyReason;
use mesh_core::model::WorkloadUid;
use mesh_core::route::NoRoute;

use crate::authorize::{CutReason, Denial};
use crate::control::LookupError;
use crate::identify::HandshakeFailure;
use crate::route::RouteError;
use crate::transport::{End, OpenError, Refusal, RefusalCode};

/// The word for a client that did not wait for its answer.
const GAVE_UP: &str = "client_gave_up";

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `ok`, `denied`, `failed`, `reset`, `cut` or `aborted`.
    pub result: &'static str,
    /// One word; `-` when all went well.
    pub flags: &'static str,
    /// For people; empty when all went well.
    pub reason: String,
    /// The policy decision of this agent that ended it.
    pub denied: Option<DenyReason>,
}

impl Outcome {
    fn new(result: &'static str, flags: &'static str, reason: impl ToString) -> Self {
        Self { result, flags, reason: reason.to_string(), denied: None }
    }

    /// FIN in both directions.
    pub fn ok() -> Self {
        Self::new("ok", "-", "")
    }

    /// The connection's task ended without a word: the agent stopped, or a defect.
    pub fn aborted() -> Self {
        Self::new("aborted", "aborted", "the agent gave the connection up")
    }

    /// The client ended its `connect()` before it was answered.
    pub fn gave_up() -> Self {
        Self::new("reset", GAVE_UP, "")
    }

    /// Of a client that gave up, the failure of the try before is what it waited for.
    #[must_use]
    pub fn explained_by(self, before: Option<Self>) -> Self {
        match before {
            Some(before) if self.flags == GAVE_UP => before,
            _ => self,
        }
    }

    /// The pod at the source is not in the snapshot.
    pub fn unknown_source(pod: &WorkloadUid) -> Self {
        Self::new("failed", "unknown_source", format_args!("the pod {pod} is not in this agent's snapshot"))
    }

    /// There is no certificate for a local identity.
    pub fn no_certificate(identity: &impl ToString) -> Self {
        Self::new(
            "failed",
            "no_certificate",
            format_args!("this agent holds no valid certificate for {}", identity.to_string()),
        )
    }

    /// A plain dial failed.
    pub fn dial(error: &io::Error) -> Self {
        Self::new("failed", io_word(error), error)
    }

    /// A plain dial took too long.
    pub fn dial_timeout() -> Self {
        Self::new("failed", "timeout", "the destination did not answer in time")
    }

    /// The handshake of a peer failed.
    pub fn handshake(failure: &HandshakeFailure) -> Self {
        Self::new("failed", failure.code(), failure)
    }

    /// The destination of an OPEN is none of this pod's applications.
    pub fn bad_destination(reason: impl ToString) -> Self {
        Self::new("failed", "bad_destination", reason)
    }

    /// The far agent refused.
    pub fn refused(refusal: &Refusal) -> Self {
        let (result, flags) = match refusal.code {
            RefusalCode::Denied => ("denied", "denied_by_destination"),
            RefusalCode::BadDestination => ("failed", "bad_destination"),
            RefusalCode::ConnectionRefused => ("failed", "connection_refused"),
            RefusalCode::Unreachable => ("failed", "unreachable"),
            RefusalCode::Draining => ("failed", "draining"),
            RefusalCode::Overloaded => ("failed", "overloaded"),
        };
        let reason = match refusal.message.as_str() {
            "" => format!("the destination's agent refused: {}", refusal.code.code()),
            message => format!("the destination's agent refused: {message}"),
        };
        Self::new(result, flags, reason)
    }

    /// The relay's end. `near` and `far` name what a reset of each side is called.
    pub fn of_end(end: &End, near: &'static str, far: &'static str) -> Self {
        match end {
            End::Finished => Self::ok(),
            End::ResetByNear => Self::new("reset", near, ""),
            End::ResetByFar => Self::new("reset", far, ""),
            End::TunnelLost(reason) => Self::new("failed", "tunnel_lost", reason),
            End::Cut(reason) => Self::from(reason),
            End::Refused { refusal, .. } => Self::refused(refusal),
        }
    }
}

/// The word for an error of a dial.
pub(super) fn io_word(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection_refused",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::TimedOut => "timeout",
        _ => "dial_failed",
    }
}

impl From<&Denial> for Outcome {
    fn from(denial: &Denial) -> Self {
        let Denial(reason) = denial;
        Self { denied: Some(reason.clone()), ..Self::new("denied", reason.code(), reason) }
    }
}

impl From<&CutReason> for Outcome {
    fn from(cut: &CutReason) -> Self {
        let denied = match cut {
            CutReason::Denied(reason) => Some(reason.clone()),
            CutReason::PodGone | CutReason::Drain | CutReason::IdentityEnded => None,
        };
        Self { denied, ..Self::new("cut", cut.code(), cut) }
    }
}

impl From<&RouteError> for Outcome {
    fn from(error: &RouteError) -> Self {
        let flags = match error {
            RouteError::NoRoute(NoRoute::NoEndpoint { .. }) => "no_endpoint",
            RouteError::NoRoute(NoRoute::NoSuchPort { .. }) => "no_such_port",
            RouteError::NoRoute(NoRoute::NotLoaded(_)) => "not_loaded",
            RouteError::Lookup(LookupError::Timeout(_)) => "lookup_timeout",
            RouteError::Lookup(_) => "lookup_refused",
        };
        Self::new("failed", flags, error)
    }
}

impl From<&OpenError> for Outcome {
    fn from(error: &OpenError) -> Self {
        let flags = match error {
            OpenError::Dial { source, .. } => io_word(source),
            other => other.code(),
        };
        Self::new("failed", flags, error)
    }
}
