//! What the hooks that look at packets share: their answers, what they know of a socket's state and of the kernel.

use aya_ebpf::Global;

pub(crate) const DROP: i32 = 0;
pub(crate) const PASS: i32 = 1;

/// `TCP_SYN_SENT`.
pub(crate) const SYN_SENT: u32 = 2;
/// Every network namespace's loopback device.
pub(crate) const LOOPBACK_INDEX: u32 = 1;

/// Whether the kernel tells these hooks the network namespace.
#[unsafe(no_mangle)]
pub(crate) static HAS_SKB_NETNS: Global<u32> = Global::new(0);
