//! The certificates of this node: its own, and the SVIDs of the workloads on it. Keys are made here and never leave;
//! the controller signs.

mod issued;
mod node;
mod renewal;
mod workload;

pub use issued::CertificateError;
pub use node::{NodeError, NodeIdentity, NodeSettings};
pub(super) use workload::Signer;

pub(super) use issued::{rfc3339, unix_seconds};
pub(super) use node::keep_renewed;
