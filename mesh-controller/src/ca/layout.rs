//! The authority's files in the state folder. [`Material`] in, files out, and the other way round.
//!
//! `root.pem` and `root.key` are all there is of a root that was made here while nothing changes. Otherwise `authority.json`
//! holds everything, is written first and whole, and the other files follow from it: a controller that is killed between
//! two files finds what it was about to write.

use std::path::Path;
use std::time::SystemTime;

use super::stages::{Material, Signing};
use super::{CaError, IssuerFolder, read_private, write_private};

/// Everything, while there is more than a root.
const WHOLE: &str = "authority.json";
/// The root that signs, and its key where it was made here.
pub(super) const ROOT: &str = "root.pem";
pub(super) const ROOT_KEY: &str = "root.key";
/// The chain and key of a plugged-in intermediate.
pub(super) const ISSUER: &str = "issuer.pem";
pub(super) const ISSUER_KEY: &str = "issuer.key";
/// Roots that are trusted and do not sign; see `trust.rs`.
const NEXT: &str = "root-next.pem";
const OLD: &str = "root-old.pem";

/// What the folder holds; `None` in a new one.
pub(crate) fn load(folder: &Path) -> Result<Option<Material>, CaError> {
    let path = folder.join(WHOLE);
    if let Some(text) = read_private(&path)? {
        let material = serde_json::from_str(&text);
        return material.map(Some).map_err(|e| CaError::Content { path, message: e.to_string() });
    }
    let Some(certificate) = read_private(&folder.join(ROOT))? else { return Ok(None) };
    let path = folder.join(ROOT_KEY);
    let key = read_private(&path)?.ok_or(CaError::Content { path, message: "is missing".into() })?;
    Ok(Some(Material::new(Signing { certificate, key, root: None })))
}

/// Repairs what a controller that was killed left behind; a new folder begins with the intermediate in `input`, if one is
/// to be plugged in.
pub(crate) fn prepare(folder: &Path, input: Option<&IssuerFolder>, now: SystemTime) -> Result<(), CaError> {
    if let Some(material) = load(folder)? {
        return store(folder, &material);
    }
    let Some(input) = input else { return Ok(()) };
    let refused = |problem| CaError::Plugged { folder: input.path().into(), problem };
    store(folder, &Material::new(input.read(now).map_err(refused)?))
}

/// Makes the folder hold `material` and nothing of what was there before.
pub(crate) fn store(folder: &Path, material: &Material) -> Result<(), CaError> {
    let plain = !material.signing.is_plugged() && material.stages == super::stages::Stages::default();
    let path = folder.join(WHOLE);
    if !plain {
        let text = serde_json::to_string(material)
            .map_err(|e| CaError::Content { path: path.clone(), message: e.to_string() })?;
        put(folder, WHOLE, Some(&text))?;
    }
    let (signing, stages) = (&material.signing, &material.stages);
    // What is trusted before what signs, and keys before certificates.
    let old: String = stages.old.iter().map(|old| old.certificate.as_str()).collect();
    put(folder, OLD, Some(&*old).filter(|old| !old.is_empty()))?;
    put(folder, NEXT, stages.next.as_ref().map(|next| next.signing.root()))?;
    let own = !signing.is_plugged();
    put(folder, ISSUER_KEY, (!own).then_some(&signing.key))?;
    put(folder, ROOT_KEY, own.then_some(&signing.key))?;
    put(folder, ROOT, Some(signing.root()))?;
    put(folder, ISSUER, (!own).then_some(&signing.certificate))?;
    if plain { put(folder, WHOLE, None) } else { Ok(()) }
}

fn put(folder: &Path, name: &str, text: Option<&str>) -> Result<(), CaError> {
    let path = folder.join(name);
    let held = read_private(&path)?;
    match text {
        Some(text) if held.as_deref() == Some(text) => Ok(()),
        Some(text) => write_private(&path, text.as_bytes()),
        None if held.is_none() => Ok(()),
        None => std::fs::remove_file(&path).map_err(|source| CaError::File { path, source }),
    }
}
