//! The frames of `ferromesh/1` (`docs/wire.md`): a pure codec. Bytes in whatever pieces come in, [`Frame`]s go out;
//! nothing is allocated for DATA, and a control frame is bounded before its payload is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::transport::{Open, Refusal, RefusalCode};

/// Bytes of a frame's header: type, and a 24-bit big-endian length.
pub const HEADER_BYTES: usize = 4;
/// The longest payload of DATA.
pub const MAX_DATA_BYTES: usize = 65_536;
/// The longest payload of any other frame.
pub const MAX_CONTROL_BYTES: usize = 512;

/// The count in the acceptor's FIN.
const DELIVERED_BYTES: usize = size_of::<u64>();

const OPEN: u8 = 1;
const OPENED: u8 = 2;
const REFUSED: u8 = 3;
const DATA: u8 = 4;
const FIN: u8 = 5;
const RESET: u8 = 6;
const DRAIN: u8 = 7;
const DONE: u8 = 8;

/// One frame, or one piece of a DATA frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Begin a connection.
    Open(Open),
    /// The application is connected.
    Opened,
    /// No connection, and why.
    Refused(Refusal),
    /// Bytes; a frame that straddles reads comes in several pieces.
    Data(&'a [u8]),
    /// No more bytes in this direction; from the acceptor with how many bytes its application has been given so far.
    Fin(Option<u64>),
    /// The connection was aborted.
    Reset,
    /// No further OPEN will be answered.
    Drain,
    /// Everything that came after the acceptor's FIN is delivered too: the lease is free again.
    Done,
}

/// Why bytes are not frames. The connection cannot be used any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that this version does not have.
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    /// A length that the type does not allow.
    #[error("a frame of type {kind} cannot have {length} bytes")]
    Length {
        /// The type.
        kind: u8,
        /// The length that was announced.
        length: usize,
    },
    /// The payload of OPEN or REFUSED does not parse.
    #[error("malformed payload of a frame of type {0}")]
    Payload(u8),
}

/// Cuts a stream of bytes into frames.
#[derive(Debug)]
pub struct Decoder {
    head: [u8; HEADER_BYTES],
    head_have: usize,
    data_left: usize,
    control: [u8; MAX_CONTROL_BYTES],
    control_have: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            head: [0; HEADER_BYTES],
            head_have: 0,
            data_left: 0,
            control: [0; MAX_CONTROL_BYTES],
            control_have: 0,
        }
    }
}

impl Decoder {
    /// Takes the next frame from the front of `input`; `None` when more bytes are needed (then `input` is empty).
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, FrameError> {
        loop {
            if self.data_left > 0 {
                return Ok(self.take_data(input));
            }
            if self.head_have < HEADER_BYTES {
                let piece = take(input, HEADER_BYTES - self.head_have);
                self.head[self.head_have..self.head_have + piece.len()].copy_from_slice(piece);
                self.head_have += piece.len();
                if self.head_have < HEADER_BYTES {
                    return Ok(None);
                }
            }
            let [kind, high, middle, low] = self.head;
            let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            check_length(kind, length)?;
            if kind == DATA {
                self.head_have = 0;
                self.data_left = length;
                continue;
            }
            let piece = take(input, length - self.control_have);
            self.control[self.control_have..self.control_have + piece.len()].copy_from_slice(piece);
            self.control_have += piece.len();
            if self.control_have < length {
                return Ok(None);
            }
            (self.head_have, self.control_have) = (0, 0);
            return control_frame(kind, &self.control[..length]).map(Some);
        }
    }

    /// Whether the last byte given was the last of a frame.
    pub fn at_boundary(&self) -> bool {
        self.head_have == 0 && self.data_left == 0
    }

    fn take_data<'a>(&mut self, input: &mut &'a [u8]) -> Option<Frame<'a>> {
        let piece = take(input, self.data_left);
        self.data_left -= piece.len();
        if piece.is_empty() { None } else { Some(Frame::Data(piece)) }
    }
}

/// The header of a DATA frame with `length` bytes (at most [`MAX_DATA_BYTES`]).
pub fn data_header(length: usize) -> [u8; HEADER_BYTES] {
    header(DATA, length)
}

/// Appends a whole frame to `out`. DATA is given in one piece of at most [`MAX_DATA_BYTES`].
pub fn encode(frame: &Frame<'_>, out: &mut Vec<u8>) {
    match frame {
        Frame::Open(open) => {
            let mut payload = Vec::with_capacity(40);
            put_address(&mut payload, open.destination);
            put_address(&mut payload, open.client);
            put(out, OPEN, &payload);
        }
        Frame::Opened => put(out, OPENED, &[]),
        Frame::Refused(refusal) => {
            let text = truncated(&refusal.message, MAX_CONTROL_BYTES - 1);
            let mut payload = Vec::with_capacity(1 + text.len());
            payload.push(refusal.code as u8);
            payload.extend_from_slice(text.as_bytes());
            put(out, REFUSED, &payload);
        }
        Frame::Data(bytes) => put(out, DATA, bytes),
        Frame::Fin(None) => put(out, FIN, &[]),
        Frame::Fin(Some(delivered)) => put(out, FIN, &delivered.to_be_bytes()),
        Frame::Reset => put(out, RESET, &[]),
        Frame::Drain => put(out, DRAIN, &[]),
        Frame::Done => put(out, DONE, &[]),
    }
}

/// Whether `bytes`, which begin at a frame's boundary, begin with RESET.
pub fn is_reset(bytes: &[u8]) -> bool {
    bytes.first() == Some(&RESET)
}

fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    [kind, (length >> 16) as u8, (length >> 8) as u8, length as u8]
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.extend_from_slice(&header(kind, payload.len()));
    out.extend_from_slice(payload);
}

fn truncated(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn check_length(kind: u8, length: usize) -> Result<(), FrameError> {
    let ok = match kind {
        DATA => (1..=MAX_DATA_BYTES).contains(&length),
        OPEN | REFUSED => (1..=MAX_CONTROL_BYTES).contains(&length),
        FIN => length == 0 || length == DELIVERED_BYTES,
        OPENED | RESET | DRAIN | DONE => length == 0,
        _ => return Err(FrameError::UnknownType(kind)),
    };
    if ok { Ok(()) } else { Err(FrameError::Length { kind, length }) }
}

fn control_frame(kind: u8, payload: &[u8]) -> Result<Frame<'static>, FrameError> {
    Ok(match kind {
        OPEN => Frame::Open(open(payload).ok_or(FrameError::Payload(OPEN))?),
        REFUSED => Frame::Refused(refusal(payload).ok_or(FrameError::Payload(REFUSED))?),
        OPENED => Frame::Opened,
        FIN => Frame::Fin(payload.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))),
        RESET => Frame::Reset,
        DRAIN => Frame::Drain,
        DONE => Frame::Done,
        other => return Err(FrameError::UnknownType(other)),
    })
}

/// Bytes behind the two addresses are for later versions and ignored.
fn open(mut payload: &[u8]) -> Option<Open> {
    let destination = take_address(&mut payload)?;
    let client = take_address(&mut payload)?;
    Some(Open { destination, client })
}

fn refusal(payload: &[u8]) -> Option<Refusal> {
    let (&code, text) = payload.split_first()?;
    // A kind that a later version added is still a refusal.
    let code = RefusalCode::from_wire(code).unwrap_or(RefusalCode::Unreachable);
    Some(Refusal { code, message: String::from_utf8_lossy(text).into_owned() })
}

fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn take_address(payload: &mut &[u8]) -> Option<SocketAddr> {
    let (&family, rest) = payload.split_first()?;
    *payload = rest;
    let ip = match family {
        4 => IpAddr::V4(Ipv4Addr::from(take_array::<4>(payload)?)),
        6 => IpAddr::V6(Ipv6Addr::from(take_array::<16>(payload)?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(take_array::<2>(payload)?)))
}

fn take_array<const N: usize>(payload: &mut &[u8]) -> Option<[u8; N]> {
    let (piece, rest) = payload.split_first_chunk::<N>()?;
    *payload = rest;
    Some(*piece)
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at(input.len().min(most));
    *input = rest;
    piece
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
