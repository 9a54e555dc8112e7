//! The last good snapshot on the node's disk. What is published comes in and is written within two seconds; at a start
//! [`read`] gives it back, so that pods are classified and known services are found while the controller is away.
//!
//! The file is `snapshot` in the state directory, 0600: eight bytes that name the format, the SHA-256 of the rest, and a
//! `KeptSnapshot`, whose delta goes through the same decoder as one of the controller. It is taken whole or not at all.
//! No key is in it: see ADR 0006.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use mesh_api::decode::{self, DecodeError};
use mesh_api::proto::{KeptSnapshot, TrustBundle};
use mesh_api::{addr, encode};
use mesh_core::snapshot::Delta;
use prost::Message;
use tokio::sync::watch;
use tokio::time::sleep;

use super::bundle::Bundle;
use super::certs::unix_seconds;
use super::{Control, ControlMetrics, ControlStatus, Lookup, NodeSettings, Published, files};

const FILE: &str = "snapshot";
/// The format and its version. A later one gets other digits, and is refused by this agent.
const MAGIC: &[u8; 8] = b"FMSNAP01";
const HEADER: usize = MAGIC.len() + SHA256_OUTPUT_LEN;
/// Larger files are not ours: a node holds what its pods use.
const MOST_BYTES: u64 = 256 << 20;
/// Changes within this time are written together.
const PERIOD: Duration = Duration::from_secs(2);
/// After a failure, until the next attempt.
const RETRY: Duration = Duration::from_secs(15);

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0}: others may read or write it, so nobody knows who wrote it")]
    Permissions(PathBuf),
    #[error("{0}: it is not a snapshot of a format that this agent knows")]
    Format(PathBuf),
    #[error("{0}: it is damaged (the checksum does not fit)")]
    Damaged(PathBuf),
    #[error("{path}: {field} is {found:?}, not {ours:?}")]
    NotOurs { path: PathBuf, field: &'static str, found: String, ours: String },
    #[error("{path}: {error}")]
    Decode { path: PathBuf, error: DecodeError },
}

/// What a file held.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) delta: Delta,
    pub(super) bundle: Option<TrustBundle>,
    pub(super) addresses: Vec<std::net::IpAddr>,
    pub(super) saved: SystemTime,
}

/// Reads the file of this node; `None` when there is none.
pub(super) fn read(node: &NodeSettings) -> Result<Option<Kept>, KeptError> {
    let path = node.state_dir.join(FILE);
    let io_error = |source| KeptError::Io { path: path.clone(), source };
    // O_NONBLOCK: a FIFO in its place must not hold the start up. It is refused below.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    if !files::is_private(&file).map_err(io_error)? {
        return Err(KeptError::Permissions(path));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(io_error)?;
    parse(&bytes, &path, node).map(Some)
}

pub(super) fn parse(bytes: &[u8], path: &std::path::Path, node: &NodeSettings) -> Result<Kept, KeptError> {
    let path = || path.to_owned();
    let Some((header, body)) = bytes.split_at_checked(HEADER) else { return Err(KeptError::Format(path())) };
    let Some(checksum) = header.strip_prefix(MAGIC) else { return Err(KeptError::Format(path())) };
    if checksum != digest(&SHA256, body).as_ref() {
        return Err(KeptError::Damaged(path()));
    }
    let kept = KeptSnapshot::decode(body).map_err(|_| KeptError::Format(path()))?;
    let Some(mut message) = kept.snapshot.filter(|message| message.reset) else {
        return Err(KeptError::Format(path()));
    };
    let same = |field, found: String, ours: &str| match found == ours {
        true => Ok(()),
        false => Err(KeptError::NotOurs { path: path(), field, found, ours: ours.to_owned() }),
    };
    same("the node", kept.node, &node.node)?;
    same("the trust domain", std::mem::take(&mut message.trust_domain), node.trust_domain.as_str())?;
    let bundle = message.trust_bundle.take();
    let delta = decode::delta(message).map_err(|error| KeptError::Decode { path: path(), error })?;
    let seconds = Duration::from_secs(u64::try_from(kept.saved_unix).unwrap_or(0));
    Ok(Kept {
        delta,
        bundle,
        addresses: kept.addresses.iter().filter_map(|bytes| addr::from_bytes(bytes)).collect(),
        saved: UNIX_EPOCH.checked_add(seconds).unwrap_or(UNIX_EPOCH),
    })
}

/// Writes what is published.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    node: String,
    published: Published,
    changes: watch::Receiver<u64>,
    bundle: Bundle,
    lookup: Lookup,
    status: std::sync::Arc<ControlStatus>,
    metrics: ControlMetrics,
}

impl Keeper {
    /// Writes what is published from now on.
    pub(super) fn new(control: &Control, node: &NodeSettings) -> Self {
        Self {
            path: node.state_dir.join(FILE),
            node: node.node.clone(),
            published: control.published.clone(),
            changes: control.published.watch(),
            bundle: control.bundle.clone(),
            lookup: control.lookup.clone(),
            status: std::sync::Arc::clone(&control.status),
            metrics: control.metrics.clone(),
        }
    }

    /// Writes for ever.
    pub(super) async fn run(mut self) {
        while self.changes.changed().await.is_ok() {
            while let Err(error) = self.write().await {
                self.metrics.kept_failed.inc();
                let problem = format!("{} could not be written: {error}", self.path.display());
                tracing::error!("{problem}; an agent that starts without the controller will know less");
                self.status.kept_problem(problem);
                sleep(RETRY).await;
            }
            sleep(PERIOD).await;
        }
    }

    async fn write(&mut self) -> io::Result<()> {
        self.changes.mark_unchanged();
        let snapshot = self.published.load();
        let now = SystemTime::now();
        let (bundle, addresses) = (self.bundle.held(), self.lookup.held());
        let (path, node) = (self.path.clone(), self.node.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let mut message = encode::delta(&snapshot.whole(), &snapshot.trust_domain);
            message.trust_bundle = bundle;
            let kept = KeptSnapshot {
                node,
                saved_unix: unix_seconds(now),
                snapshot: Some(message),
                addresses: addresses.into_iter().map(encode::address).collect(),
            };
            files::replace(&path, &render(&kept))
        });
        writing.await.map_err(io::Error::other)??;
        self.status.saved(now);
        Ok(())
    }
}

fn render(kept: &KeptSnapshot) -> Vec<u8> {
    file(&kept.encode_to_vec())
}

/// The file with this content.
pub(super) fn file(body: &[u8]) -> Vec<u8> {
    [MAGIC.as_slice(), digest(&SHA256, body).as_ref(), body].concat()
}

#[cfg(test)]
#[path = "kept_tests.rs"]
pub(super) mod tests;
