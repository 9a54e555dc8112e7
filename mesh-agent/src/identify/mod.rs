//! Stage 2: who is at each end. SVIDs of local workloads, the trust bundle, and the verifier of peers.

mod store;

pub use store::{Svid, SvidStore, Trust};
