//! Files in the state directory: only the agent's user may read them, and a crash leaves the old one or the new one.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes beside the file (mode 0600) and renames.
pub(super) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Whether nobody but this user (and root) can have written or read what `file` holds.
pub(super) fn is_private(file: &fs::File) -> io::Result<bool> {
    let meta = file.metadata()?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw() || meta.uid() == 0;
    Ok(meta.is_file() && ours && meta.permissions().mode() & 0o077 == 0)
}
