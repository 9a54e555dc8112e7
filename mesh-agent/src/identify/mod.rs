//! Stage 2: who is at each end. SVIDs of local workloads, the trust bundle, and the verifier of peers.

mod failure;
mod proven;
mod provider;
mod store;
mod tls;
mod verify;

pub use failure::HandshakeFailure;
pub use proven::ProvenPeer;
pub use provider::provider;
pub use store::{Svid, SvidStore, Trust};
pub use tls::{client_config, server_config};
pub use verify::{ClientVerifier, PeerCertificate, Role, ServerVerifier, is_signed_under, peer_certificate};
