//! The API server's certificate, its authority, and the key that signs service accounts' tokens: files out.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::world::{CONTROLLER_V4, World};

/// Writes `ca.pem`, `api.pem`, `api.key`, `accounts.key` and `accounts.pub`.
pub(super) fn write(folder: &Path) -> Result<()> {
    let root_key = KeyPair::generate()?;
    let mut root = CertificateParams::new(Vec::<String>::new())?;
    root.distinguished_name.push(DnType::CommonName, "authority of a test");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = root.self_signed(&root_key)?;
    fs::write(folder.join("ca.pem"), certificate.pem())?;
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate()?;
    let mut names =
        vec![CONTROLLER_V4.to_string(), "127.0.0.1".to_owned(), "kubernetes.default.svc".to_owned()];
    // The kubelets serve with the same one.
    names.extend(World::node_addresses().map(|address| address.to_string()));
    let server = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    fs::write(folder.join("api.pem"), server.pem())?;
    fs::write(folder.join("api.key"), key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    Ok(())
}
