//! The state folder: private files (0600 in folders of 0700), written whole or not at all, and the mesh it belongs to.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mesh_core::identity::TrustDomain;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

use super::CaError;

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

/// The folder in which the controller keeps what must outlive it.
#[derive(Clone, Debug)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Makes the folder, or tightens it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, CaError> {
        let dir = Self { root: root.into() };
        make_private_dir(&dir.root)?;
        Ok(dir)
    }

    /// The folder of certificates and keys.
    pub fn ca(&self) -> Result<PathBuf, CaError> {
        self.folder("ca")
    }

    /// The folder of join tokens.
    pub fn tokens(&self) -> Result<PathBuf, CaError> {
        self.folder("tokens")
    }

    /// The operator's key, made on first use.
    pub fn admin_key(&self) -> Result<KeyPair, CaError> {
        let path = self.folder("admin")?.join("key.pem");
        let Some(text) = read_private(&path)? else {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            write_private(&path, key.serialize_pem().as_bytes())?;
            return Ok(key);
        };
        KeyPair::from_pem(&text).map_err(|e| CaError::Content { path, message: e.to_string() })
    }

    /// Writes the operator's certificate chain.
    pub fn write_admin_certificate(&self, chain_pem: &str) -> Result<(), CaError> {
        write_private(&self.folder("admin")?.join("cert.pem"), chain_pem.as_bytes())
    }

    /// Ties the folder to `wanted`, or refuses if it is tied to another trust domain.
    pub fn claim_trust_domain(&self, wanted: &TrustDomain) -> Result<(), CaError> {
        let path = self.root.join("trust-domain");
        match fs::read_to_string(&path) {
            Ok(held) if held.trim() == wanted.as_str() => Ok(()),
            Ok(held) => Err(CaError::TrustDomain {
                folder: self.root.clone(),
                held: held.trim().into(),
                wanted: wanted.as_str().into(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_private(&path, format!("{wanted}\n").as_bytes())
            }
            Err(source) => Err(CaError::File { path, source }),
        }
    }

    fn folder(&self, name: &str) -> Result<PathBuf, CaError> {
        let path = self.root.join(name);
        make_private_dir(&path)?;
        Ok(path)
    }
}

fn make_private_dir(path: &Path) -> Result<(), CaError> {
    let failed = |source| CaError::File { path: path.into(), source };
    DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(path).map_err(failed)?;
    tighten(path, PRIVATE_DIR)
}

/// Takes away what others may do with `path`.
fn tighten(path: &Path, wanted: u32) -> Result<(), CaError> {
    let failed = |source| CaError::File { path: path.into(), source };
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o777;
    if mode & !wanted == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "private path was open to others; tightened");
    fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(failed)
}

/// Reads a private file, `None` when it is not there.
pub(crate) fn read_private(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => {
            tighten(path, PRIVATE_FILE)?;
            Ok(Some(text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File { path: path.into(), source }),
    }
}

/// Writes a private file so that readers see the old content or the new, and never a part.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), CaError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.{}", super::random::random_hex::<8>()?));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| {
        // The half-written file is in nobody's way; the error that counts is the first one.
        fs::remove_file(&fresh).ok();
        CaError::File { path: path.into(), source }
    })
}
