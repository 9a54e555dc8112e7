//! Addresses on the wire: 4 or 16 bytes in network order. IPv4-mapped IPv6 comes in, plain IPv4 goes out, so that one
//! address never has two keys.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Bits of the prefix `::ffff:0:0/96`.
const MAPPED_PREFIX_BITS: u8 = 96;

/// The wire form of `address`; an IPv4-mapped address has 4 bytes.
pub fn to_bytes(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address in `bytes`, or `None` when there are neither 4 nor 16 of them.
pub fn from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(octets)));
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical())
}

/// Rewrites a block within `::ffff:0:0/96` as the IPv4 block it means, because clients are compared as IPv4.
pub fn canonical_block(block: IpNet) -> IpNet {
    let IpNet::V6(v6) = block else { return block };
    let prefix = v6.prefix_len().checked_sub(MAPPED_PREFIX_BITS);
    match (v6.addr().to_ipv4_mapped(), prefix) {
        (Some(v4), Some(prefix)) => Ipv4Net::new(v4, prefix).map_or(block, IpNet::V4),
        _ => block,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_ipv4() {
        let mapped: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(to_bytes(mapped), [10, 1, 2, 3]);
        let IpAddr::V6(v6) = mapped else { panic!("parsed as IPv4") };
        assert_eq!(from_bytes(&v6.octets()), Some("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn other_lengths_are_refused() {
        for len in [0, 1, 3, 5, 15, 17] {
            assert_eq!(from_bytes(&vec![0; len]), None, "{len} bytes");
        }
    }

    #[test]
    fn mapped_blocks_become_ipv4_blocks() {
        let block = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(canonical_block(block("::ffff:10.0.0.0/104")), block("10.0.0.0/8"));
        assert_eq!(canonical_block(block("fd00::/8")), block("fd00::/8"));
        assert_eq!(canonical_block(block("::/0")), block("::/0"));
    }
}
