//! The client's side of an outbound connection: accepted already, or still waiting in `connect()`. A [`Failure`] comes in
//! and the client is told; a waiting one may ask again.

use std::future::Future;
use std::io;
use std::pin::Pin;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::net::TcpStream;

use crate::accept;
use crate::authorize::Denial;
use crate::intercept::{Answer, Held, Missing};
use crate::observe::Outcome;
use crate::route::RouteError;
use crate::transport::{OpenError, Refusal, RefusalCode};

use mesh_core::route::NoRoute;

/// The client's side. Nothing of it has reached an application.
pub(super) enum Near {
    /// The client is connected to the agent.
    Accepted {
        /// Its socket.
        io: TcpStream,
        /// What was read from it already.
        replay: Bytes,
    },
    /// The client waits.
    Held(Held),
}

/// Why a connection was not carried, and what a waiting client is told.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    pub(super) answer: Answer,
    /// The endpoint is not what the snapshot says: a moment later it may be, or the snapshot another.
    pub(super) outdated: bool,
}

impl Near {
    /// Does `work` for as long as the client waits; `None`: it waits no longer. Pinned by the caller, so that a connection's
    /// memory holds it once.
    pub(super) async fn while_waiting<T>(&self, work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        match self {
            // A reset of an accepted client is found when its bytes are carried.
            Self::Accepted { .. } => Some(work.await),
            Self::Held(held) => tokio::select! {
                biased;
                done = work => Some(done),
                () = held.gone() => None,
            },
        }
    }

    /// Tells the client. It comes back when it was told nothing and asks once more.
    pub(super) async fn fail(self, answer: Answer) -> Option<Self> {
        let mut held = match self {
            Self::Accepted { io, .. } => {
                accept::reset(io);
                return None;
            }
            Self::Held(held) => held,
        };
        loop {
            if let Err(error) = held.answer(answer) {
                tracing::warn!(client = %held.client(), ?answer, %error, "a waiting client was not answered");
            }
            // A client whose socket is busy at that moment misses the answer, and sends its SYN again.
            if !held.asks_again().await {
                return None;
            }
            if answer == Answer::Silence {
                return Some(Self::Held(held));
            }
        }
    }
}

impl Failure {
    fn new(outcome: Outcome, answer: Answer) -> Self {
        Self { outcome, answer, outdated: false }
    }

    /// It will not do better at another time.
    pub(super) fn refused(outcome: Outcome) -> Self {
        Self::new(outcome, Answer::Refused)
    }

    /// It may do better when the client asks again.
    pub(super) fn passing(outcome: Outcome) -> Self {
        Self::new(outcome, Answer::Silence)
    }

    /// A plain dial failed.
    pub(super) fn dial(error: &io::Error) -> Self {
        Self::new(Outcome::dial(error), of_io(error))
    }

    /// After this one, of another endpoint: where one was silent the client asks again, for that one may answer yet.
    pub(super) fn then(self, next: Self) -> Self {
        let answer = if self.answer == Answer::Silence { Answer::Silence } else { next.answer };
        Self { answer, ..next }
    }

    /// The far agent refused.
    pub(super) fn far(refusal: &Refusal) -> Self {
        let answer = match refusal.code {
            RefusalCode::Unreachable => Answer::Unreachable(Missing::Host),
            _ => Answer::Refused,
        };
        Self::new(Outcome::refused(refusal), answer)
    }
}

impl From<&RouteError> for Failure {
    fn from(error: &RouteError) -> Self {
        let answer = match error {
            RouteError::NoRoute(NoRoute::NoEndpoint { .. } | NoRoute::NoSuchPort { .. }) => Answer::Refused,
            RouteError::NoRoute(NoRoute::NotLoaded(_)) | RouteError::Lookup(_) => Answer::Silence,
        };
        Self::new(Outcome::from(error), answer)
    }
}

impl From<&Denial> for Failure {
    fn from(denial: &Denial) -> Self {
        Self::refused(Outcome::from(denial))
    }
}

impl From<&OpenError> for Failure {
    fn from(error: &OpenError) -> Self {
        let answer = match error {
            OpenError::Dial { source, .. } => of_io(source),
            OpenError::Unanswered { .. } | OpenError::Timeout { .. } => Answer::Silence,
            OpenError::Handshake { .. } | OpenError::WrongIdentity { .. } => Answer::Refused,
        };
        // An enrolled pod's tunnel port answers or is silent, whatever its agent does: to its own node this is none.
        let outdated = matches!(error, OpenError::Dial { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused);
        Self { outdated, ..Self::new(Outcome::from(error), answer) }
    }
}

/// What plain TCP would have told the client of this error.
fn of_io(error: &io::Error) -> Answer {
    match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED | Errno::CONNRESET) => Answer::Refused,
        Some(Errno::NETUNREACH) => Answer::Unreachable(Missing::Network),
        Some(Errno::HOSTUNREACH | Errno::ACCESS | Errno::PERM | Errno::INVAL) => {
            Answer::Unreachable(Missing::Host)
        }
        // Time-outs, and what this agent is short of: the client's next SYN is another try.
        _ => Answer::Silence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_client_is_told_what_plain_tcp_would_have_told_it() {
        let of = |errno: Errno| of_io(&io::Error::from(errno));
        assert_eq!(of(Errno::CONNREFUSED), Answer::Refused);
        assert_eq!(of(Errno::NETUNREACH), Answer::Unreachable(Missing::Network));
        assert_eq!(of(Errno::HOSTUNREACH), Answer::Unreachable(Missing::Host));
        assert_eq!(of(Errno::TIMEDOUT), Answer::Silence);
        assert_eq!(of(Errno::MFILE), Answer::Silence);
    }
}
