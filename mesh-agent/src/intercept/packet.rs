//! The packets that end a held `connect()`, as its kernel expects them from the address that it dialled. In: the two ends
//! and the sequence number of the SYN. Out: bytes of a whole IP packet. Pure.

use std::net::{IpAddr, SocketAddr};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const HOPS: u8 = 64;
const RST_ACK: u8 = 0x14;

/// Which part of the way to the destination is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no route: ENETUNREACH.
    Network,
    /// Nobody has the address: EHOSTUNREACH.
    Host,
}

/// One SYN that was held: from `client` to `agent` (of one family), with this sequence number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Syn {
    pub(super) client: SocketAddr,
    pub(super) agent: SocketAddr,
    pub(super) isn: u32,
}

/// RST in answer to a SYN: nobody listens.
pub(super) fn refused(syn: &Syn) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(syn.agent.port().to_be_bytes());
    tcp.extend(syn.client.port().to_be_bytes());
    tcp.extend(0_u32.to_be_bytes());
    tcp.extend(syn.isn.wrapping_add(1).to_be_bytes());
    // Five words of header, no window, checksum later, nothing urgent.
    tcp.extend([5 << 4, RST_ACK, 0, 0, 0, 0, 0, 0]);
    let sum = checksum(&pseudo(syn.agent.ip(), syn.client.ip(), TCP, tcp.len()), &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    packet(syn.agent.ip(), syn.client.ip(), TCP, &tcp)
}

/// ICMP in answer to a SYN: nothing leads there.
pub(super) fn unreachable(syn: &Syn, missing: Missing) -> Vec<u8> {
    let (kind, code) = match (syn.client.is_ipv4(), missing) {
        (true, Missing::Network) => (3, 0),
        (true, Missing::Host) => (3, 1),
        (false, Missing::Network) => (1, 0),
        (false, Missing::Host) => (1, 3),
    };
    let mut icmp = vec![kind, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quoted(syn));
    let (protocol, sum) = match syn.client.ip() {
        IpAddr::V4(_) => (ICMP, checksum(&[], &icmp)),
        IpAddr::V6(_) => {
            (ICMPV6, checksum(&pseudo(syn.agent.ip(), syn.client.ip(), ICMPV6, icmp.len()), &icmp))
        }
    };
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(syn.agent.ip(), syn.client.ip(), protocol, &icmp)
}

/// The beginning of the SYN, by which the kernel finds the socket.
fn quoted(syn: &Syn) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(8);
    tcp.extend(syn.client.port().to_be_bytes());
    tcp.extend(syn.agent.port().to_be_bytes());
    tcp.extend(syn.isn.to_be_bytes());
    packet(syn.client.ip(), syn.agent.ip(), TCP, &tcp)
}

/// An IP packet without options. Both addresses are of one family.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(40 + payload.len());
    match from {
        IpAddr::V4(_) => {
            packet.extend([0x45, 0]);
            packet.extend(length.saturating_add(20).to_be_bytes());
            packet.extend([0, 0, 0, 0, HOPS, protocol, 0, 0]);
        }
        IpAddr::V6(_) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, HOPS]);
        }
    }
    packet.extend(octets(from));
    packet.extend(octets(to));
    if from.is_ipv4() {
        let sum = checksum(&[], &packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// What a transport checksum covers besides the segment. The sum does not depend on where the fields stand.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = octets(from);
    header.extend(octets(to));
    header.extend([0, protocol]);
    header.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    header
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The Internet checksum (RFC 1071) over both parts, each of an even length.
pub(super) fn checksum(first: &[u8], second: &[u8]) -> u16 {
    let words = first.chunks(2).chain(second.chunks(2));
    let mut sum: u32 =
        words.map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(client: &str, agent: &str) -> Syn {
        Syn { client: client.parse().unwrap(), agent: agent.parse().unwrap(), isn: u32::MAX }
    }

    #[test]
    fn a_refusal_acknowledges_the_syn_and_its_checksums_are_right() {
        let bytes = refused(&syn("10.0.0.1:4000", "127.128.0.7:15002"));
        assert_eq!(bytes.len(), 40);
        assert_eq!(checksum(&[], &bytes[..20]), 0);
        let from: IpAddr = "127.128.0.7".parse().unwrap();
        assert_eq!(checksum(&pseudo(from, "10.0.0.1".parse().unwrap(), TCP, 20), &bytes[20..]), 0);
        assert_eq!(bytes[28..32], [0; 4], "the acknowledged number wraps");
        let bytes = refused(&syn("[fd00::1]:4000", "[::1]:15002"));
        assert_eq!((bytes.len(), bytes[0], bytes[6]), (60, 0x60, TCP));
        let from: IpAddr = "::1".parse().unwrap();
        assert_eq!(checksum(&pseudo(from, "fd00::1".parse().unwrap(), TCP, 20), &bytes[40..]), 0);
    }

    #[test]
    fn an_unreachable_quotes_the_syn_and_its_checksums_are_right() {
        let bytes = unreachable(&syn("10.0.0.1:4000", "127.128.0.7:15002"), Missing::Host);
        assert_eq!((bytes.len(), bytes[20], bytes[21]), (20 + 8 + 28, 3, 1));
        assert_eq!(checksum(&[], &bytes[20..]), 0);
        assert_eq!(bytes[40..44], [10, 0, 0, 1]);
        assert_eq!(bytes[52..], [0xff; 4]);
        let bytes = unreachable(&syn("[fd00::1]:4000", "[::1]:15002"), Missing::Network);
        assert_eq!((bytes.len(), bytes[40], bytes[41]), (40 + 8 + 48, 1, 0));
        let from: IpAddr = "::1".parse().unwrap();
        let covered = pseudo(from, "fd00::1".parse().unwrap(), ICMPV6, bytes.len() - 40);
        assert_eq!(checksum(&covered, &bytes[40..]), 0);
    }
}
