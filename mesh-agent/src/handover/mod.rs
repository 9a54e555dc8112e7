//! An agent gives way to its successor without a pause: the new process, started with the same configuration, asks the
//! running one over a Unix socket that only root may open, and gets the pods' listeners (the same sockets of the kernel, so
//! that what waits in them is accepted by either), the node's own listeners, and the state that it needs to serve at once.
//! When it says that it serves, the old process stops accepting, lets its open connections end, and goes.
//!
//! In: the configuration, and what the running agent holds. Out: an [`Estate`] in the successor. The bytes are in
//! `wire`; whatever is not as expected ends the conversation, and the running agent goes on as if nobody had asked.

mod estate;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod give;
mod take;
mod wire;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::config::AgentArgs;

pub use estate::{Estate, NodeSockets};
pub use give::{Giver, HandoverSocket, Offer};
pub use take::{Claim, claim};

/// Why a handover did not come about. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The connection, or a message that never came.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other end is not an agent's.
    #[error("the other process runs as user {found}, not {expected}")]
    Stranger {
        /// This process's user.
        expected: u32,
        /// The other's.
        found: u32,
    },
    /// Another protocol, or another version of it.
    #[error("the other agent speaks version {theirs} of the handover, this one {ours}")]
    Version {
        /// This process's.
        ours: u8,
        /// The other's.
        theirs: u8,
    },
    /// Not what the protocol says.
    #[error("the other agent sent {0}")]
    Unexpected(String),
    /// The running agent says no.
    #[error("the running agent refuses: {0}")]
    Refused(String),
}

impl HandoverError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// What both agents must have in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    node: String,
    trust_domain: String,
    pods_cgroup: PathBuf,
    pin_dir: PathBuf,
    metrics_addr: String,
    admin_socket: PathBuf,
}

impl Place {
    /// The place that these arguments name.
    pub fn of(args: &AgentArgs) -> Self {
        Self {
            node: args.node.clone(),
            trust_domain: args.trust_domain.to_string(),
            pods_cgroup: args.pods_cgroup.clone(),
            pin_dir: args.pin_dir.clone(),
            metrics_addr: args.metrics_addr.to_string(),
            admin_socket: args.admin_socket.clone(),
        }
    }
}

/// The kernel says who is at the other end. Keys go over this connection, and sockets that are believed.
fn check_peer(stream: &UnixStream, expected: u32) -> Result<(), HandoverError> {
    let peer =
        socket_peercred(stream).map_err(|e| HandoverError::io("asking who is at the other end")(e.into()))?;
    let found = peer.uid.as_raw();
    if found == expected { Ok(()) } else { Err(HandoverError::Stranger { expected, found }) }
}

/// The user that both agents run as: root, unless a test runs them.
fn own_user() -> u32 {
    geteuid().as_raw()
}

/// Where the socket is: beside the administration socket.
pub fn socket_path(admin_socket: &Path) -> PathBuf {
    admin_socket.with_extension("handover")
}

#[cfg(test)]
mod tests;
