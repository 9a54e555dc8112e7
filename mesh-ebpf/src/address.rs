//! Addresses as the kernel's context structs have them (words in network order) and as the maps have them (16 bytes).

use mesh_common::{Addr, POD_SHARED, Pod, Reason};

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `SOCK_STREAM`.
pub const SOCK_STREAM: u32 = 1;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u32 = 6;
/// `IPPROTO_MPTCP`.
pub const IPPROTO_MPTCP: u32 = 262;

/// The third word of a v4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

/// Four words in network order: an IPv6 address, or a v4-mapped one.
pub type Words = [u32; 4];

/// `::1`.
pub const LOOPBACK6: Words = [0, 0, 0, 1_u32.to_be()];

/// The v4-mapped form of an IPv4 address in network order.
#[inline(always)]
pub const fn mapped(ip4: u32) -> Words {
    [0, 0, MAPPED, ip4]
}

/// Whether the address is v4-mapped.
#[inline(always)]
pub fn is_mapped(words: Words) -> bool {
    words[0] == 0 && words[1] == 0 && words[2] == MAPPED
}

/// Reads an address of a context struct. Volatile, so that the compiler keeps to 4-byte reads: the kernel refuses others.
///
/// # Safety
/// `field` must be readable by the program type.
#[inline(always)]
pub unsafe fn read_words(field: *const Words) -> Words {
    let word = field.cast::<u32>();
    // SAFETY: four words, by the caller's promise.
    unsafe {
        [
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ]
    }
}

/// Words to the bytes of the maps.
#[inline(always)]
pub fn to_addr(words: Words) -> Addr {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute::<Words, Addr>(words) }
}

/// The bytes of the maps to words.
#[inline(always)]
pub fn to_words(addr: Addr) -> Words {
    // SAFETY: both are 16 plain bytes.
    unsafe { core::mem::transmute::<Addr, Words>(addr) }
}

/// Whether no address is there.
#[inline(always)]
pub fn is_zero(words: Words) -> bool {
    words[0] | words[1] | words[2] | words[3] == 0
}

/// Whether both are the same address.
#[inline(always)]
pub fn equal(a: Words, b: Words) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Why a connection of `pod` to an IPv4 address (network order) is left alone, if it is.
#[inline(always)]
pub fn left_alone4(dst: u32, pod: &Pod) -> Option<Reason> {
    let host = u32::from_be(dst);
    match (host >> 24, host >> 16) {
        (127, _) => own(pod, Reason::ConnectLoopback),
        // "This host", link-local with the metadata service, multicast, reserved and broadcast.
        (0, _) | (_, 0xa9fe) | (224..=255, _) => Some(Reason::ConnectNeverRedirected),
        _ if dst == to_words(pod.addr4)[3] => own(pod, Reason::ConnectOwnAddress),
        _ => None,
    }
}

/// Why a connection of `pod` to an IPv6 address that is not v4-mapped is left alone, if it is.
#[inline(always)]
pub fn left_alone6(dst: Words, pod: &Pod) -> Option<Reason> {
    let first = u32::from_be(dst[0]);
    if equal(dst, LOOPBACK6) {
        own(pod, Reason::ConnectLoopback)
    } else if is_zero(dst) || first >> 22 == 0xfe80 >> 6 || first >> 24 == 0xff {
        Some(Reason::ConnectNeverRedirected)
    } else if equal(dst, to_words(pod.addr6)) {
        own(pod, Reason::ConnectOwnAddress)
    } else {
        None
    }
}

/// What `pod` dials in its own network namespace is its own, unless others are there too.
#[inline(always)]
fn own(pod: &Pod, reason: Reason) -> Option<Reason> {
    if pod.flags & POD_SHARED == 0 { Some(reason) } else { None }
}

/// Whether the address is one of loopback, of either family.
#[inline(always)]
pub fn is_loopback(words: Words) -> bool {
    if is_mapped(words) { u32::from_be(words[3]) >> 24 == 127 } else { equal(words, LOOPBACK6) }
}
