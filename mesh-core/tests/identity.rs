//! SPIFFE IDs: what is one, what is not, and that text and value agree.

use mesh_core::identity::{IdentityError, SpiffeId, TrustDomain};
use proptest::prelude::*;

#[test]
fn a_workload_id_has_namespace_and_service_account() {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/api").unwrap();
    assert_eq!(
        (id.trust_domain().as_str(), id.namespace(), id.service_account()),
        ("cluster.local", "shop", "api")
    );
}

#[test]
fn what_only_looks_like_an_id_is_refused() {
    for text in [
        "",
        "spiffe://",
        "https://cluster.local/ns/a/sa/b",
        "SPIFFE://cluster.local/ns/a/sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/a/sa/b?x",
        "spiffe://cluster.local/ns/a/sa/b#x",
        "spiffe://cluster.local/ns/a%2f/sa/b",
        "spiffe://user@cluster.local/ns/a/sa/b",
        "spiffe://cluster.local:443/ns/a/sa/b",
        "spiffe://cluster.local/sa/b/ns/a",
        "spiffe://cluster.local/ns/ferromesh-system/sa/ferromesh-agent/node/n1",
    ] {
        assert!(SpiffeId::parse(text).is_err(), "{text} was taken for an identity");
    }
}

#[test]
fn an_id_longer_than_the_standard_allows_is_refused() {
    let text = format!("spiffe://cluster.local/ns/{}/sa/b", "a".repeat(2048));
    assert!(matches!(SpiffeId::parse(&text), Err(IdentityError::TooLong(_))));
    assert!(TrustDomain::new(&"a".repeat(256)).is_err());
}

proptest! {
    #[test]
    fn parsing_any_text_never_panics_and_what_is_taken_prints_the_same(text in ".{0,80}") {
        if let Ok(id) = SpiffeId::parse(&text) {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn every_id_survives_a_round_trip(td in "[a-z0-9._-]{1,20}", ns in "[a-z0-9-]{1,20}", sa in "[a-zA-Z0-9_-]{1,20}") {
        let id = SpiffeId::new(TrustDomain::new(&td).unwrap(), &ns, &sa).unwrap();
        prop_assert_eq!(SpiffeId::parse(&id.to_string()).unwrap(), id);
    }
}
