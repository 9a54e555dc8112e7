//! What came of one endpoint: whether the connection is over, another endpoint may do, or none would do better. In: the
//! transport's answers. Out: an [`Attempt`].

use std::io;

use crate::carrier::Carrier;
use crate::identify::HandshakeFailure;
use crate::intercept::Held;
use crate::observe::{Outcome, Record};
use crate::transport::{End, OpenError, Refusal, RefusalCode, Relayed};

use super::near::{Failure, Near};

/// What a reset is called here: the near socket is the client's.
pub(super) const NEAR: &str = "reset_by_client";
pub(super) const FAR: &str = "reset_by_server";

/// What came of one endpoint.
pub(super) enum Attempt {
    /// The connection is over.
    Over(Outcome),
    /// Nothing was sent; another endpoint may do.
    Elsewhere(Near, Failure),
    /// Nothing was sent, and no other endpoint would do better.
    Hopeless(Near, Failure),
}

/// Connecting back failed: the client is gone, or this agent is short of something and the client asks again.
pub(super) fn not_connected(held: Held, error: &io::Error) -> Attempt {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return Attempt::Over(Outcome::gave_up());
    }
    tracing::warn!(client = %held.client(), %error, "a waiting client could not be connected");
    Attempt::Hopeless(Near::Held(held), Failure::passing(Outcome::dial(error)))
}

/// No tunnel came to be: whose fault it is decides whether another endpoint may do.
pub(super) fn open_failed(carrier: &Carrier, near: Near, error: &OpenError) -> Attempt {
    let failure = Failure::from(error);
    match error {
        OpenError::Dial { source, .. } if is_ours(source) => Attempt::Hopeless(near, failure),
        OpenError::Dial { .. } | OpenError::Unanswered { .. } | OpenError::Timeout { .. } => {
            Attempt::Elsewhere(near, failure)
        }
        OpenError::Handshake { reason, .. } => {
            carrier.ctx.metrics.handshake_failed(reason.code());
            let ours = matches!(reason, HandshakeFailure::OwnExpired | HandshakeFailure::Config(_));
            if ours { Attempt::Hopeless(near, failure) } else { Attempt::Elsewhere(near, failure) }
        }
        OpenError::WrongIdentity { .. } => {
            carrier.ctx.metrics.handshake_failed(error.code());
            Attempt::Elsewhere(near, failure)
        }
    }
}

/// Out of file descriptors, ports or memory: the next endpoint would meet the same.
fn is_ours(error: &io::Error) -> bool {
    let exhausted = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOBUFS];
    rustix::io::Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// Notes what was carried; a refusal before the first byte allows another endpoint.
pub(super) fn finish(relayed: Relayed, record: &mut Record) -> Attempt {
    let outcome = Outcome::of_end(&relayed.end, NEAR, FAR);
    match relayed.end {
        End::Refused { refusal, near: io, replay } => refused(Near::Accepted { io, replay }, &refusal),
        _ => {
            record.carried(relayed.to_near, relayed.from_near);
            Attempt::Over(outcome)
        }
    }
}

/// The far agent refused before the first byte.
pub(super) fn refused(near: Near, refusal: &Refusal) -> Attempt {
    let failure = Failure::far(refusal);
    match refusal.code {
        RefusalCode::Denied | RefusalCode::BadDestination => Attempt::Hopeless(near, failure),
        RefusalCode::ConnectionRefused
        | RefusalCode::Unreachable
        | RefusalCode::Draining
        | RefusalCode::Overloaded => Attempt::Elsewhere(near, failure),
    }
}
