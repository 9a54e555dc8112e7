//! The maps, each pinned under the agent's pin directory by its name, so that a new agent adopts what the old one left
//! and both objects see the same entries.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, SockMap};
use mesh_common::{
    ClientKey, Endpoint, HELD_EVENT_BYTES, Held, LISTENERS_PER_POD, MAX_AGENTS, MAX_LISTENING, MAX_PENDING,
    MAX_PODS, MAX_REASONS, MAX_STEERED, MAX_UDP_DENIED, MAX_UNSERVED, OrigKey, Pod, PortKey, Reason, Socket,
    SteeredKey, UDP_VERSION_SLOT, UdpKey,
};

/// Cgroup id -> pod. Written by the agent.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(MAX_PODS, 0);

/// Original destinations of redirected connections, from SYN until the agent's accept.
#[map]
pub static ORIG_DST: HashMap<OrigKey, Endpoint> = HashMap::pinned(MAX_PENDING, 0);

/// Connections whose SYN is held, for as long as their clients wait.
#[map]
pub static HELD: HashMap<OrigKey, Held> = HashMap::pinned(MAX_PENDING, 0);

/// Tells the agent what happens to the keys of `HELD`. What is not read stays there for the next agent.
#[map]
pub static HELD_EVENTS: RingBuf = RingBuf::pinned(HELD_EVENT_BYTES, 0);

/// True clients of connections that the agent dials, from before its SYN until the application's socket is established.
#[map]
pub static CLIENTS: HashMap<ClientKey, Endpoint> = HashMap::pinned(MAX_PENDING, 0);

const OTHER_BUILD: bool = cfg!(feature = "other-build");
const UNSERVED_ENTRIES: u32 = if OTHER_BUILD { MAX_UNSERVED / 2 } else { MAX_UNSERVED };
const REASON_SLOTS: u32 = if OTHER_BUILD { MAX_REASONS * 2 } else { MAX_REASONS };

/// Virtual addresses and ports that no endpoint serves (the value means nothing). Written by the agent.
#[map]
pub static UNSERVED: HashMap<Endpoint, u8> = HashMap::pinned(UNSERVED_ENTRIES, BPF_F_NO_PREALLOC);

/// Which table of `UDP_DENIED` a pod has, by its index: 0 for none, or `UDP_REFUSED`. One write swaps the whole of it. Written
/// by the agent.
#[map]
pub static UDP_TABLES: Array<u64> = Array::pinned(UDP_VERSION_SLOT + 1, 0);

/// Where pods may not send datagrams to (the value means nothing). Written by the agent, before any pod has the table.
#[map]
pub static UDP_DENIED: HashMap<UdpKey, u8> = HashMap::pinned(MAX_UDP_DENIED, BPF_F_NO_PREALLOC);

/// Cgroup ids of the agents whose listeners are in use (the value means nothing), where agents are below the pods' root: a
/// socket keeps the cgroup of the agent that opened it, also when another one has taken over. Written by the agent.
#[map]
pub static AGENTS: HashMap<u64, u8> = HashMap::pinned(MAX_AGENTS, 0);

/// When the agent last gave a sign of life: nanoseconds of the monotonic clock.
#[map]
pub static HEARTBEAT: Array<u64> = Array::pinned(1, 0);

/// How many sockets of applications listen on a port. Counted by the programs.
#[map]
pub static LISTENING: HashMap<PortKey, u64> = HashMap::pinned(MAX_LISTENING, BPF_F_NO_PREALLOC);

/// Ports that applications listen on and `LISTENING` lacks (the value means nothing). Written by the agent.
#[map]
pub static SEEDED: HashMap<PortKey, u8> = HashMap::pinned(MAX_LISTENING, BPF_F_NO_PREALLOC);

/// Where enrolled units of a host listen, and how many seconds their owner would wait for a lost agent (0: for ever). Written by the
/// agent.
#[map]
pub static STEERED: HashMap<SteeredKey, u32> = HashMap::pinned(MAX_STEERED, BPF_F_NO_PREALLOC);

/// The agent's inbound listeners, `LISTENERS_PER_POD` slots a pod.
#[map]
pub static LISTENERS: SockMap = SockMap::pinned(MAX_PODS * LISTENERS_PER_POD, 0);

/// How often each [`Reason`] was the outcome.
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::pinned(REASON_SLOTS, 0);

/// What a redirected or accepted socket shows instead of its real peer; lives and dies with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Counts one outcome.
#[inline(always)]
pub fn count(reason: Reason) {
    add(reason as u32);
    if OTHER_BUILD {
        // All of them together.
        add(REASON_SLOTS - 1);
    }
}

#[inline(always)]
fn add(index: u32) {
    if let Some(slot) = REASONS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own and lives as long as the map.
        unsafe { *slot += 1 };
    }
}
