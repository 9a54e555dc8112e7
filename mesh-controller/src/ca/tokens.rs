//! Join tokens: bound to a node, good once, for a while. Only their hashes are kept, one file a token.
//!
//! A token is spent by removing its file, which exactly one caller can do. The folder is the whole state, so that
//! `mesh-controller token create` works beside a running server, and without one.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::files::{read_private, write_private};
use super::random::random_hex;
use super::{CaError, StateDir, is_node_name};

/// The longest life of a token.
const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tokens of a state folder.
#[derive(Clone, Debug)]
pub struct TokenStore {
    folder: PathBuf,
}

/// Why a token is not taken. The caller is told no more than that.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Never made, or spent already.
    #[error("unknown or already used")]
    Unknown,
    /// Too late.
    #[error("expired")]
    Expired,
    /// Made for another node.
    #[error("made for node {0}")]
    OtherNode(String),
    /// The request itself is wrong.
    #[error("{0}")]
    Request(String),
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] CaError),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    node: String,
    expires_unix: u64,
}

/// A token that was found good and is not spent yet.
#[derive(Debug)]
pub struct Ticket {
    path: PathBuf,
}

impl TokenStore {
    /// The store of `state`.
    pub fn open(state: &StateDir) -> Result<Self, CaError> {
        Ok(Self { folder: state.tokens()? })
    }

    /// Makes a token with which `node` may join until `ttl` has passed.
    pub fn create(&self, node: &str, ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
        if !is_node_name(node) {
            return Err(TokenError::Request(format!("{node:?} is not a node's name (a DNS subdomain)")));
        }
        if ttl.is_zero() || ttl > MAX_TTL {
            return Err(TokenError::Request(format!(
                "a token lives from 1 s to {} days",
                MAX_TTL.as_secs() / 86400
            )));
        }
        self.sweep(now)?;
        let token = random_hex::<32>()?;
        let record = Record { node: node.into(), expires_unix: unix(now + ttl) };
        let path = self.path_of(&token);
        let text = serde_json::to_vec(&record)
            .map_err(|e| CaError::Content { path: path.clone(), message: e.to_string() })?;
        write_private(&path, &text)?;
        Ok(token)
    }

    /// Finds out whether `token` is good for `node`, without spending it.
    pub fn check(&self, token: &str, node: &str, now: SystemTime) -> Result<Ticket, TokenError> {
        let path = self.path_of(token);
        let text = read_private(&path)?.ok_or(TokenError::Unknown)?;
        let record: Record = serde_json::from_str(&text)
            .map_err(|e| CaError::Content { path: path.clone(), message: e.to_string() })?;
        if unix(now) >= record.expires_unix {
            return Err(TokenError::Expired);
        }
        if record.node != node {
            return Err(TokenError::OtherNode(record.node));
        }
        Ok(Ticket { path })
    }

    /// Removes what has expired.
    fn sweep(&self, now: SystemTime) -> Result<(), CaError> {
        let failed = |source| CaError::File { path: self.folder.clone(), source };
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let record = read_private(&path)?.and_then(|text| serde_json::from_str::<Record>(&text).ok());
            if record.is_some_and(|r| unix(now) >= r.expires_unix) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn path_of(&self, token: &str) -> PathBuf {
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        self.folder.join(format!("{}.json", hex(hash.as_ref())))
    }
}

impl Ticket {
    /// Spends the token. Of several who try, one succeeds.
    pub fn spend(self) -> Result<(), TokenError> {
        if remove(&self.path)? { Ok(()) } else { Err(TokenError::Unknown) }
    }
}

/// Whether it was there to be removed.
fn remove(path: &std::path::Path) -> Result<bool, CaError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CaError::File { path: path.into(), source }),
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, TokenStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(&StateDir::open(dir.path()).unwrap()).unwrap();
        (dir, store)
    }

    const TTL: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_is_good_once_for_its_node_until_it_expires() {
        let (_dir, store) = store();
        let now = SystemTime::now();
        let token = store.create("node-a", TTL, now).unwrap();
        assert!(matches!(store.check(&token, "node-b", now), Err(TokenError::OtherNode(_))));
        assert!(matches!(store.check("guess", "node-a", now), Err(TokenError::Unknown)));
        assert!(matches!(store.check(&token, "node-a", now + TTL), Err(TokenError::Expired)));
        let (first, second) =
            (store.check(&token, "node-a", now).unwrap(), store.check(&token, "node-a", now).unwrap());
        first.spend().unwrap();
        assert!(matches!(second.spend(), Err(TokenError::Unknown)));
        assert!(matches!(store.check(&token, "node-a", now), Err(TokenError::Unknown)));
    }

    #[test]
    fn the_token_itself_is_not_on_disk_and_expired_ones_are_swept() {
        let (dir, store) = store();
        let now = SystemTime::now();
        let token = store.create("node-a", TTL, now).unwrap();
        for entry in fs::read_dir(dir.path().join("tokens")).unwrap() {
            let path = entry.unwrap().path();
            assert!(!path.to_string_lossy().contains(&token));
            assert!(!fs::read_to_string(path).unwrap().contains(&token));
        }
        store.create("node-b", TTL, now + 2 * TTL).unwrap();
        assert_eq!(fs::read_dir(dir.path().join("tokens")).unwrap().count(), 1);
        assert!(store.create("Not A Node", TTL, now).is_err());
        assert!(store.create("node-a", Duration::ZERO, now).is_err());
    }
}
