//! A fresh token: the part of the loopback address that names one redirected IPv4 connection.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use mesh_common::{ORIG_TOKEN_MASK, ORIG_TOKEN_PREFIX, OrigKey};
use mesh_ebpf::address::{mapped, to_addr};
use mesh_ebpf::maps::{HELD, ORIG_DST};

/// How often a taken token is drawn again.
const DRAWS: u32 = 8;

/// A token address (network order) and its key, free at this moment. Two callers that draw the same one before either
/// publishes it are found out at publication.
#[inline(always)]
pub(crate) fn draw(netns_cookie: u64) -> Option<(u32, OrigKey)> {
    for _ in 0..DRAWS {
        // SAFETY: the helper has no preconditions.
        let token = unsafe { bpf_get_prandom_u32() } & ORIG_TOKEN_MASK;
        // The last address of 127/8 is its broadcast address.
        if token == ORIG_TOKEN_MASK {
            continue;
        }
        let address = (ORIG_TOKEN_PREFIX | token).to_be();
        let key = OrigKey { netns_cookie, addr: to_addr(mapped(address)), port: 0, pad: [0; 3] };
        if ORIG_DST.get_ptr(&key).is_none() && HELD.get_ptr(&key).is_none() {
            return Some((address, key));
        }
    }
    None
}
