//! The successor's side: ask the running agent, take its estate, and tell it when all of it is in use.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::wire::{Conversation, Kind};
use super::{Estate, HandoverError, Place, check_peer, estate, own_user};
use crate::intercept::Answering;

/// How long each step may take until the running agent answers.
const STEP: Duration = Duration::from_secs(10);

/// The running agent waits for this to be used or dropped; dropped, it goes on as if nobody had asked.
#[derive(Debug)]
pub struct Claim(Conversation);

/// Asks the agent that runs here for its estate. `Ok(None)`: there is none. It blocks.
pub fn claim(socket: &Path, place: &Place) -> Result<Option<(Claim, Estate)>, HandoverError> {
    claim_as(socket, place, own_user())
}

pub(super) fn claim_as(
    socket: &Path,
    place: &Place,
    user: u32,
) -> Result<Option<(Claim, Estate)>, HandoverError> {
    let stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(source) => return Err(HandoverError::io("asking the running agent")(source)),
    };
    check_peer(&stream, user)?;
    let mut conversation = Conversation::new(stream, STEP)?;
    conversation.greet()?;
    let hello =
        serde_json::to_vec(place).map_err(|e| HandoverError::Unexpected(format!("its own place: {e}")))?;
    conversation.send(Kind::Hello, &hello)?;
    conversation.greeted()?;
    let estate = estate::receive(&mut conversation)?;
    Ok(Some((Claim(conversation), estate)))
}

impl Claim {
    /// Tells the agent before that this one serves, and waits until the node's sockets are this one's alone; the held
    /// connections that the other still answers. It blocks.
    pub fn serving(mut self) -> Result<Answering, HandoverError> {
        self.0.send(Kind::Serving, &[])?;
        self.0.expect(Kind::Done).map(|keys| Answering::from_bytes(&keys))
    }
}
