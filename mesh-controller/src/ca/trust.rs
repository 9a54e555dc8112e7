//! The trust bundle: every root in `ca/root*.pem` and `ca/trusted/*.pem`, read again as the files change.
//!
//! A file that cannot be read keeps what it held, with a status; a file that is taken away takes its roots with it, except
//! for `root.pem`, whose root signs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::object::{Origin, Status};

/// The roots that are trusted.
pub type Roots = Arc<Vec<CertificateDer<'static>>>;

/// The files that the bundle is read from.
#[derive(Debug)]
pub struct TrustFiles {
    folder: PathBuf,
    held: BTreeMap<PathBuf, Vec<CertificateDer<'static>>>,
    roots: Roots,
    statuses: Vec<Status>,
}

impl TrustFiles {
    /// Reads the bundle of the folder `ca`.
    pub fn open(folder: PathBuf) -> Self {
        let mut files = Self { folder, held: BTreeMap::new(), roots: Roots::default(), statuses: Vec::new() };
        files.refresh();
        files
    }

    /// The roots as of the last reading.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// What was wrong at the last reading.
    pub fn statuses(&self) -> &[Status] {
        &self.statuses
    }

    /// Reads again; `true` when the bundle or what is wrong with it changed.
    pub fn refresh(&mut self) -> bool {
        let mut statuses = Vec::new();
        let mut next = BTreeMap::new();
        let signing = self.folder.join("root.pem");
        for path in self.listed(&mut statuses) {
            let read = read(&path).map_err(|message| {
                let origin = Origin::Place(format!("{}:1", path.display()).into());
                statuses.push(Status::refused(&origin, "Malformed", format!("trust bundle: {message}")));
            });
            let held = || self.held.get(&path).cloned().unwrap_or_default();
            next.insert(path.clone(), read.unwrap_or_else(|()| held()));
        }
        if let (false, Some(held)) = (next.contains_key(&signing), self.held.get(&signing)) {
            let origin = Origin::Place(signing.display().to_string().into());
            statuses.push(Status::refused(&origin, "Missing", "the signing root is gone; it stays trusted"));
            next.insert(signing, held.clone());
        }
        let mut roots: Vec<_> = next.values().flatten().cloned().collect();
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        let changed = *self.roots != roots || self.statuses != statuses;
        (self.held, self.statuses) = (next, statuses);
        if *self.roots != roots {
            self.roots = Arc::new(roots);
        }
        changed
    }

    fn listed(&self, statuses: &mut Vec<Status>) -> Vec<PathBuf> {
        let trusted = self.folder.join("trusted");
        let mut paths = Vec::new();
        for (folder, prefix) in [(&self.folder, "root"), (&trusted, "")] {
            let entries = match std::fs::read_dir(folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let origin = Origin::Place(folder.display().to_string().into());
                    statuses.push(Status::refused(&origin, "Unreadable", format!("trust bundle: {error}")));
                    paths.extend(self.held.keys().filter(|p| p.parent() == Some(folder)).cloned());
                    continue;
                }
            };
            let named = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(prefix) && name.ends_with(".pem") && !name.starts_with('.')
            };
            paths.extend(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(named));
        }
        paths
    }
}

/// Every certificate of a PEM file; each must be one that can be trusted as a root.
fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let mut roots = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|e| e.to_string())?;
        RootCertStore::empty().add(certificate.clone()).map_err(|e| e.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| e.to_string())?;
        if !parsed.is_ca() {
            return Err(format!("{} is not a CA's certificate", parsed.subject()));
        }
        roots.push(certificate);
    }
    if roots.is_empty() { Err("holds no certificate".into()) } else { Ok(roots) }
}
