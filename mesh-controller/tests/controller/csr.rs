//! A request for a certificate that claims to be somebody else: of all that it says only the key is taken.

use std::time::Duration;

use mesh_api::proto::{JoinRequest, RenewNodeRequest, SignWorkloadRequest};
use mesh_controller::ca::request_key;
use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType};
use tonic::transport::Identity;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::common::{Harness, chain_pem, namespace, pod};

const ADMIN: &str = "spiffe://cluster.local/ns/ferromesh-system/sa/ferromesh-admin";
const VICTIM: &str = "spiffe://cluster.local/ns/shop/sa/db";

/// A request in the name of `id`, by every name that a request can have.
fn claiming(id: &str) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, id);
    params.subject_alt_names =
        vec![SanType::URI(id.try_into().unwrap()), SanType::DnsName("db.shop.svc".try_into().unwrap())];
    let csr = params.serialize_request(&key).unwrap();
    (key, csr.der().to_vec())
}

/// The certificate's only name; what it was asked for in is nowhere in it.
fn only_name(chain: &[Vec<u8>], claimed: &str) -> String {
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!leaf.is_ca());
    let says = |text: &str| chain[0].windows(text.len()).any(|part| part == text.as_bytes());
    assert!(!says(claimed) && !says("db.shop.svc"), "{:?}", leaf.subject());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => (*uri).to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_request_that_claims_another_identity_gets_its_own_by_each_call() {
    let yaml = [namespace("shop", true), pod("api", "node-a", "10.1.1.1"), pod("db", "node-b", "10.1.2.1")];
    let harness = Harness::start(&[("shop.yaml", &yaml.concat())]).await;
    let token = harness.token("node-a", Duration::from_secs(60));
    for claimed in [ADMIN, VICTIM, "spiffe://cluster.local/ferromesh/node/node-b"] {
        let identity = harness.join("node-a").await;
        let mut ca = harness.ca(Some(identity)).await;
        let (_, csr_der) = claiming(claimed);
        let renewed = ca.renew_node(RenewNodeRequest { csr_der }).await.unwrap().into_inner();
        let node = only_name(&renewed.chain_der, claimed);
        assert!(node.ends_with("/node-a"), "{node}");

        let spiffe_id = "spiffe://cluster.local/ns/shop/sa/api".to_owned();
        let (_, csr_der) = claiming(claimed);
        let signed = ca.sign_workload(SignWorkloadRequest { spiffe_id: spiffe_id.clone(), csr_der }).await;
        assert_eq!(only_name(&signed.unwrap().into_inner().chain_der, claimed), spiffe_id);
    }
    let (key, csr_der) = claiming(ADMIN);
    let joined = harness.ca(None).await.join(JoinRequest { node: "node-a".into(), token, csr_der }).await;
    let joined = joined.unwrap().into_inner();
    assert!(only_name(&joined.chain_der, ADMIN).ends_with("/node-a"));
    // It opens what a node may, and nothing else.
    let identity = Identity::from_pem(chain_pem(&joined.chain_der), key.serialize_pem());
    let (_, csr_der) = claiming(VICTIM);
    let asked = SignWorkloadRequest { spiffe_id: VICTIM.to_owned(), csr_der };
    let refused = harness.ca(Some(identity)).await.sign_workload(asked).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

proptest! {
    #[test]
    fn no_request_panics_and_a_key_that_is_taken_is_in_it(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        most in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.2),
    ) {
        let (_, mut bytes) = claiming(VICTIM);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if cut {
            bytes.truncate(most.index(bytes.len()));
        }
        if let Ok(key) = request_key(&bytes) {
            prop_assert!(bytes.windows(key.der_bytes().len()).any(|part| part == key.der_bytes()));
        }
    }
}
