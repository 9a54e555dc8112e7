//! What people are told of the authority. Its material in, the status message out.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use mesh_api::proto::{AuthorityStatus, RootStage, RootStatus};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ca::Material;
use crate::serve::TlsState;

/// The status.
pub(super) fn status(
    material: &Material,
    tls: &TlsState,
    ends: SystemTime,
    waiting_for: Vec<String>,
    problem: Option<&String>,
) -> AuthorityStatus {
    let signs = [(material.signing.root(), RootStage::Signs, 0)];
    let next = material.stages.next.iter().map(|n| (n.signing.root(), RootStage::Next, n.since_unix));
    let old = material.stages.old.iter().map(|o| (&*o.certificate, RootStage::Old, o.until_unix));
    let staged = signs.into_iter().chain(next).chain(old);
    let mut roots: Vec<(CertificateDer<'_>, RootStage, u64)> =
        staged.filter_map(|(pem, stage, at)| Some((der(pem)?, stage, at))).collect();
    for root in tls.roots.iter() {
        if roots.iter().all(|(known, ..)| known != root) {
            roots.push((root.clone(), RootStage::Unspecified, 0));
        }
    }
    AuthorityStatus {
        roots: roots.iter().map(|(root, stage, at)| described(root, *stage, *at)).collect(),
        intermediate: if material.signing.is_plugged() { "plugged in" } else { "made here" }.into(),
        intermediate_not_after_unix: seconds(ends.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
        waiting_for,
        problem: problem.cloned().unwrap_or_default(),
    }
}

fn described(root: &CertificateDer<'_>, stage: RootStage, at: u64) -> RootStatus {
    let parsed = x509_parser::parse_x509_certificate(root).ok().map(|(_, parsed)| parsed);
    RootStatus {
        subject: parsed.as_ref().map(|parsed| parsed.subject().to_string()).unwrap_or_default(),
        sha256: digest(&SHA256, root).as_ref().to_vec(),
        not_after_unix: parsed.map_or(0, |parsed| parsed.validity().not_after.timestamp()),
        stage: stage.into(),
        stage_unix: seconds(at),
    }
}

fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

/// The first certificate of a PEM text.
pub(super) fn der(text: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(text.as_bytes()).ok()
}

/// As people and annotations have it.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
