//! Is the agent alive? Its sign of life comes in, and a pod whose owner may have chosen plaintext over nothing; whether the
//! pod's connections pass around the agent goes out.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use mesh_common::{AGENT_AWAY, Pod};

use crate::maps::HEARTBEAT;

const SECOND: u64 = 1_000_000_000;

/// What a pod may expect of the agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// It gives signs of life.
    Alive,
    /// It does not; the pod stays closed (yet).
    Away,
    /// It has not for longer than the pod's owner allows.
    Lost,
}

/// The agent, as far as `pod` is concerned.
#[inline(always)]
pub fn agent(pod: &Pod) -> Agent {
    silent_for(pod.lost_after)
}

/// The agent, as far as whoever waits `lost_after` seconds for it is concerned (0: for ever).
#[inline(always)]
pub fn silent_for(lost_after: u32) -> Agent {
    let Some(beat) = HEARTBEAT.get_ptr(0) else { return Agent::Away };
    // SAFETY: the slot lives as long as the map; the kernel writes a value of eight bytes at once.
    let beat = unsafe { beat.read_volatile() };
    // SAFETY: the helper has no preconditions.
    let silent = unsafe { bpf_ktime_get_ns() }.saturating_sub(beat);
    if lost_after != 0 && silent > lost_after as u64 * SECOND {
        Agent::Lost
    } else if silent > AGENT_AWAY as u64 * SECOND {
        Agent::Away
    } else {
        Agent::Alive
    }
}
