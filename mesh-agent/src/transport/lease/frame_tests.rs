//! Tests of the frame codec: every frame survives any cutting, and no input makes it panic.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

fn samples() -> Vec<Frame<'static>> {
    let open = |destination: &str, client: &str| {
        Frame::Open(Open { destination: destination.parse().unwrap(), client: client.parse().unwrap() })
    };
    let refusal = Refusal { code: RefusalCode::Denied, message: "no".into() };
    vec![
        open("10.0.0.1:80", "10.0.0.2:40000"),
        Frame::Opened,
        Frame::Data(b"hello"),
        Frame::Fin(None),
        Frame::Fin(Some(1 << 40)),
        Frame::Done,
        open("[fd00::1]:443", "[fd00::2]:1"),
        Frame::Refused(refusal),
        Frame::Reset,
        Frame::Drain,
    ]
}

/// Decodes `bytes` in pieces of `piece`, joining DATA.
fn decode(bytes: &[u8], piece: usize) -> Result<(Vec<String>, Vec<u8>), FrameError> {
    let (mut decoder, mut frames, mut data) = (Decoder::default(), Vec::new(), Vec::new());
    for mut chunk in bytes.chunks(piece) {
        while let Some(frame) = decoder.next(&mut chunk)? {
            match frame {
                Frame::Data(bytes) => data.extend_from_slice(bytes),
                other => frames.push(format!("{other:?}")),
            }
        }
        assert!(chunk.is_empty());
    }
    assert!(decoder.at_boundary());
    Ok((frames, data))
}

#[test]
fn every_frame_survives_every_cutting() {
    let mut bytes = Vec::new();
    for frame in samples() {
        encode(&frame, &mut bytes);
    }
    let wanted: Vec<String> = samples()
        .iter()
        .filter(|frame| !matches!(frame, Frame::Data(_)))
        .map(|frame| format!("{frame:?}"))
        .collect();
    for piece in 1..bytes.len() {
        assert_eq!(decode(&bytes, piece).unwrap(), (wanted.clone(), b"hello".to_vec()), "pieces of {piece}");
    }
}

#[test]
fn decoding_stops_behind_each_frame() {
    let mut bytes = Vec::new();
    encode(&Frame::Fin(None), &mut bytes);
    encode(&Frame::Drain, &mut bytes);
    let mut rest = bytes.as_slice();
    let mut decoder = Decoder::default();
    assert_eq!(decoder.next(&mut rest).unwrap(), Some(Frame::Fin(None)));
    assert_eq!(rest.len(), HEADER_BYTES);
}

#[test]
fn a_length_that_the_type_does_not_allow_is_refused_before_its_payload_is_read() {
    for bytes in
        [[FIN, 0, 0, 1], [OPEN, 0, 2, 1], [DATA, 0, 0, 0], [DATA, 1, 0, 1], [REFUSED, 0xff, 0xff, 0xff]]
    {
        assert!(
            matches!(Decoder::default().next(&mut bytes.as_slice()), Err(FrameError::Length { .. })),
            "{bytes:?}"
        );
    }
    assert_eq!(Decoder::default().next(&mut [99, 0, 0, 0].as_slice()), Err(FrameError::UnknownType(99)));
}

#[test]
fn a_long_refusal_is_cut_at_a_character() {
    let refusal = Refusal { code: RefusalCode::Overloaded, message: "é".repeat(1000) };
    let mut bytes = Vec::new();
    encode(&Frame::Refused(refusal), &mut bytes);
    let Some(Frame::Refused(got)) = Decoder::default().next(&mut bytes.as_slice()).unwrap() else {
        panic!("not REFUSED")
    };
    assert_eq!(got.message, "é".repeat((MAX_CONTROL_BYTES - 1) / 2));
}

/// The short form of `fuzz/fuzz_targets/frame.rs`.
#[test]
fn no_input_panics_and_cutting_never_changes_the_outcome() {
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..100_000 {
        let mut bytes = Vec::new();
        for _ in 0..rng.random_range(0..4) {
            let all = samples();
            encode(&all[rng.random_range(0..all.len())], &mut bytes);
        }
        let mut noise = vec![0; rng.random_range(0..24)];
        rng.fill_bytes(&mut noise);
        bytes.extend_from_slice(&noise);
        if !bytes.is_empty() && rng.random_bool(0.5) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        let (whole, bits) = (events(&bytes, bytes.len().max(1)), events(&bytes, rng.random_range(1..9)));
        assert_eq!(whole, bits, "{bytes:?}");
    }
}

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
