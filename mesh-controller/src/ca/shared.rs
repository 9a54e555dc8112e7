//! The authority that all replicas share: the Secret `ferromesh-ca` of the root namespace, in the layout of
//! `kubernetes.io/tls` (and so of cert-manager), with `rotation.json` beside it while a root changes. An API server in, the
//! files of the state folder out.
//!
//! Whoever is first makes it: of two replicas that start at once the server takes one, and the other takes that one's root
//! over. Each change names the version that it was made from, so that of two writers one is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::core::params::{GetParams, PostParams};
use kube::core::{Request, Resource};
use mesh_core::identity::TrustDomain;
use rcgen::PublicKeyData;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::labelled::metadata;
use super::plugged::key_pair;
use super::published::{NAME as PUBLISHED, publish};
use super::{Authority, CaError, IssuerFolder, Material, Signing, Stages, StateDir, layout};
use crate::api::{ApiError, Client};
use crate::compile::ROOT_NAMESPACE;

/// The Secret's name, and its keys.
const NAME: &str = "ferromesh-ca";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";
const ROTATION: &str = "rotation.json";

/// Why the root is not known.
#[derive(Debug, thiserror::Error)]
pub enum SharedRootError {
    /// The API server refused or is away.
    #[error("the Secret {ROOT_NAMESPACE}/{NAME}: {0}")]
    Api(#[from] ApiError),
    /// The certificate could not be shown to the agents.
    #[error("the ConfigMap {ROOT_NAMESPACE}/{PUBLISHED}: {0}")]
    Publish(#[source] ApiError),
    /// The Secret does not hold a root and its key.
    #[error("the Secret {ROOT_NAMESPACE}/{NAME}: {0}")]
    Content(String),
    /// The state folder failed.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// The Secret as it was read.
#[derive(Clone, Debug)]
pub(crate) struct SharedMaterial {
    /// What it holds.
    pub(crate) material: Material,
    secret: Secret,
}

/// Puts the shared authority into `state`, making it when nobody has (of the intermediate in `input`, or of a new root),
/// and its certificates where agents find them.
pub async fn share_root(
    client: &Client,
    state: &StateDir,
    trust_domain: &TrustDomain,
    input: Option<&IssuerFolder>,
) -> Result<(), SharedRootError> {
    take_or_make(client, state, trust_domain, input).await?;
    let folder = state.ca()?;
    let material = layout::load(&folder)?.ok_or_else(|| missing(&folder))?;
    publish(client, &material.roots_pem()).await.map_err(SharedRootError::Publish)
}

async fn take_or_make(
    client: &Client,
    state: &StateDir,
    trust_domain: &TrustDomain,
    input: Option<&IssuerFolder>,
) -> Result<(), SharedRootError> {
    let folder = state.ca()?;
    match read(client).await {
        Ok(shared) => return Ok(layout::store(&folder, &shared.material)?),
        Err(SharedRootError::Api(error)) if error.is(404) => {}
        Err(error) => return Err(error),
    }
    layout::prepare(&folder, input, SystemTime::now())?;
    // Makes the root where there is none.
    Authority::open(state, trust_domain, SystemTime::now())?;
    let made = layout::load(&folder)?.ok_or_else(|| missing(&folder))?;
    let empty =
        Secret { metadata: metadata(NAME), type_: Some("kubernetes.io/tls".into()), ..Secret::default() };
    let body = body(&filled(empty, &made)?)?;
    let create = request().create(&PostParams::default(), body).map_err(ApiError::from)?;
    match client.call::<Secret>(create).await {
        Ok(_) => {
            tracing::info!(target: "audit", secret = NAME, "root made and shared");
            Ok(())
        }
        Err(error) if error.is(409) => {
            tracing::info!(target: "audit", secret = NAME, "shared root taken over");
            Ok(layout::store(&folder, &read(client).await?.material)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// What the Secret holds now.
pub(crate) async fn read(client: &Client) -> Result<SharedMaterial, SharedRootError> {
    let get = request().get(NAME, &GetParams::default()).map_err(ApiError::from)?;
    let secret: Secret = client.call(get).await?;
    let material = checked(&secret).map_err(SharedRootError::Content)?;
    Ok(SharedMaterial { material, secret })
}

/// Replaces what was read; refused by the server (409) when it is no longer what is there.
pub(crate) async fn replace(
    client: &Client,
    read: SharedMaterial,
    material: &Material,
) -> Result<(), SharedRootError> {
    let body = body(&filled(read.secret, material)?)?;
    let request = request().replace(NAME, &PostParams::default(), body).map_err(ApiError::from)?;
    Ok(client.call::<Secret>(request).await.map(drop)?)
}

fn request() -> Request {
    Request::new(Secret::url_path(&(), Some(ROOT_NAMESPACE)))
}

fn body(secret: &Secret) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(secret).map_err(|e| ApiError::Request(e.to_string()))
}

fn missing(folder: &Path) -> CaError {
    CaError::Content { path: folder.join(layout::ROOT), message: "is missing".into() }
}

/// `secret` with the data of `material`.
fn filled(secret: Secret, material: &Material) -> Result<Secret, ApiError> {
    let Material { signing, stages } = material;
    let mut data = BTreeMap::from([
        (CERTIFICATE.to_owned(), ByteString(signing.certificate.clone().into_bytes())),
        (KEY.to_owned(), ByteString(signing.key.clone().into_bytes())),
    ]);
    if let Some(root) = &signing.root {
        data.insert(ROOT.to_owned(), ByteString(root.clone().into_bytes()));
    }
    if *stages != Stages::default() {
        let text = serde_json::to_vec(stages).map_err(|e| ApiError::Request(e.to_string()))?;
        data.insert(ROTATION.to_owned(), ByteString(text));
    }
    Ok(Secret { data: Some(data), ..secret })
}

fn checked(secret: &Secret) -> Result<Material, String> {
    let text = |name: &str| -> Result<Option<String>, String> {
        let Some(bytes) = secret.data.as_ref().and_then(|data| data.get(name)) else { return Ok(None) };
        String::from_utf8(bytes.0.clone()).map(Some).map_err(|_| format!("{name} is no text"))
    };
    let wanted = |name: &str| text(name)?.ok_or(format!("has no {name}"));
    let signing = Signing { certificate: wanted(CERTIFICATE)?, key: wanted(KEY)?, root: text(ROOT)? };
    let stages = match text(ROTATION)? {
        Some(text) => serde_json::from_str(&text).map_err(|e| format!("{ROTATION}: {e}"))?,
        None => Stages::default(),
    };
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(signing.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{CERTIFICATE}: {e}"))?;
    let first = match &chain[..] {
        [first] => first,
        [first, ..] if signing.is_plugged() => first,
        _ => return Err(format!("{CERTIFICATE} holds {} certificates; a root alone is wanted", chain.len())),
    };
    let (_, parsed) = X509Certificate::from_der(first).map_err(|e| format!("{CERTIFICATE}: {e}"))?;
    if !parsed.is_ca() || (!signing.is_plugged() && parsed.verify_signature(None).is_err()) {
        return Err(format!(
            "{CERTIFICATE} is no self-signed certificate of a CA: an intermediate is given by --issuer-dir"
        ));
    }
    let pair = key_pair(&signing.key).map_err(|e| format!("{KEY}: {e}"))?;
    if parsed.public_key().subject_public_key.data.as_ref() != pair.der_bytes() {
        return Err(format!("{KEY} is not the key of {CERTIFICATE}"));
    }
    Ok(Material { signing, stages })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (tempfile::TempDir, StateDir, Secret) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        Authority::open(&state, &TrustDomain::new("cluster.local").unwrap(), SystemTime::now()).unwrap();
        let material = layout::load(&state.ca().unwrap()).unwrap().unwrap();
        let made = filled(Secret::default(), &material).unwrap();
        (folder, state, made)
    }

    #[test]
    fn another_replica_s_root_is_taken_over_and_signs() {
        let (_first, _, shared) = made();
        let (_second, state, own) = made();
        assert_ne!(own.data, shared.data);
        layout::store(&state.ca().unwrap(), &checked(&shared).unwrap()).unwrap();
        let held = layout::load(&state.ca().unwrap()).unwrap().unwrap();
        assert_eq!(filled(Secret::default(), &held).unwrap().data, shared.data);
        // The intermediate of the root before is made anew.
        Authority::open(&state, &TrustDomain::new("cluster.local").unwrap(), SystemTime::now()).unwrap();
    }

    #[test]
    fn a_secret_holds_every_stage() {
        let trust_domain = TrustDomain::new("cluster.local").unwrap();
        let now = SystemTime::now();
        let root = || super::super::another_root(&trust_domain, now).unwrap();
        let mut material = Material::new(root());
        material.propose(root(), now);
        let waits = super::super::Waits {
            agents: std::time::Duration::ZERO,
            longest_life: std::time::Duration::ZERO,
        };
        for _ in 0..2 {
            let secret = filled(Secret::default(), &material).unwrap();
            assert_eq!(checked(&secret).unwrap(), material);
            material.step(now, true, waits);
        }
        assert_eq!(material.stages.old.len(), 1);
    }

    #[test]
    fn a_secret_that_holds_no_root_and_its_key_is_refused() {
        let (_folder, state, good) = made();
        let (_other, _, other) = made();
        let with = |name: &str, value: Option<ByteString>| {
            let mut secret = good.clone();
            let data = secret.data.as_mut().unwrap();
            match value {
                Some(value) => drop(data.insert(name.into(), value)),
                None => drop(data.remove(name)),
            }
            checked(&secret).unwrap_err()
        };
        let intermediate =
            super::super::read_private(&state.ca().unwrap().join("intermediate.pem")).unwrap().unwrap();
        let other_key = other.data.unwrap()[KEY].clone();
        assert!(with(KEY, None).contains("has no tls.key"));
        assert!(with(KEY, Some(other_key)).contains("is not the key of"));
        assert!(with(CERTIFICATE, Some(ByteString(b"x".to_vec()))).contains("0 certificates"));
        assert!(with(CERTIFICATE, Some(ByteString(intermediate.into_bytes()))).contains("self-signed"));
    }
}
