//! An intermediate that somebody else made, in the layout of cert-manager's Secrets: `tls.crt` (the intermediate, then what
//! leads to the root), `tls.key` and `ca.crt` (the root) in a folder, as a Secret is mounted. Files in, a checked [`Signing`]
//! or what is wrong with them out.
//!
//! Whatever the check may have overlooked, the last one is a trial: a leaf is signed, and verified as the agents do it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::stages::{Signing, pem_of};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";
/// No file of a chain is longer.
const MOST_BYTES: u64 = 256 << 10;

/// The folder that the files are looked for in.
#[derive(Debug)]
pub struct IssuerFolder {
    path: PathBuf,
    /// What was last read: a folder that is being written is left alone until it has not changed between two looks.
    seen: Option<Result<[String; 3], String>>,
}

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// The files are being changed.
    Unsettled,
    /// An intermediate that can sign.
    Good(Signing),
    /// What is wrong.
    Bad(String),
}

impl IssuerFolder {
    /// The folder at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Reads and checks now, changing or not.
    pub fn read(&self, now: SystemTime) -> Result<Signing, String> {
        let [certificate, key, root] = self.files()?;
        checked(&certificate, &key, &root, now)
    }

    /// Reads and checks what has not changed since the last look.
    pub fn look(&mut self, now: SystemTime) -> Look {
        let files = self.files();
        if self.seen.as_ref() != Some(&files) {
            self.seen = Some(files);
            return Look::Unsettled;
        }
        match files.and_then(|[certificate, key, root]| checked(&certificate, &key, &root, now)) {
            Ok(signing) => Look::Good(signing),
            Err(problem) => Look::Bad(problem),
        }
    }

    fn files(&self) -> Result<[String; 3], String> {
        let read = |name: &str| {
            let path = self.path.join(name);
            let failed = |e: std::io::Error| format!("{name}: {e}");
            let length = std::fs::metadata(&path).map_err(failed)?.len();
            if length > MOST_BYTES {
                return Err(format!("{name}: {length} bytes are too many"));
            }
            std::fs::read_to_string(&path).map_err(failed)
        };
        Ok([read(CERTIFICATE)?, read(KEY)?, read(ROOT)?])
    }
}

/// A key of any of the PEM forms.
pub(super) fn key_pair(text: &str) -> Result<KeyPair, String> {
    let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|e| e.to_string())?;
    KeyPair::try_from(&der).map_err(|e| e.to_string())
}

fn checked(certificate: &str, key: &str, root: &str, now: SystemTime) -> Result<Signing, String> {
    let (roots, mut chain) = (certificates(ROOT, root)?, certificates(CERTIFICATE, certificate)?);
    let [root] = &roots[..] else {
        return Err(format!("{ROOT} holds {} certificates; the one root is wanted", roots.len()));
    };
    chain.retain(|certificate| certificate != root);
    let parse = |der| -> Result<X509Certificate<'_>, String> {
        X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|e| e.to_string())
    };
    let parsed_root = parse(root).map_err(|e| format!("{ROOT}: {e}"))?;
    if parsed_root.verify_signature(None).is_err() {
        return Err(format!("{ROOT} is not a root: {} has not signed itself", parsed_root.subject()));
    }
    let parsed: Vec<_> = chain
        .iter()
        .map(|der| parse(der))
        .collect::<Result<_, _>>()
        .map_err(|e| format!("{CERTIFICATE}: {e}"))?;
    let Some(issuer) = parsed.first() else {
        return Err(format!("{CERTIFICATE} is the root itself; an intermediate that it signed is wanted"));
    };
    let pair = key_pair(key).map_err(|e| format!("{KEY}: {e}"))?;
    if issuer.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
        return Err(format!("{KEY} is not the key of the first certificate in {CERTIFICATE}"));
    }
    let whole: Vec<_> = parsed.iter().chain([&parsed_root]).collect();
    for (below, certificate) in whole.iter().enumerate() {
        may_sign(certificate, below, now)?;
    }
    for pair in whole.windows(2) {
        let [child, parent] = pair else { continue };
        if child.issuer() != parent.subject() || child.verify_signature(Some(parent.public_key())).is_err() {
            return Err(format!(
                "the chain does not reach {ROOT}: {} was signed by {}, and {} comes next",
                child.subject(),
                child.issuer(),
                parent.subject()
            ));
        }
    }
    trial(&chain, pair, root, now)?;
    let certificate = chain.iter().map(|der| pem_of("CERTIFICATE", der)).collect();
    Ok(Signing { certificate, key: key.to_owned(), root: Some(pem_of("CERTIFICATE", root)) })
}

fn certificates(name: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let read = read.map_err(|e| format!("{name}: {e}"))?;
    if read.is_empty() { Err(format!("{name} holds no certificate")) } else { Ok(read) }
}

/// Whether `certificate` is one of a CA, valid now, with room for the `below` authorities that are below it.
fn may_sign(certificate: &X509Certificate<'_>, below: usize, now: SystemTime) -> Result<(), String> {
    let name = certificate.subject();
    let constraints = certificate.basic_constraints().ok().flatten().map(|extension| extension.value);
    let Some(constraints) = constraints.filter(|constraints| constraints.ca) else {
        return Err(format!("{name} is not a CA's certificate"));
    };
    if constraints.path_len_constraint.is_some_and(|most| usize::try_from(most).unwrap_or(0) < below) {
        return Err(format!("the path length of {name} leaves no room for the {below} authorities below it"));
    }
    let (validity, now) = (certificate.validity(), OffsetDateTime::from(now));
    if now < validity.not_before.to_datetime() {
        return Err(format!("{name} is not valid yet: it begins at {}", validity.not_before));
    }
    if now >= validity.not_after.to_datetime() {
        return Err(format!("{name} is no longer valid: it ended at {}", validity.not_after));
    }
    Ok(())
}

/// Signs a leaf and verifies it as the agents will.
fn trial(
    chain: &[CertificateDer<'static>],
    key: KeyPair,
    root: &CertificateDer<'static>,
    now: SystemTime,
) -> Result<(), String> {
    let failed =
        |e: &dyn std::fmt::Display| format!("what {CERTIFICATE} signs does not verify under {ROOT}: {e}");
    let first = chain.first().ok_or_else(|| failed(&"no certificate"))?;
    let issuer = Issuer::from_ca_cert_der(first, key).map_err(|e| failed(&e))?;
    let own = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| failed(&e))?;
    let mut params = CertificateParams::default();
    let name =
        "spiffe://trial/ns/trial/sa/trial".to_owned().try_into().map_err(|e: rcgen::Error| failed(&e))?;
    params.subject_alt_names = vec![SanType::URI(name)];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.not_before = OffsetDateTime::from(now - Duration::from_secs(1));
    params.not_after = OffsetDateTime::from(now + Duration::from_secs(60));
    let leaf = params.signed_by(&own, &issuer).map_err(|e| failed(&e))?;
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).map_err(|e| failed(&e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let verifier = verifier.build().map_err(|e| failed(&e))?;
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let verified = verifier.verify_client_cert(leaf.der(), chain, UnixTime::since_unix_epoch(since));
    verified.map(drop).map_err(|e| failed(&e))
}

#[cfg(test)]
#[path = "plugged_tests.rs"]
mod tests;
