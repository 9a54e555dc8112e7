//! The `ferromesh/1` frame decoder: no input panics, and how the bytes were cut never changes what comes out.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::transport::lease::frame::{Decoder, Frame, FrameError};

/// Everything that comes out of `bytes`, given in pieces.
fn events(bytes: &[u8], piece: usize) -> (Vec<String>, Vec<u8>, Option<FrameError>) {
    let (mut decoder, mut frames, mut data) = (Decoder::default(), Vec::new(), Vec::new());
    for mut chunk in bytes.chunks(piece) {
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(Frame::Data(bytes))) => data.extend_from_slice(bytes),
                Ok(Some(frame)) => frames.push(format!("{frame:?}")),
                Ok(None) => break,
                Err(error) => return (frames, data, Some(error)),
            }
        }
    }
    (frames, data, None)
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, bytes)) = input.split_first() else { return };
    let piece = usize::from(first) + 1;
    assert_eq!(events(bytes, bytes.len().max(1)), events(bytes, piece));
});
