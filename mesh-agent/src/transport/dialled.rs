//! What a dial or the pools gave: the connection to the far agent, by its transport.

use super::hbone::Shard;
use super::lease::Lease;

/// A connection that can carry what a tunnel is for.
#[derive(Debug)]
pub(super) enum Dialled {
    Lease(Lease),
    Hbone(Shard),
}
