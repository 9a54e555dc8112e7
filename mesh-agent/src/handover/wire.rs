//! The bytes of a handover: a preface with the version from either side, then frames (kind, 32-bit length, content), and
//! descriptors, each batch with one byte of its own. Blocking, with a time limit for each call. Lengths and counts that come
//! in are bounded before anything is allocated.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::HandoverError;

/// Version of everything in this folder; both ends must have the same.
pub(super) const VERSION: u8 = 1;
const MAGIC: [u8; 7] = *b"fm-hand";
/// Accompanies each batch of descriptors.
const BATCH: u8 = b'd';
/// Descriptors in one message; the kernel takes 253.
const BATCH_LEN: usize = 128;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The successor: who it is (JSON).
    Hello = 1,
    /// The running agent: no, and why (text).
    Refuse = 2,
    /// The running agent: what follows (JSON).
    Header = 3,
    /// Snapshot and trust bundle (the discovery protocol's message).
    Snapshot = 4,
    /// One SVID with its key.
    Svid = 5,
    /// The successor: it serves.
    Serving = 6,
    /// The running agent: the node's sockets are the successor's alone, and so are held connections, but for these
    /// ([`crate::intercept::Answering`]).
    Done = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Done, Header, Hello, Refuse, Serving, Snapshot, Svid};
        [Hello, Refuse, Header, Snapshot, Svid, Serving, Done].into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The longest content that is taken, in bytes.
    fn limit(self) -> usize {
        match self {
            Self::Snapshot => 512 << 20,
            Self::Header | Self::Done => 16 << 20,
            Self::Hello | Self::Svid => 64 << 10,
            Self::Refuse => 4 << 10,
            Self::Serving => 0,
        }
    }
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Conversation(UnixStream);

impl Conversation {
    /// Over `stream`, each step within `limit`.
    pub(super) fn new(stream: UnixStream, limit: Duration) -> Result<Self, HandoverError> {
        let set = stream.set_nonblocking(false);
        set.map_err(HandoverError::io("preparing the connection"))?;
        let mut conversation = Self(stream);
        conversation.limit(limit)?;
        Ok(conversation)
    }

    /// Changes the time limit of each step.
    pub(super) fn limit(&mut self, limit: Duration) -> Result<(), HandoverError> {
        let failed = HandoverError::io("preparing the connection");
        let set = self.0.set_read_timeout(Some(limit)).and_then(|()| self.0.set_write_timeout(Some(limit)));
        set.map_err(failed)
    }

    /// Sends the preface.
    pub(super) fn greet(&mut self) -> Result<(), HandoverError> {
        let [a, b, c, d, e, f, g] = MAGIC;
        self.0.write_all(&[a, b, c, d, e, f, g, VERSION]).map_err(HandoverError::io("greeting"))
    }

    /// Reads the other's preface.
    pub(super) fn greeted(&mut self) -> Result<(), HandoverError> {
        let mut preface = [0; 8];
        self.0.read_exact(&mut preface).map_err(HandoverError::io("waiting for a greeting"))?;
        let [magic @ .., theirs] = preface;
        if magic != MAGIC {
            return Err(HandoverError::Unexpected("another protocol".to_owned()));
        }
        if theirs == VERSION { Ok(()) } else { Err(HandoverError::Version { ours: VERSION, theirs }) }
    }

    /// Sends a frame.
    pub(super) fn send(&mut self, kind: Kind, content: &[u8]) -> Result<(), HandoverError> {
        let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= kind.limit());
        let length = length.ok_or_else(|| HandoverError::Unexpected(format!("too much for a {kind:?}")))?;
        let mut head = [kind as u8, 0, 0, 0, 0];
        head[1..].copy_from_slice(&length.to_be_bytes());
        let sent = self.0.write_all(&head).and_then(|()| self.0.write_all(content));
        sent.map_err(HandoverError::io("sending"))
    }

    /// Reads a frame.
    pub(super) fn receive(&mut self) -> Result<(Kind, Vec<u8>), HandoverError> {
        let failed = HandoverError::io("waiting for the other agent");
        let mut head = [0; 5];
        self.0.read_exact(&mut head).map_err(failed)?;
        let [kind, length @ ..] = head;
        let kind = Kind::from_byte(kind)
            .ok_or_else(|| HandoverError::Unexpected(format!("a frame of the unknown kind {kind}")))?;
        let length = u32::from_be_bytes(length) as usize;
        if length > kind.limit() {
            return Err(HandoverError::Unexpected(format!("a {kind:?} of {length} bytes")));
        }
        let mut content = Vec::new();
        // Grows with what comes, not with what was promised.
        let read = (&self.0).take(length as u64).read_to_end(&mut content);
        if read.map_err(HandoverError::io("receiving"))? == length {
            Ok((kind, content))
        } else {
            Err(HandoverError::Unexpected(format!("half of a {kind:?}")))
        }
    }

    /// Reads a frame that has to be a `wanted`.
    pub(super) fn expect(&mut self, wanted: Kind) -> Result<Vec<u8>, HandoverError> {
        match self.receive()? {
            (kind, content) if kind == wanted => Ok(content),
            (Kind::Refuse, why) => Err(HandoverError::Refused(String::from_utf8_lossy(&why).into_owned())),
            (kind, _) => Err(HandoverError::Unexpected(format!("a {kind:?} instead of a {wanted:?}"))),
        }
    }

    /// Sends copies of descriptors.
    pub(super) fn send_descriptors(&mut self, descriptors: &[OwnedFd]) -> Result<(), HandoverError> {
        for batch in descriptors.chunks(BATCH_LEN) {
            let batch: Vec<BorrowedFd<'_>> = batch.iter().map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH_LEN))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&batch)) {
                return Err(HandoverError::Unexpected("too many descriptors at once".to_owned()));
            }
            sendmsg(&self.0, &[IoSlice::new(&[BATCH])], &mut control, SendFlags::NOSIGNAL)
                .map_err(|e| HandoverError::io("sending descriptors")(e.into()))?;
        }
        Ok(())
    }

    /// Receives exactly `count` descriptors.
    pub(super) fn receive_descriptors(&mut self, count: usize) -> Result<Vec<OwnedFd>, HandoverError> {
        let mut all = Vec::new();
        while all.len() < count {
            let before = all.len();
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH_LEN))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [IoSliceMut::new(&mut byte)];
            let received = recvmsg(&self.0, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
                .map_err(|e| HandoverError::io("receiving descriptors")(e.into()))?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    all.extend(descriptors);
                }
            }
            // Cut off when this process may not open so many.
            if received.flags.contains(ReturnFlags::CTRUNC) {
                let limit = io::Error::from(rustix::io::Errno::MFILE);
                return Err(HandoverError::io("receiving descriptors")(limit));
            }
            if received.bytes != 1 || byte != [BATCH] || all.len() == before || all.len() > count {
                return Err(HandoverError::Unexpected("other descriptors than it announced".to_owned()));
            }
        }
        Ok(all)
    }
}

/// Byte strings one after the other, each with its length.
pub(super) fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        // What is joined is far below 4 GiB: a frame of more is not sent.
        joined.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        joined.extend(part);
    }
    joined
}

/// The other way; `None` when the lengths do not add up.
pub(super) fn split(mut joined: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    while let Some((length, rest)) = joined.split_first_chunk::<4>() {
        let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        parts.push(part);
        joined = rest;
    }
    joined.is_empty().then_some(parts)
}
