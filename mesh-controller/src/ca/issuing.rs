//! Signing: the root, the intermediate that it signs, and the certificates that the intermediate signs.
//!
//! `root.pem` and `root.key` may be replaced while the controller runs: [`Authority::refresh`] then makes a new
//! intermediate, and does so at half of an intermediate's life in any case. Where `issuer.pem` and `issuer.key` are, they
//! are an intermediate that somebody else made, and renews.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesh_core::identity::TrustDomain;
use parking_lot::RwLock;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKey, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::files::{read_private, write_private};
use super::layout::{ISSUER, ISSUER_KEY, ROOT, ROOT_KEY};
use super::{CaError, Signing, StateDir};

const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of nodes differ a little: certificates begin this long before they are signed.
const BACKDATE: Duration = Duration::from_secs(60);
/// No request for a P-256 key is longer.
const MAX_REQUEST_BYTES: usize = 8 * 1024;

/// What a certificate is for.
#[derive(Clone, Debug)]
pub enum Profile {
    /// An SVID or a node's or operator's certificate: exactly one URI name, client and server.
    Spiffe(String),
    /// The controller's own server certificate: exactly one DNS name, server only.
    Server(String),
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Leaf first, then the intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// End of validity.
    pub not_after: SystemTime,
}

/// The certificate authority.
pub struct Authority {
    folder: PathBuf,
    trust_domain: TrustDomain,
    issuing: RwLock<Issuing>,
}

struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    /// What follows a leaf: the intermediate, and what leads from there to the root.
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    /// The root, and a plugged-in intermediate, as the files had them.
    files: (Option<String>, Option<String>),
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the authority of `state`, making root and intermediate when they are not there.
    pub fn open(state: &StateDir, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        state.claim_trust_domain(trust_domain)?;
        let folder = state.ca()?;
        if read_private(&folder.join(ROOT))?.is_none() {
            make_root(&folder, trust_domain, now)?;
        }
        let issuing = load(&folder, trust_domain, now)?;
        Ok(Self { folder, trust_domain: trust_domain.clone(), issuing: RwLock::new(issuing) })
    }

    /// Takes a replaced root or intermediate, or a due renewal of the intermediate up. `true` when the intermediate is a
    /// new one.
    pub fn refresh(&self, now: SystemTime) -> Result<bool, CaError> {
        let files = files(&self.folder)?;
        {
            let held = self.issuing.read();
            // Whoever made a plugged-in intermediate renews it.
            let due = files.1.is_none() && is_due(held.not_before, held.not_after, now);
            if files == held.files && !due {
                return Ok(false);
            }
        }
        let fresh = load(&self.folder, &self.trust_domain, now)?;
        *self.issuing.write() = fresh;
        Ok(true)
    }

    /// Signs `key` for `ttl`, and no longer than the intermediate lives.
    pub fn sign(
        &self,
        key: &impl PublicKeyData,
        profile: Profile,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Signed, CaError> {
        let issuing = self.issuing.read();
        let mut params = CertificateParams::default();
        // SPIFFE's form: the name is in the SAN, which is critical because there is no subject.
        params.distinguished_name = DistinguishedName::new();
        let (name, usages) = match profile {
            Profile::Spiffe(id) => (
                SanType::URI(id.try_into()?),
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            ),
            Profile::Server(dns) => {
                (SanType::DnsName(dns.try_into()?), vec![ExtendedKeyUsagePurpose::ServerAuth])
            }
        };
        params.subject_alt_names = vec![name];
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + ttl).min(issuing.not_after);
        if params.not_after <= OffsetDateTime::from(now) {
            return Err(CaError::Ended(issuing.not_after.to_string()));
        }
        let not_after = SystemTime::from(params.not_after);
        let leaf = params.signed_by(key, &issuing.issuer)?;
        let chain = [leaf.der().clone()].into_iter().chain(issuing.chain.iter().cloned()).collect();
        Ok(Signed { chain, not_after })
    }

    /// The certificate that everybody who asks gets signed under: the root, whose intermediates each replica makes for
    /// itself, or a plugged-in intermediate.
    pub fn signs_under(&self) -> CertificateDer<'static> {
        let issuing = self.issuing.read();
        let plugged = issuing.files.1.as_ref().and(issuing.chain.first());
        plugged.unwrap_or(&issuing.root).clone()
    }

    /// When the intermediate ends.
    pub fn ends(&self) -> SystemTime {
        self.issuing.read().not_after.into()
    }

    /// The trust domain of every name that is signed.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
}

/// The public key of a certificate request, whose signature proves that the caller has the private one. Whatever else
/// the request asks for is not looked at.
pub fn request_key(der: &[u8]) -> Result<PublicKey, CaError> {
    if der.len() > MAX_REQUEST_BYTES {
        return Err(CaError::Request(format!("{} bytes are too many", der.len())));
    }
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
        .map_err(|e| CaError::Request(e.to_string()))?;
    if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::Request("the key must be ECDSA P-256".into()));
    }
    Ok(request.public_key)
}

fn is_due(not_before: OffsetDateTime, not_after: OffsetDateTime, now: SystemTime) -> bool {
    OffsetDateTime::from(now) >= not_before + (not_after - not_before) / 2
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CaError::Random)?;
    // Positive, and of one length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn ca_params(
    name: &str,
    path_len: u8,
    life: Duration,
    now: SystemTime,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    // Names of two authorities never coincide, so that a chain is found by name alone.
    let name = format!("{name} {}", super::random::random_hex::<4>()?);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Ferromesh");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(now + life);
    Ok(params)
}

fn make_root(folder: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), CaError> {
    // The key first: where a start was cut short there is a key without a certificate, and the key is used again.
    let path = folder.join(ROOT_KEY);
    if read_private(&path)?.is_none() {
        let fresh = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        write_private(&path, fresh.serialize_pem().as_bytes())?;
    }
    let made = self_signed(key(folder, ROOT_KEY)?, trust_domain, now)?;
    write_private(&folder.join(ROOT), made.certificate.as_bytes())
}

/// A root that nobody trusts yet.
pub fn another_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Signing, CaError> {
    self_signed(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?, trust_domain, now)
}

fn self_signed(key: KeyPair, trust_domain: &TrustDomain, now: SystemTime) -> Result<Signing, CaError> {
    let certificate = ca_params(&format!("root {trust_domain}"), 1, ROOT_LIFE, now)?.self_signed(&key)?.pem();
    Ok(Signing { certificate, key: key.serialize_pem(), root: None })
}

/// The root, and the chain of a plugged-in intermediate, as the files have them.
fn files(folder: &Path) -> Result<(Option<String>, Option<String>), CaError> {
    Ok((read_private(&folder.join(ROOT))?, read_private(&folder.join(ISSUER))?))
}

fn load(folder: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Issuing, CaError> {
    let files = files(folder)?;
    if let Some(chain) = &files.1 {
        return load_plugged(folder, chain, &files);
    }
    let (_, root_der) = certificate(folder, ROOT)?;
    let root_key = key(folder, ROOT_KEY)?;
    if let Some(held) = load_intermediate(folder, &files, &root_der, now)? {
        return Ok(held);
    }
    let root = Issuer::from_ca_cert_der(&root_der, root_key)?;
    let intermediate_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = ca_params(&format!("intermediate {trust_domain}"), 0, INTERMEDIATE_LIFE, now)?;
    let root_end = validity(folder, &root_der)?.1;
    params.not_after = params.not_after.min(root_end);
    let signed: Certificate = params.signed_by(&intermediate_key, &root)?;
    // The key first: a certificate that does not fit its key is made anew at the next start.
    write_private(&folder.join("intermediate.key"), intermediate_key.serialize_pem().as_bytes())?;
    write_private(&folder.join("intermediate.pem"), signed.pem().as_bytes())?;
    let (not_before, not_after) = (params.not_before, params.not_after);
    let certificate = signed.der().clone();
    let issuer = Issuer::from_ca_cert_der(&certificate, intermediate_key)?;
    Ok(Issuing { issuer, chain: vec![certificate], root: root_der, not_before, not_after, files })
}

/// The intermediate that was plugged in; it was checked before it was written here.
fn load_plugged(
    folder: &Path,
    chain: &str,
    files: &(Option<String>, Option<String>),
) -> Result<Issuing, CaError> {
    let path = folder.join(ISSUER);
    let content = |message: String| CaError::Content { path: path.clone(), message };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| content(e.to_string()))?;
    let first = chain.first().ok_or_else(|| content("holds no certificate".into()))?;
    let key = key(folder, ISSUER_KEY)?;
    if parse(folder, first)?.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(content(format!("{ISSUER_KEY} is not its key")));
    }
    let issuer = Issuer::from_ca_cert_der(first, key)?;
    let root = certificate(folder, ROOT)?.1;
    // Nothing that it signs outlives any of those above it.
    let ends = chain.iter().chain([&root]).map(|der| Ok(validity(folder, der)?.1));
    let not_after = ends.collect::<Result<Vec<_>, CaError>>()?.into_iter().min();
    let not_after = not_after.ok_or_else(|| content("holds no certificate".into()))?;
    let not_before = validity(folder, first)?.0;
    Ok(Issuing { issuer, chain, root, not_before, not_after, files: files.clone() })
}

/// The intermediate on disk, if this root signed it, its key fits and it is not due for renewal.
fn load_intermediate(
    folder: &Path,
    files: &(Option<String>, Option<String>),
    root_der: &CertificateDer<'static>,
    now: SystemTime,
) -> Result<Option<Issuing>, CaError> {
    if read_private(&folder.join("intermediate.pem"))?.is_none() {
        return Ok(None);
    }
    let (_, der) = certificate(folder, "intermediate.pem")?;
    let key = key(folder, "intermediate.key")?;
    let ours = {
        let (root, held) = (parse(folder, root_der)?, parse(folder, &der)?);
        held.verify_signature(Some(root.public_key())).is_ok()
            && held.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    };
    let (not_before, not_after) = validity(folder, &der)?;
    if !ours || is_due(not_before, not_after, now) {
        return Ok(None);
    }
    let issuer = Issuer::from_ca_cert_der(&der, key)?;
    let (root, files) = (root_der.clone(), files.clone());
    Ok(Some(Issuing { issuer, chain: vec![der], root, not_before, not_after, files }))
}

fn certificate(folder: &Path, name: &str) -> Result<(String, CertificateDer<'static>), CaError> {
    let path = folder.join(name);
    let content = |message: String| CaError::Content { path: path.clone(), message };
    let text = read_private(&path)?.ok_or_else(|| content("is missing".into()))?;
    let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|e| content(e.to_string()))?;
    Ok((text, der))
}

fn key(folder: &Path, name: &str) -> Result<KeyPair, CaError> {
    let path = folder.join(name);
    let content = |message: String| CaError::Content { path: path.clone(), message };
    let text = read_private(&path)?.ok_or_else(|| content("is missing".into()))?;
    super::plugged::key_pair(&text).map_err(content)
}

fn parse<'a>(folder: &Path, der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    let content = |message: String| CaError::Content { path: folder.into(), message };
    X509Certificate::from_der(der).map(|(_, certificate)| certificate).map_err(|e| content(e.to_string()))
}

fn validity(folder: &Path, der: &CertificateDer<'_>) -> Result<(OffsetDateTime, OffsetDateTime), CaError> {
    let validity = parse(folder, der)?.validity().clone();
    Ok((validity.not_before.to_datetime(), validity.not_after.to_datetime()))
}
