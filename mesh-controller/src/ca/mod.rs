//! The certificate authority: public keys of proven callers in, short-lived certificates out.
//!
//! A root in the state folder signs an intermediate, the intermediate signs everything else; the intermediate may also be
//! one that somebody else made. Nothing but the public key is taken from a request: names, usages and lifetimes are decided
//! here. How one root follows another is in `stages.rs`.

mod files;
mod issuing;
mod labelled;
pub(crate) mod layout;
mod plugged;
pub(crate) mod published;
mod random;
pub(crate) mod shared;
mod stages;
mod tokens;
mod trust;

pub use files::StateDir;
pub(crate) use files::{read_private, write_private};
pub use issuing::{Authority, Profile, Signed, another_root, request_key};
pub use plugged::{IssuerFolder, Look};
pub use shared::{SharedRootError, share_root};
pub use stages::{Change, Material, Next, Old, Signing, Stages, Waits};
pub use tokens::{TokenError, TokenStore};
pub use trust::{Roots, TrustFiles};

use std::path::PathBuf;

use mesh_core::identity::TrustDomain;

/// The DNS name that agents expect in the controller's certificate.
pub const SERVER_NAME: &str = "ferromesh-controller.ferromesh-system.svc";
/// The identity of operators, `spiffe://<trust-domain>` and this path.
pub const ADMIN_PATH: &str = "/ns/ferromesh-system/sa/ferromesh-admin";
/// The identity of a node's agent, `spiffe://<trust-domain>`, this path and the node's name.
pub const NODE_PATH: &str = "/ns/ferromesh-system/sa/ferromesh-agent/node/";

/// The SPIFFE ID of the agent on `node`.
pub fn node_id(trust_domain: &TrustDomain, node: &str) -> String {
    format!("spiffe://{trust_domain}{NODE_PATH}{node}")
}

/// The SPIFFE ID of operators.
pub fn admin_id(trust_domain: &TrustDomain) -> String {
    format!("spiffe://{trust_domain}{ADMIN_PATH}")
}

/// Whether `name` can be a node's: a DNS subdomain, as Kubernetes requires.
pub fn is_node_name(name: &str) -> bool {
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    !name.is_empty() && name.len() <= 253 && name.split('.').all(label)
}

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the state folder cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the state folder does not hold what it should.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The state folder belongs to another mesh.
    #[error(
        "trust domain {wanted:?} refused: the state folder {folder} belongs to trust domain {held:?}, and every certificate \
         out there names it; start with --trust-domain {held}, or with an empty state folder"
    )]
    TrustDomain {
        /// The state folder.
        folder: PathBuf,
        /// The trust domain that it belongs to.
        held: String,
        /// The trust domain that was asked for.
        wanted: String,
    },
    /// The request is not a certificate request of the right form.
    #[error("certificate request refused: {0}")]
    Request(String),
    /// What signs has ended.
    #[error("the intermediate ended at {0}; renew it where it was made")]
    Ended(String),
    /// A plugged-in intermediate cannot be used, and there is nothing else to sign with.
    #[error("the intermediate in {folder}: {problem}")]
    Plugged {
        /// The folder of `--issuer-dir`.
        folder: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Signing failed.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}
