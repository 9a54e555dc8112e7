//! What of a plugged-in intermediate is refused, and with which words.

use std::fs;

use rcgen::{BasicConstraints, CertifiedIssuer, DnType, PKCS_RSA_SHA256};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

const DAY: Duration = Duration::from_secs(86_400);

fn params(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.not_before = OffsetDateTime::from(SystemTime::now() - DAY);
    params.not_after = OffsetDateTime::from(SystemTime::now() + DAY);
    params
}

fn ca(path_len: u8) -> IsCa {
    IsCa::Ca(BasicConstraints::Constrained(path_len))
}

fn root(path_len: u8) -> Ca {
    CertifiedIssuer::self_signed(params("root", ca(path_len)), KeyPair::generate().unwrap()).unwrap()
}

fn under(parent: &Ca, params: CertificateParams) -> Ca {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), parent).unwrap()
}

fn check(certificate: &str, key: &str, root: &str) -> Result<Signing, String> {
    checked(certificate, key, root, SystemTime::now())
}

fn refused(intermediate: &Ca, root: &Ca) -> String {
    check(&intermediate.pem(), &intermediate.key().serialize_pem(), &root.pem()).unwrap_err()
}

#[test]
fn an_intermediate_with_all_that_leads_to_the_root_is_taken() {
    let root = root(2);
    let middle = under(&root, params("middle", ca(1)));
    let intermediate = under(&middle, params("intermediate", ca(0)));
    let key = intermediate.key().serialize_pem();
    // cert-manager leaves the root out of tls.crt, others do not.
    for tail in [String::new(), root.pem()] {
        let chain = intermediate.pem() + &middle.pem() + &tail;
        let signing = check(&chain, &key, &root.pem()).unwrap();
        assert_eq!(signing.certificate, intermediate.pem() + &middle.pem());
        assert_eq!((signing.root(), signing.is_plugged()), (&*root.pem(), true));
    }
    let error = check(&intermediate.pem(), &key, &root.pem()).unwrap_err();
    assert!(error.contains("does not reach ca.crt") && error.contains("middle"), "{error}");
}

#[test]
fn keys_in_the_forms_of_openssl_and_cert_manager_are_read() {
    let root = root(1);
    let key = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let intermediate = CertifiedIssuer::signed_by(params("rsa", ca(0)), key, &root).unwrap();
    check(&intermediate.pem(), &intermediate.key().serialize_pem(), &root.pem()).unwrap();

    // `openssl ecparam -genkey`: the curve in a block of its own, then the key as RFC 5915 has it.
    let sec1 = "-----BEGIN EC PARAMETERS-----\n\
        BggqhkjOPQMBBw==\n\
        -----END EC PARAMETERS-----\n\
        -----BEGIN EC PRIVATE KEY-----\n\
        MHcCAQEEINpTjhBjtuxxzoTVdVlaf9sYg4LpWmbsDuZDDXceYeJRoAoGCCqGSM49\n\
        AwEHoUQDQgAEGromSt+8z9mHEsqwezsoYN6/TKy3FDj3Lbq/wt5lYRC6Kjg6Vgho\n\
        0qnygbuJGhu9yxE6GG7zFTo5S0ljVHy3jw==\n\
        -----END EC PRIVATE KEY-----\n";
    let error = check(&intermediate.pem(), sec1, &root.pem()).unwrap_err();
    assert_eq!(error, "tls.key is not the key of the first certificate in tls.crt");
}

#[test]
fn what_cannot_sign_is_refused_with_the_reason() {
    let root = root(1);
    let good = under(&root, params("good", ca(0)));
    let key = good.key().serialize_pem();

    let error = check(&good.pem(), &KeyPair::generate().unwrap().serialize_pem(), &root.pem()).unwrap_err();
    assert_eq!(error, "tls.key is not the key of the first certificate in tls.crt");
    let leaf = under(&root, params("leaf", IsCa::ExplicitNoCa));
    assert!(refused(&leaf, &root).contains("CN=leaf is not a CA's certificate"), "{}", refused(&leaf, &root));
    assert!(check("x", &key, &root.pem()).unwrap_err().contains("tls.crt holds no certificate"));
    assert!(check(&good.pem(), "x", &root.pem()).unwrap_err().starts_with("tls.key: "));
    assert!(check(&good.pem(), &key, "").unwrap_err().contains("ca.crt holds no certificate"));
    let two = root.pem() + &good.pem();
    assert!(check(&good.pem(), &key, &two).unwrap_err().contains("ca.crt holds 2 certificates"));
    let own = check(&root.pem(), &root.key().serialize_pem(), &root.pem()).unwrap_err();
    assert!(own.contains("is the root itself"), "{own}");
    assert!(check(&good.pem(), &key, &good.pem()).unwrap_err().contains("has not signed itself"));
}

#[test]
fn a_chain_to_another_root_of_the_same_name_is_refused() {
    let (ours, other) = (root(1), root(1));
    let intermediate = under(&ours, params("intermediate", ca(0)));
    let error = refused(&intermediate, &other);
    assert!(error.contains("does not reach ca.crt"), "{error}");
}

#[test]
fn lives_that_are_over_or_have_not_begun_are_refused() {
    let now = SystemTime::now();
    let root = root(1);
    let mut over = params("over", ca(0));
    over.not_after = OffsetDateTime::from(now - Duration::from_secs(1));
    let error = refused(&under(&root, over), &root);
    assert!(error.contains("CN=over is no longer valid"), "{error}");
    let mut early = params("early", ca(0));
    early.not_before = OffsetDateTime::from(now + Duration::from_secs(3600));
    let error = refused(&under(&root, early), &root);
    assert!(error.contains("CN=early is not valid yet"), "{error}");
    // An intermediate that is valid under a root that no longer is: the two lives share no moment from now on.
    let mut ended = params("ended root", ca(1));
    ended.not_after = OffsetDateTime::from(now - Duration::from_secs(1));
    let ended = CertifiedIssuer::self_signed(ended, KeyPair::generate().unwrap()).unwrap();
    let error = refused(&under(&ended, params("intermediate", ca(0))), &ended);
    assert!(error.contains("CN=ended root is no longer valid"), "{error}");
}

#[test]
fn a_path_length_without_room_is_refused() {
    let short = root(0);
    let error = refused(&under(&short, params("intermediate", ca(0))), &short);
    assert!(error.contains("the path length of CN=root leaves no room for the 1 authorities"), "{error}");
}

#[test]
fn what_only_the_trial_finds_is_refused_too() {
    let root = root(1);
    let mut narrow = params("narrow", ca(0));
    narrow.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let error = refused(&under(&root, narrow), &root);
    assert!(error.contains("does not verify under ca.crt"), "{error}");
}

#[test]
fn files_that_are_being_written_are_left_alone_until_they_rest() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(1);
    let (one, two) = (under(&root, params("one", ca(0))), under(&root, params("two", ca(0))));
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("ca.crt", &root.pem());
    write("tls.crt", &one.pem());
    write("tls.key", &one.key().serialize_pem());
    let mut files = IssuerFolder::new(folder.path().into());
    let now = SystemTime::now();
    assert_eq!(files.look(now), Look::Unsettled);
    assert!(matches!(files.look(now), Look::Good(signing) if signing.certificate == one.pem()));
    // Half of the change.
    write("tls.crt", &two.pem());
    assert_eq!(files.look(now), Look::Unsettled);
    write("tls.key", &two.key().serialize_pem());
    assert_eq!(files.look(now), Look::Unsettled);
    assert!(matches!(files.look(now), Look::Good(signing) if signing.certificate == two.pem()));
    fs::remove_file(folder.path().join("tls.key")).unwrap();
    assert_eq!(files.look(now), Look::Unsettled);
    assert!(matches!(files.look(now), Look::Bad(problem) if problem.starts_with("tls.key: ")));
}
