//! The file's format: what was written is read, and nothing else is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mesh_api::proto::{self, resource::Kind};
use mesh_core::identity::TrustDomain;
use proptest::prelude::*;

use super::*;

fn node(folder: &Path) -> NodeSettings {
    NodeSettings {
        node: "n1".to_owned(),
        trust_domain: TrustDomain::new("cluster.local").unwrap(),
        state_dir: folder.to_owned(),
        token_file: None,
    }
}

/// What an agent may have kept.
pub(in crate::control) fn kept() -> KeptSnapshot {
    let absent = proto::Resource { kind: Some(Kind::Absent(vec![10, 0, 0, 9])) };
    let snapshot = proto::ControllerMessage {
        version: 7,
        reset: true,
        trust_domain: "cluster.local".into(),
        upserts: vec![absent],
        ..Default::default()
    };
    let addresses = vec![vec![10, 0, 0, 9]];
    KeptSnapshot { node: "n1".into(), saved_unix: 1_000, snapshot: Some(snapshot), addresses }
}

fn parsed(kept: &KeptSnapshot) -> Result<Kept, KeptError> {
    parse(&render(kept), Path::new("snapshot"), &node(Path::new("/nowhere")))
}

#[test]
fn what_was_written_is_read() {
    let read = parsed(&kept()).unwrap();
    assert_eq!((read.delta.version, read.delta.upserts.len()), (7, 1));
    assert_eq!(read.addresses, ["10.0.0.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(unix_seconds(read.saved), 1_000);
}

#[test]
fn another_node_s_or_domain_s_file_is_refused() {
    let mut other = kept();
    other.node = "n2".into();
    assert!(matches!(parsed(&other), Err(KeptError::NotOurs { field: "the node", .. })));
    let mut other = kept();
    other.snapshot.as_mut().unwrap().trust_domain = "elsewhere".into();
    assert!(matches!(parsed(&other), Err(KeptError::NotOurs { field: "the trust domain", .. })));
    let mut part = kept();
    part.snapshot.as_mut().unwrap().reset = false;
    assert!(matches!(parsed(&part), Err(KeptError::Format(_))), "a delta is not a whole snapshot");
}

#[test]
fn what_the_decoder_refuses_is_refused_whole() {
    let mut bad = kept();
    let policy = proto::AuthorizationPolicy {
        name: Some(proto::NamespacedName { namespace: "shop".into(), name: "db".into() }),
        action: 77,
        rules: vec![],
    };
    let upserts = &mut bad.snapshot.as_mut().unwrap().upserts;
    upserts.push(proto::Resource { kind: Some(Kind::Policy(policy)) });
    let error = parsed(&bad).unwrap_err().to_string();
    assert!(error.contains("policy shop/db"), "{error}");
}

#[test]
fn a_file_that_others_may_touch_and_a_link_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, file) = (node(folder.path()), folder.path().join(FILE));
    assert!(read(&settings).unwrap().is_none());
    files::replace(&file, &render(&kept())).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(read(&settings).unwrap().unwrap().delta.version, 7);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
    assert!(matches!(read(&settings), Err(KeptError::Permissions(_))));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&file, folder.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &file).unwrap();
    assert!(matches!(read(&settings), Err(KeptError::Io { .. })));
}

proptest! {
    #[test]
    fn one_changed_bit_or_a_missing_end_is_refused(at in 0usize..4096, bit in 0u8..8) {
        let whole = render(&kept());
        let settings = node(Path::new("/nowhere"));
        let at = at % whole.len();
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(parse(&flipped, Path::new("snapshot"), &settings).is_err());
        prop_assert!(parse(&whole[..at], Path::new("snapshot"), &settings).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let settings = node(Path::new("/nowhere"));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(digest(&SHA256, &body).as_ref());
        bytes.extend(body);
        // Whatever comes of it.
        drop(parse(&bytes, Path::new("snapshot"), &settings));
    }
}
