//! What holds of a handover whatever the other end sends. In: its bytes. Out: a panic where it does not hold. `fuzz/` calls
//! this with millions of inputs, the test below with a few hundred.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::wire::{Conversation, join, split};
use super::{Place, estate, give, own_user};
use crate::intercept::Answering;

/// Longer than any input takes; the bytes are there before they are read.
const STEP: Duration = Duration::from_secs(5);
/// Fits into the buffer of a socket that nobody reads yet.
const MOST_BYTES: usize = 32 << 10;

/// Both ends of the conversation: the running agent, and its successor.
pub fn handover(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    if bytes.len() > MOST_BYTES {
        return;
    }
    let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
    far.write_all(bytes).expect("the buffer is empty");
    far.shutdown(Shutdown::Write).expect("the other end is open");
    if first % 2 == 0 {
        // The bytes are never this place's name and more: nobody is let in without a Hello.
        let admitted = give::admit(near, &place(), own_user()).is_ok();
        assert!(!admitted || contains(bytes, b"cluster.local"));
    } else if let Ok(mut conversation) = Conversation::new(near, STEP)
        && conversation.greeted().is_ok()
    {
        assert!(estate::receive(&mut conversation).is_err(), "no descriptor came");
    }
    if let Some(parts) = split(bytes) {
        assert_eq!(join(parts), bytes);
        if let Ok(svid) = estate::read_svid(bytes) {
            assert!(contains(bytes, svid.identity.as_bytes()));
        }
    }
    let answering = Answering::from_bytes(bytes);
    assert_eq!(Answering::from_bytes(&answering.to_bytes()), answering);
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    part.is_empty() || bytes.windows(part.len()).any(|window| window == part)
}

fn place() -> Place {
    Place {
        node: "n1".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        pods_cgroup: "/cgroup".into(),
        pin_dir: "/pins".into(),
        metrics_addr: "[::]:15020".to_owned(),
        admin_socket: "/run/agent.sock".into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A preface and frames, most of them of a kind and length that exist.
    fn conversation() -> impl Strategy<Value = Vec<u8>> {
        let content = prop_oneof![
            vec(any::<u8>(), 0..80),
            Just(serde_json::to_vec(&place()).unwrap()),
            Just(br#"{"build":"1","svids":1,"listeners_map":1,"addresses":["10.0.0.1"],"pods":[]}"#.to_vec()),
        ];
        let frame = (0_u8..9, content, any::<bool>()).prop_map(|(kind, content, wrong)| {
            let length = content.len() as u32 + u32::from(wrong);
            [&[kind], &length.to_be_bytes()[..], &content].concat()
        });
        (any::<u8>(), any::<bool>(), vec(frame, 0..4)).prop_map(|(end, greeted, frames)| {
            let preface: &[u8] = if greeted { b"fm-hand\x01" } else { b"fm-hand" };
            [&[end], preface, &frames.concat()].concat()
        })
    }

    proptest! {
        #[test]
        fn whatever_the_other_agent_sends_is_refused_without_panic(bytes in conversation()) {
            handover(&bytes);
        }
    }

    #[test]
    fn the_right_hello_is_let_in() {
        let hello = serde_json::to_vec(&place()).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"fm-hand\x01\x01").unwrap();
        far.write_all(&(hello.len() as u32).to_be_bytes()).unwrap();
        far.write_all(&hello).unwrap();
        assert!(give::admit(near, &place(), own_user()).is_ok());
    }
}
