//! What holds of this stage's parsers whatever they are given. In: bytes as the kernel, a pod or a pin gives them. Out: a
//! panic where it does not hold. `fuzz/` calls these with millions of inputs, the tests below with a few thousand.

use std::net::SocketAddr;
use std::path::Path;

use mesh_common::{Endpoint, Held, HeldEvent, POD_LEVELS};

use super::packet::{self, Missing};
use super::{Answering, cgroup, diag, discover, hub, layout, lookups, maps, ring, weak};

/// What the kernel answers when it is asked for sockets.
pub fn diag(bytes: &[u8]) {
    let (mut answers, mut sockets) = (0, 0);
    // What is wrong with the rest does not matter here.
    let _whole = diag::walk(bytes, &mut |body| {
        answers += 1;
        sockets += usize::from(diag::parse(body).is_some());
    });
    assert!(answers <= bytes.len() / 16 && sockets <= bytes.len() / (16 + 72));
    if let Some(socket) = diag::parse(bytes) {
        for end in [socket.local, socket.remote] {
            assert_eq!(end.ip(), end.ip().to_canonical());
        }
    }
}

/// Names of cgroups, namespaces and pins, and the lines of `/proc` that are about a pod.
pub fn names(text: &str) {
    if let Some(uid) = layout::pod_uid(text) {
        assert!(text.replace('_', "-").contains(&uid) && !uid.contains(['/', '.', '\0']));
        assert!(!layout::is_pods_root(text));
    }
    for point in cgroup::points(text) {
        assert!(point.to_str().is_some_and(|point| text.contains(point)));
    }
    assert!(discover::listed(text).all(|pid| text.contains(&pid.to_string())));
    if let Some(inode) = discover::inode_in(text) {
        assert!(text.contains(&inode.to_string()));
    }
    if let Some(id) = lookups::pinned_for(text) {
        let pin = lookups::lookup_pin(Path::new("/"), id);
        assert_eq!(pin.file_name().and_then(|name| name.to_str()), Some(text), "another pin's name");
    }
    weak::raw_capabilities(text);
    assert!(weak::listening(text).len() <= text.lines().count());
}

/// An event of the kernel's ring, the record that it tells of, and what the agent makes of both.
pub fn record(bytes: &[u8]) {
    let Some((event, rest)) = bytes.split_at_checked(size_of::<HeldEvent>()) else {
        assert!(ring::read(bytes).is_none());
        return;
    };
    let Some(HeldEvent { key, .. }) = ring::read(event) else { panic!("an event of the right length") };
    let Some((record, rest)) = held_record(rest) else { return };
    let syn = hub::syn(&key, &record);
    let packets = [
        packet::refused(&syn),
        packet::unreachable(&syn, Missing::Network),
        packet::unreachable(&syn, Missing::Host),
    ];
    if syn.client.is_ipv4() == syn.agent.is_ipv4() {
        packets.iter().for_each(|packet| whole(packet, syn.client, syn.agent));
    }
    assert_eq!(maps::socket_addr(&maps::endpoint(syn.client)), syn.client);
    let answering = Answering::from_bytes(rest);
    assert_eq!(Answering::from_bytes(&answering.to_bytes()), answering);
}

/// A packet from the agent's end to the client's, as a kernel takes it.
fn whole(packet: &[u8], client: SocketAddr, agent: SocketAddr) {
    let (header, from, to) = match (agent.ip(), client.ip()) {
        (std::net::IpAddr::V4(agent), std::net::IpAddr::V4(client)) => {
            assert_eq!(packet::checksum(&[], &packet[..20]), 0);
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            (20, agent.octets().to_vec(), client.octets().to_vec())
        }
        (std::net::IpAddr::V6(agent), std::net::IpAddr::V6(client)) => {
            assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
            (40, agent.octets().to_vec(), client.octets().to_vec())
        }
        _ => return,
    };
    let (ends, payload) = packet.split_at(header);
    assert!(ends.ends_with(&[from, to].concat()) && payload.len() >= 8);
}

/// A record as it lies in the map.
fn held_record(bytes: &[u8]) -> Option<(Held, &[u8])> {
    let (dst, rest) = endpoint(bytes)?;
    let (client, rest) = endpoint(rest)?;
    let (isn, rest) = rest.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let cgroups = [0; POD_LEVELS as usize];
    let (isn, flags) = (u32::from_ne_bytes(*isn), u32::from_ne_bytes(*flags));
    Some((Held { dst, client, isn, flags, cgroups }, rest))
}

fn endpoint(bytes: &[u8]) -> Option<(Endpoint, &[u8])> {
    let (addr, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    Some((Endpoint { addr: *addr, port: u16::from_ne_bytes(*port), pad: 0 }, rest))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Whole answers with one socket each, then whatever comes.
    fn answers() -> impl Strategy<Value = Vec<u8>> {
        let one = (0_u16..30, prop_oneof![Just(2_u8), Just(10), any::<u8>()], vec(any::<u8>(), 0..110));
        (vec(one, 0..4), vec(any::<u8>(), 0..40)).prop_map(|(answers, end)| {
            let mut bytes = Vec::new();
            for (kind, family, rest) in answers {
                bytes.extend((17 + rest.len() as u32).to_ne_bytes());
                bytes.extend(kind.to_ne_bytes());
                bytes.extend([0; 10]);
                bytes.push(family);
                bytes.extend(rest);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes.extend(end);
            bytes
        })
    }

    fn lines() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("kubepods-burstable-pod".to_owned()),
            Just(".slice".to_owned()),
            Just("net:[".to_owned()),
            Just(" cgroup2 ".to_owned()),
            Just("CapEff:\t".to_owned()),
            Just("0: 0100007F:1538 0:0 0A\n".to_owned()),
            "[-+ 0-9a-f:_/\\]\n]{0,12}",
            "\\PC{0,8}",
        ];
        vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn whatever_the_kernel_answers_is_read_without_panic(bytes in answers()) {
            diag(&bytes);
        }

        #[test]
        fn whatever_a_pod_or_a_pin_is_called_is_read_without_panic(text in lines()) {
            names(&text);
        }

        #[test]
        fn whatever_is_in_a_record_is_read_and_answered_without_panic(bytes in vec(any::<u8>(), 0..160)) {
            record(&bytes);
        }
    }
}
