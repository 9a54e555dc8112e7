//! Whether the agent dials. In: where a SYN comes from. Out: whether the agent has written down, under that very address and
//! port, for whom it dials from there.
//!
//! In a pod's own network namespace what comes from loopback can only be the pod's or the agent's. On a host's anybody may
//! speak from loopback, and bind the addresses that the agent dials from as well: the record tells them apart. It is there
//! from before the SYN until the application's socket is established. Should somebody else come by the same address and port in that
//! time, he lacks the mark that the ingress hook asks for.

use mesh_common::{CLIENT_TOKEN_MASK, CLIENT_TOKEN_PREFIX, ClientKey};

use crate::address::{Words, is_mapped, to_addr};
use crate::maps::CLIENTS;

/// Whether a record of the agent's names `from` and `port` (host order) in this network namespace.
#[inline(always)]
pub fn by_agent(netns_cookie: u64, from: Words, port: u16) -> bool {
    let token = is_mapped(from);
    if token && u32::from_be(from[3]) & !CLIENT_TOKEN_MASK != CLIENT_TOKEN_PREFIX {
        return false;
    }
    let key =
        ClientKey { netns_cookie, addr: to_addr(from), port: if token { 0 } else { port }, pad: [0; 3] };
    CLIENTS.get_ptr(&key).is_some()
}
