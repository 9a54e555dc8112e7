//! What holds of this folder's parsers whatever they are given: the snapshot on disk, certificates, questions to the
//! administration. In: bytes. Out: a panic where it does not hold. `fuzz/` calls these with millions of inputs, the tests
//! below with a few hundred.

use std::path::Path;
use std::sync::LazyLock;
use std::time::UNIX_EPOCH;

use mesh_api::proto::TrustBundle;
use mesh_api::{decode, encode};
use mesh_core::identity::TrustDomain;
use mesh_core::snapshot::Snapshot;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::admin::parameter;
use super::bundle::Bundle;
use super::certs::rfc3339;
use super::kept::{file, parse};
use super::{Keyring, NodeSettings, PortableSvid};
use crate::identify::{SvidStore, is_signed_under, peer_certificate};

const NAME: &str = "spiffe://cluster.local/ns/shop/sa/web";
static DOMAIN: LazyLock<TrustDomain> =
    LazyLock::new(|| TrustDomain::new("cluster.local").expect("a valid name"));
static KEY: LazyLock<Vec<u8>> = LazyLock::new(|| KeyPair::generate().expect("a key").serialize_der());

/// The file of the last good snapshot: as it is, and as the content of a file whose checksum is right.
pub fn kept(bytes: &[u8]) {
    let node = NodeSettings {
        node: "n1".to_owned(),
        trust_domain: DOMAIN.clone(),
        state_dir: "/nowhere".into(),
        token_file: None,
    };
    let path = Path::new("snapshot");
    for file in [bytes, &file(bytes)] {
        let Ok(kept) = parse(file, path, &node) else { continue };
        rfc3339(kept.saved);
        if let Some(bundle) = kept.bundle {
            // An agent that refuses the roots takes nothing of the file.
            drop(Bundle::default().adopt(bundle, &SvidStore::new()));
        }
        let whole = Snapshot::empty(DOMAIN.clone()).apply(kept.delta).whole();
        let again = decode::delta(encode::delta(&whole, &DOMAIN));
        assert_eq!(again, Ok(whole), "what was taken is written so that it is taken again");
    }
}

/// A certificate: a peer's, a root of the bundle, one that the controller has signed for this agent.
pub fn certificate(der: &[u8]) {
    let leaf = CertificateDer::from(der.to_vec());
    if let Ok(peer) = peer_certificate(&leaf, &DOMAIN) {
        let name = peer.identity.to_string();
        assert!(der.windows(name.len()).any(|part| part == name.as_bytes()), "a name from elsewhere");
        rfc3339(peer.not_after);
    }
    let chain = [leaf.clone(), leaf.clone()];
    is_signed_under(&chain, &leaf);
    let bundle = TrustBundle { roots_der: vec![der.to_vec()], ..TrustBundle::default() };
    // Taken or refused; both are fine.
    drop(Bundle::default().adopt(bundle, &SvidStore::new()));
    let key = PrivatePkcs8KeyDer::from(KEY.clone());
    let svid = PortableSvid { identity: NAME.to_owned(), key, chain: vec![der.to_vec()] };
    assert!(Keyring::default().import(&SvidStore::new(), svid, UNIX_EPOCH).is_err(), "it is for another key");
}

/// The query of a question to the administration socket.
pub fn query(text: &str) {
    for name in ["src", "dst"] {
        if let Some(value) = parameter(text, name) {
            assert!(value.len() <= text.len());
        }
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(parameter(&format!("{name}={escaped}"), name).as_deref(), Some(text));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use prost::Message;
    use rcgen::{CertificateParams, SanType};

    use super::super::kept::tests::kept as sample_kept;
    use super::*;

    /// A certificate like those that the authority signs.
    fn sample(name: &str) -> Vec<u8> {
        let mut leaf = CertificateParams::new(Vec::new()).unwrap();
        leaf.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        leaf.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    /// A few bytes of `whole` are others.
    fn changed(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..5).prop_map(move |changes| {
            let mut bytes = whole.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn whatever_was_kept_is_taken_whole_or_refused(bytes in changed(sample_kept().encode_to_vec())) {
            kept(&bytes);
        }

        #[test]
        fn whatever_a_certificate_says_is_read_without_panic(bytes in changed(sample(NAME))) {
            certificate(&bytes);
        }

        #[test]
        fn whatever_is_asked_is_read_without_panic(text in "(src=|dst=|&|%|[a-z0-9%]|\\PC){0,12}") {
            query(&text);
        }
    }

    #[test]
    fn the_samples_are_good() {
        assert!(peer_certificate(&sample(NAME).into(), &DOMAIN).is_ok());
        let elsewhere = sample("spiffe://elsewhere/ns/shop/sa/web");
        assert!(peer_certificate(&elsewhere.into(), &DOMAIN).is_err());
    }
}
