//! Stage 0: the kernel hands the agent a pod's connections.

mod pod;

pub use pod::{PodEvent, PodListeners, PodNet};
