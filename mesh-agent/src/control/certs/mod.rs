//! The certificates of this node: its own, and the SVIDs of the workloads on it. Keys are made here, the
//! controller signs; the SVIDs' keys leave only for a successor of this agent on the same node.

mod issued;
mod keyring;
mod node;
mod renewal;
mod workload;

pub use issued::CertificateError;
pub(super) use keyring::Keyring;
pub use keyring::PortableSvid;
pub use node::{NodeError, NodeIdentity, NodeSettings};
pub(super) use workload::Signer;

pub(crate) use issued::rfc3339;
pub(super) use issued::unix_seconds;
pub(super) use node::keep_renewed;
