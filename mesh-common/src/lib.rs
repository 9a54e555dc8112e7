//! The kernel ABI: map keys, map values and constants that the eBPF programs and the agent share.
//!
//! Every struct is `repr(C)`, has no implicit padding and a size that the tests pin, because hash-map keys are compared
//! byte by byte. Addresses are 16 bytes in network order, IPv4 as `::ffff:a.b.c.d` ([`Addr`]); ports are host order.

#![no_std]

mod reasons;
#[cfg(feature = "user")]
mod user;

pub use reasons::{REASONS, Reason};

/// Port of the agent's listener for redirected outbound connections, in each enrolled pod's network namespace.
pub const PORT_OUTBOUND: u16 = 15001;
/// Port that held outbound connections are redirected to: nobody listens there, the agent answers from it.
pub const PORT_HELD: u16 = 15002;
/// Port of the agent's listener for inbound plaintext, in each enrolled pod's network namespace.
pub const PORT_INBOUND: u16 = 15006;
/// Port of the agent's listener for inbound mutual TLS, in each enrolled pod's network namespace.
pub const PORT_MTLS: u16 = 15008;

/// Redirected IPv4 connections go to 127.128.0.0/9: the low 23 bits are a fresh token that finds the original destination.
pub const ORIG_TOKEN_PREFIX: u32 = 0x7f80_0000;
/// Bits of [`ORIG_TOKEN_PREFIX`] that are the token.
pub const ORIG_TOKEN_MASK: u32 = 0x007f_ffff;
/// The agent dials an IPv4 application from 127.64.0.0/10: the low 22 bits are a fresh token that finds the true client.
pub const CLIENT_TOKEN_PREFIX: u32 = 0x7f40_0000;
/// Bits of [`CLIENT_TOKEN_PREFIX`] that are the token.
pub const CLIENT_TOKEN_MASK: u32 = 0x003f_ffff;

/// What the agent marks its packets with (`SO_MARK`) where it dials a unit on its host: others may come to have the address and port
/// of a record, and may not mark (CAP_NET_ADMIN or CAP_NET_RAW).
pub const DIAL_MARK: u32 = 0x0fe2_6d65;

/// Listener slots of one pod in the `LISTENERS` sockmap; a pod's first is `index * LISTENERS_PER_POD`.
pub const LISTENERS_PER_POD: u32 = 4;
/// The most agents of a node, one after the other, whose listeners are in use.
pub const MAX_AGENTS: u32 = 1024;
/// The most pods that are known on a node.
pub const MAX_PODS: u32 = 1024;
/// The most connections on a node that wait for the agent's accept, and the most dials that wait for an application's.
pub const MAX_PENDING: u32 = 65_536;
/// The most virtual addresses and ports without an endpoint that the kernel is told of.
pub const MAX_UNSERVED: u32 = 16_384;
/// The most addresses and ports that the pods of a node may not send datagrams to, over all of its tables.
pub const MAX_UDP_DENIED: u32 = 131_072;
/// Bytes of the `HELD_EVENTS` ring; a power of two, and whole pages of any page size.
pub const HELD_EVENT_BYTES: u32 = 1 << 20;
/// The most ports that applications of a node's pods listen on and the kernel knows of.
pub const MAX_LISTENING: u32 = 65_536;
/// The most addresses and ports that enrolled units of a host listen on.
pub const MAX_STEERED: u32 = 16_384;
/// Slots of `REASONS`: more than there are reasons, so that a newer agent can adopt the map of an older one.
pub const MAX_REASONS: u32 = 256;
/// How many levels below the pods' cgroup root a pod's cgroup may be.
pub const POD_LEVELS: u32 = 3;

/// Name of the global that holds the cookie of the node's own network namespace (u64).
pub const GLOBAL_NODE_NETNS: &str = "NODE_NETNS_COOKIE";
/// Name of the global that holds the depth of the pods' root in the cgroup hierarchy (u32; the hierarchy's root is 0).
pub const GLOBAL_ROOT_LEVEL: &str = "ROOT_LEVEL";
/// Name of the global that says whether sockets that the mesh cannot steer are refused to enrolled pods (u32).
pub const GLOBAL_REFUSE_SOCKETS: &str = "REFUSE_SOCKETS";
/// Name of the global that says whether the kernel has MPTCP (u32).
pub const GLOBAL_HAS_MPTCP: &str = "HAS_MPTCP";
/// Name of the global that says whether unclassified pods are held: 0, 1, or [`HOLD_WHILE_ALIVE`] (u32).
pub const GLOBAL_HOLD_UNCLASSIFIED: &str = "HOLD_UNCLASSIFIED";
/// Name of the global that says whether `cgroup_skb` programs can ask for the network namespace's cookie (u32).
pub const GLOBAL_HAS_SKB_NETNS: &str = "HAS_SKB_NETNS";
/// Name of the global that holds the pod's cgroup id in one `sk_lookup` instance (u64).
pub const GLOBAL_POD_CGROUP: &str = "POD_CGROUP";
/// Name of the global that holds the pod index of one `sk_lookup` instance (u32).
pub const GLOBAL_POD_INDEX: &str = "POD_INDEX";

/// Value of [`GLOBAL_HOLD_UNCLASSIFIED`]: while the agent gives signs of life. What a host's services begin while there is no
/// agent must not wait for one.
pub const HOLD_WHILE_ALIVE: u32 = 2;

/// Slot of a listener within its pod's group in `LISTENERS`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerSlot {
    /// IPv4, plaintext (15006).
    InboundV4 = 0,
    /// IPv6, plaintext (15006).
    InboundV6 = 1,
    /// IPv4, mutual TLS (15008).
    MtlsV4 = 2,
    /// IPv6, mutual TLS (15008).
    MtlsV6 = 3,
}

/// An address in network order; IPv4 is v4-mapped.
pub type Addr = [u8; 16];

/// Value of `PODS` (key: cgroup id, u64): what the kernel knows of one pod. A cgroup without an entry is unclassified.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The pod's IPv4 address, v4-mapped; all zero when it has none.
    pub addr4: Addr,
    /// The pod's IPv6 address; all zero when it has none.
    pub addr6: Addr,
    /// The pod's index: names its slots in `LISTENERS`.
    pub index: u32,
    /// [`POD_ENROLLED`], [`POD_CLOSED`], [`POD_HONEST`], [`POD_PORTS_KNOWN`], [`POD_JOINED`] and [`POD_SHARED`], or 0.
    pub flags: u32,
    /// How many seconds the agent may give no sign of life until this pod's connections pass around it; 0: for ever.
    pub lost_after: u32,
    /// Index of the interface that has the pod's addresses, in the pod's network namespace; 0: not known.
    pub interface: u32,
}

/// Flag of [`Pod`]: connections of this pod are redirected to the agent.
pub const POD_ENROLLED: u32 = 1;
/// Flag of [`Pod`]: a redirected `connect()` is held until the agent has dialled, and ends as the dial did.
pub const POD_HONEST: u32 = 4;

/// Flag of [`Pod`], beside [`POD_ENROLLED`]: the agent cannot serve the pod; its connections are refused, not redirected.
pub const POD_CLOSED: u32 = 2;

/// Flag of [`Pod`]: `LISTENING` and `SEEDED` say on which of its ports applications listen; others are refused at once.
pub const POD_PORTS_KNOWN: u32 = 8;

/// Flag of [`Pod`], beside [`POD_ENROLLED`], for a minute: it was known not to be enrolled before, so that what it dialled then
/// was allowed and may still be answered.
pub const POD_JOINED: u32 = 16;

/// Flag of [`Pod`]: its network namespace is not its own alone (a systemd unit on its host's). Nothing of it passes for being
/// loopback: only what the agent dials with a record in `CLIENTS` reaches it. The cgroup that all of them are below has an
/// entry with this flag too; what is steered there is in `STEERED`.
pub const POD_SHARED: u32 = 32;

/// An agent without a sign of life for so many seconds is away: what stays closed for it is counted.
pub const AGENT_AWAY: u32 = 5;

/// Key of `ORIG_DST` and of `HELD`: names one redirected connection until the agent has accepted or answered it.
/// IPv4: `addr` is the token address and `port` 0. IPv6: `addr` and `port` are the client's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OrigKey {
    /// Cookie of the network namespace that the connection is made in.
    pub netns_cookie: u64,
    /// See above.
    pub addr: Addr,
    /// See above.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Value of `ORIG_DST` and of the client record, key of `UNSERVED`: an address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Key of `CLIENTS`: the address and port that the agent dials an application from.
/// IPv4: `addr` is the token address and `port` 0. IPv6: `addr` is the pod's own address (or `::1`) and `port` the allocated port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientKey {
    /// Cookie of the application's network namespace.
    pub netns_cookie: u64,
    /// See above.
    pub addr: Addr,
    /// See above.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Value of `HELD`: a connection whose SYN is held, for as long as its client waits in `connect()`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What the client dialled.
    pub dst: Endpoint,
    /// Where the client's SYN comes from: the agent answers there.
    pub client: Endpoint,
    /// Sequence number of the SYN: a forged answer must fit it.
    pub isn: u32,
    /// [`HELD_MPTCP`], or 0.
    pub flags: u32,
    /// Ids of the socket's cgroups below the pods' root, from the top; 0 where there is none. One of them is the pod's.
    pub cgroups: [u64; POD_LEVELS as usize],
}

/// Flag of [`Held`]: the client's socket is an MPTCP one.
pub const HELD_MPTCP: u32 = 1;

/// Record of the `HELD_EVENTS` ring: something happened to a key of `HELD`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldEvent {
    /// Which connection.
    pub key: OrigKey,
    /// [`HELD_SYN`] or [`HELD_GONE`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}

/// [`HeldEvent::kind`]: a SYN was held, for the first time or again.
pub const HELD_SYN: u32 = 1;
/// [`HeldEvent::kind`]: the client waits no longer.
pub const HELD_GONE: u32 = 2;

/// Slot of `UDP_TABLES` behind those of the pods: the version of the snapshot that the tables were made from.
pub const UDP_VERSION_SLOT: u32 = MAX_PODS;
/// Value of `UDP_TABLES`: the pod's rules do not fit: it may send no datagram but to itself and to port 53.
pub const UDP_REFUSED: u64 = u64::MAX;

/// Key of `UDP_DENIED`: an address and port that pods with this table may not send datagrams to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpKey {
    /// The table; no number is used twice.
    pub table: u64,
    /// The address.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Key of `LISTENING` and `SEEDED`: a port of a network namespace that an application listens on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortKey {
    /// Cookie of the namespace.
    pub netns_cookie: u64,
    /// The port, host order.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Key of `STEERED`: where an enrolled unit of a host listens. All zero (IPv4: v4-mapped) is any address of the family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteeredKey {
    /// Cookie of the host's network namespace.
    pub netns_cookie: u64,
    /// The address.
    pub addr: Addr,
    /// The port, host order.
    pub port: u16,
    /// Zero.
    pub pad: [u16; 3],
}

/// Value of the `SOCKETS` socket storage: what a redirected or accepted socket shows instead of its real peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// What `getpeername()` and `accept()` answer.
    pub peer: Endpoint,
    /// One of the `SOCKET_*` kinds.
    pub kind: u32,
    /// For an outbound socket: its key in `ORIG_DST` (`addr` filled at connect, IPv6 source filled at SYN time).
    pub key: OrigKey,
    /// What `getsockname()` answers instead of a loopback address; all zero: the kernel's answer is true.
    pub local: Addr,
}

/// [`Socket::kind`]: outbound, redirected to the agent.
pub const SOCKET_OUTBOUND: u32 = 1;
/// [`Socket::kind`]: accepted by an application from the agent.
pub const SOCKET_INBOUND: u32 = 2;
/// [`Socket::kind`]: outbound, redirected to the agent, which answers the held SYN.
pub const SOCKET_HELD: u32 = 3;
/// [`Socket::kind`]: outbound, left alone by the connect hook although its pod is enrolled; it shows the kernel's truth.
pub const SOCKET_PASSED: u32 = 4;

impl Socket {
    /// Whether it shows another peer than the kernel's.
    pub const fn has_other_peer(&self) -> bool {
        self.kind == SOCKET_INBOUND || self.is_outbound()
    }

    /// Whether its connection was redirected to the agent.
    pub const fn is_outbound(&self) -> bool {
        self.kind == SOCKET_OUTBOUND || self.kind == SOCKET_HELD
    }
}

/// The v4-mapped form of an IPv4 address.
pub const fn mapped(octets: [u8; 4]) -> Addr {
    let [a, b, c, d] = octets;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};

    use super::*;

    /// The size that the fields add up to: any difference is implicit padding.
    #[test]
    fn no_struct_has_implicit_padding() {
        let (addr, u16s, u32s, u64s) = (size_of::<Addr>(), 2, 4, 8);
        assert_eq!(size_of::<Pod>(), u64s + 2 * addr + 4 * u32s);
        assert_eq!(size_of::<OrigKey>(), u64s + addr + 4 * u16s);
        assert_eq!(size_of::<ClientKey>(), u64s + addr + 4 * u16s);
        assert_eq!(size_of::<Endpoint>(), addr + 2 * u16s);
        assert_eq!(size_of::<Held>(), 2 * size_of::<Endpoint>() + 2 * u32s + POD_LEVELS as usize * u64s);
        assert_eq!(size_of::<HeldEvent>(), size_of::<OrigKey>() + 2 * u32s);
        assert_eq!(size_of::<PortKey>(), u64s + 4 * u16s);
        assert_eq!(size_of::<UdpKey>(), u64s + addr + 4 * u16s);
        assert_eq!(size_of::<SteeredKey>(), u64s + addr + 4 * u16s);
        assert_eq!(size_of::<Socket>(), size_of::<Endpoint>() + u32s + size_of::<OrigKey>() + addr,);
    }

    #[test]
    fn sizes_and_alignments_are_pinned() {
        assert_eq!((size_of::<Pod>(), align_of::<Pod>()), (56, 8));
        assert_eq!((size_of::<OrigKey>(), align_of::<OrigKey>()), (32, 8));
        assert_eq!((size_of::<ClientKey>(), align_of::<ClientKey>()), (32, 8));
        assert_eq!((size_of::<Endpoint>(), align_of::<Endpoint>()), (20, 2));
        assert_eq!((size_of::<PortKey>(), align_of::<PortKey>()), (16, 8));
        assert_eq!((size_of::<UdpKey>(), align_of::<UdpKey>()), (32, 8));
        assert_eq!((size_of::<SteeredKey>(), align_of::<SteeredKey>()), (32, 8));
        assert_eq!((size_of::<Socket>(), align_of::<Socket>()), (72, 8));
        assert_eq!((size_of::<Held>(), align_of::<Held>()), (72, 8));
        assert_eq!((size_of::<HeldEvent>(), align_of::<HeldEvent>()), (40, 8));
    }

    #[test]
    fn every_reason_has_a_slot_and_its_own_label() {
        assert!(REASONS.len() <= MAX_REASONS as usize);
        for (index, (reason, name)) in REASONS.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(REASONS.iter().filter(|(_, other)| other == name).count() == 1, "{name}");
        }
    }
}
