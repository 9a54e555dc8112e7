//! Stage 0: the kernel hands the agent a pod's connections.
//!
//! In: the snapshot (which pods of this node are enrolled) and the node itself (cgroups, processes, network namespaces).
//! Out: [`PodEvent`]s with the listeners that the data plane serves, and [`PodNet`]s that it dials through. Everything
//! that the kernel needs stays pinned, so that pods stay closed, not open, while no agent runs.

mod bound;
mod cgroup;
mod config;
mod connect;
mod diag;
mod discover;
mod exempt;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod held;
mod host;
mod hub;
mod inherit;
mod kubelet;
mod layout;
mod listen;
mod listening;
mod load;
mod lookups;
mod maps;
mod node_network;
mod object;
mod older;
mod packet;
mod pins;
mod pod;
mod probe;
mod problem;
mod ring;
mod running;
mod steered;
mod sweep;
mod sync;
mod udp;
mod unserved;
mod waiting;
mod weak;

pub use cgroup::{RootError, find_pods_root};
pub use config::{Config, ConnectChoice, NeverHeld};
pub use discover::Refusal;
pub use held::{Answer, Held};
pub use host::{Host, Owner};
pub use hub::Answering;
pub use inherit::{Inherited, NotAListener};
pub use kubelet::Kubelet;
pub use load::Interceptor;
pub use object::InterceptError;
pub use older::{OlderSocket, OlderSockets};
pub use packet::Missing;
pub use pod::{PodEvent, PodListeners, PodNet};
pub use probe::{Probe, probe};
pub use problem::PodProblem;
pub use ring::HeldEvents;
pub use running::{Holder, Running};
pub use weak::{WeakSpot, exclusive_programs, weak_spots};
