//! How one connection on a leased tunnel connection came to its end. In: what either side, or the tunnel's TLS, did. Out: the one
//! reason that the caller goes by.

use std::io;

use crate::authorize::CutReason;
use crate::identify::HandshakeFailure;
use crate::transport::Refusal;

/// Why the relay stopped.
#[derive(Debug)]
pub(super) enum Finish {
    /// FIN in both directions, everything delivered.
    Clean,
    /// The near socket was reset.
    NearReset,
    /// RESET came.
    FarReset,
    /// The tunnel broke.
    Lost(String),
    /// The tunnel broke and the far side cannot have read OPEN.
    Unread(String),
    /// REFUSED came.
    Refused(Refusal),
    /// The agent ended it.
    Cut(CutReason),
}

/// The text of a tunnel's loss.
pub(super) fn lost(error: &io::Error) -> String {
    match HandshakeFailure::from_io(error) {
        HandshakeFailure::Closed(text) => text,
        tls => tls.to_string(),
    }
}
