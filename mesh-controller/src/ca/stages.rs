//! What the authority signs with, and the stages in which it changes to another root without a connection noticing:
//!
//! 1. the next root is trusted by everybody, and the one before still signs;
//! 2. when all agents trust it, or have been waited for long enough, it signs; the one before is still trusted;
//! 3. when nothing lives that the one before signed, it is trusted no more.
//!
//! Pure: the time comes in, what changed goes out. The key of a root is forgotten when it no longer signs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

/// Clocks differ, and replicas follow one another within seconds: roots stay trusted this long beyond the last life.
const MARGIN: Duration = Duration::from_secs(30);

/// A certificate that signs, and its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signing {
    /// PEM: a root that signs intermediates, or the chain of a plugged-in intermediate, itself first.
    pub certificate: String,
    /// PEM: its private key.
    pub key: String,
    /// PEM: the root of a plugged-in intermediate; `None` where `certificate` is the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").field("root", &self.root()).finish_non_exhaustive()
    }
}

impl Signing {
    /// The root that what it signs leads to, PEM.
    pub fn root(&self) -> &str {
        self.root.as_deref().unwrap_or(&self.certificate)
    }

    /// Whether it is an intermediate that somebody else made.
    pub fn is_plugged(&self) -> bool {
        self.root.is_some()
    }

    fn same_root(&self, other: &Self) -> bool {
        der(self.root()) == der(other.root())
    }
}

/// The stages of a change; nothing in it when there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stages {
    /// Trusted, and signs next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
    /// Trusted until a time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub old: Vec<Old>,
}

/// What signs next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// The certificate and its key.
    pub signing: Signing,
    /// Since when it is trusted, in seconds since 1970.
    pub since_unix: u64,
}

/// A root that signs no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Old {
    /// Its certificate, PEM.
    pub certificate: String,
    /// When the last certificate under it ends, in seconds since 1970.
    pub until_unix: u64,
}

/// All that an authority is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Material {
    /// What signs now.
    pub signing: Signing,
    /// What is changing.
    #[serde(flatten)]
    pub stages: Stages,
}

/// How long the stages last.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// How long agents that are away are waited for at most.
    pub agents: Duration,
    /// The longest life of a certificate that the authority signs.
    pub longest_life: Duration,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Another certificate under the same root signs.
    Reissued,
    /// A root is trusted that will sign.
    Trusted,
    /// It signs.
    Signs,
    /// What was to sign next no longer is.
    Withdrawn,
    /// A root is trusted no more.
    Retired,
}

impl Change {
    /// For logs and events.
    pub fn text(self) -> &'static str {
        match self {
            Self::Reissued => "the authority signs with another intermediate of the same root",
            Self::Trusted => "another root is trusted; it signs when all agents trust it",
            Self::Signs => {
                "the next root signs; the one before stays trusted while anything lives that it signed"
            }
            Self::Withdrawn => "the root that was to sign next is withdrawn",
            Self::Retired => "a root that no longer signs is trusted no more",
        }
    }
}

impl Material {
    /// Nothing changing.
    pub fn new(signing: Signing) -> Self {
        Self { signing, stages: Stages::default() }
    }

    /// Every root that is trusted, the one that signs first.
    pub fn roots_pem(&self) -> String {
        let next = self.stages.next.iter().map(|next| next.signing.root());
        let old = self.stages.old.iter().map(|old| old.certificate.as_str());
        [self.signing.root()].into_iter().chain(next).chain(old).collect()
    }

    /// `wanted` is to sign. Under the root that signs already it does at once; under another, that root is trusted first.
    pub fn propose(&mut self, wanted: Signing, now: SystemTime) -> Option<Change> {
        if wanted.same_root(&self.signing) {
            let withdrawn = self.stages.next.take().map(|_| Change::Withdrawn);
            if wanted == self.signing {
                return withdrawn;
            }
            self.signing = wanted;
            return Some(Change::Reissued);
        }
        match &mut self.stages.next {
            Some(next) if next.signing == wanted => None,
            Some(next) if next.signing.same_root(&wanted) => {
                next.signing = wanted;
                Some(Change::Trusted)
            }
            other => {
                *other = Some(Next { signing: wanted, since_unix: unix(now) });
                Some(Change::Trusted)
            }
        }
    }

    /// One step further, if it is time; `trusted` says whether all agents trust the next root.
    pub fn step(&mut self, now: SystemTime, trusted: bool, waits: Waits) -> Option<Change> {
        let long_enough = |next: &Next| unix(now) >= next.since_unix.saturating_add(waits.agents.as_secs());
        if let Some(next) = self.stages.next.take_if(|next| trusted || long_enough(next)) {
            let before = std::mem::replace(&mut self.signing, next.signing);
            let until_unix = unix(now + waits.longest_life + MARGIN);
            let signs = der(self.signing.root());
            self.stages.old.push(Old { certificate: before.root().to_owned(), until_unix });
            // A root that signs again is no old one.
            self.stages.old.retain(|old| der(&old.certificate) != signs);
            return Some(Change::Signs);
        }
        let held = self.stages.old.len();
        self.stages.old.retain(|old| old.until_unix > unix(now));
        (self.stages.old.len() < held).then_some(Change::Retired)
    }
}

/// Seconds since 1970.
pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// One PEM block.
pub(super) fn pem_of(tag: &str, der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new(tag, der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

/// The first certificate of a PEM text: texts of one certificate may differ.
fn der(text: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    const WAITS: Waits =
        Waits { agents: Duration::from_secs(3600), longest_life: Duration::from_secs(86_400) };

    fn root() -> Signing {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap().pem();
        Signing { certificate, key: key.serialize_pem(), root: None }
    }

    fn under(root: &Signing, certificate: &str) -> Signing {
        Signing { certificate: certificate.into(), key: "k".into(), root: Some(root.root().to_owned()) }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_next_root_signs_when_all_agents_trust_it_and_the_old_one_outlives_what_it_signed() {
        let (first, second) = (root(), root());
        let mut material = Material::new(first.clone());
        assert_eq!(material.propose(second.clone(), at(1000)), Some(Change::Trusted));
        assert_eq!(material.signing, first, "it does not sign yet");
        assert_eq!(material.roots_pem(), [first.root(), second.root()].concat());
        assert_eq!(material.step(at(4599), false, WAITS), None);
        assert_eq!(material.step(at(2000), true, WAITS), Some(Change::Signs));
        assert_eq!(material.signing, second);
        let old = &material.stages.old;
        assert_eq!(
            (old.len(), &old[0].certificate, old[0].until_unix),
            (1, &first.certificate, 2000 + 86_400 + 30)
        );
        assert!(
            !serde_json::to_string(&material).unwrap().contains(&first.key[40..80]),
            "its key is forgotten"
        );
        assert_eq!(material.step(at(88_429), true, WAITS), None);
        assert_eq!(
            material.roots_pem(),
            [second.root(), first.root()].concat(),
            "agents that start trust both"
        );
        assert_eq!(material.step(at(88_430), true, WAITS), Some(Change::Retired));
        assert_eq!(material, Material::new(second));
    }

    #[test]
    fn agents_that_are_away_are_not_waited_for_without_end() {
        let mut material = Material::new(root());
        material.propose(root(), at(1000));
        assert_eq!(material.step(at(4600), false, WAITS), Some(Change::Signs));
    }

    #[test]
    fn an_intermediate_of_the_same_root_signs_at_once_and_one_of_another_root_waits() {
        let (first, second) = (root(), root());
        let mut material = Material::new(under(&first, "one"));
        assert_eq!(material.propose(under(&first, "one"), at(1)), None);
        assert_eq!(material.propose(under(&first, "two"), at(1)), Some(Change::Reissued));
        assert_eq!(material.signing, under(&first, "two"));
        assert_eq!(material.propose(under(&second, "three"), at(2)), Some(Change::Trusted));
        // One more of the awaited root: the waiting does not begin anew.
        assert_eq!(material.propose(under(&second, "four"), at(50)), Some(Change::Trusted));
        assert_eq!(material.stages.next.as_ref().unwrap().since_unix, 2);
        assert_eq!(material.signing, under(&first, "two"));
        // Who put the old files back changed their mind.
        assert_eq!(material.propose(under(&first, "two"), at(60)), Some(Change::Withdrawn));
        assert_eq!(material, Material::new(under(&first, "two")));
    }

    #[test]
    fn a_root_that_signs_again_is_not_retired() {
        let (first, second) = (root(), root());
        let mut material = Material::new(first.clone());
        material.propose(second, at(1));
        material.step(at(2), true, WAITS);
        material.propose(first.clone(), at(3));
        material.step(at(4), true, WAITS);
        assert_eq!(material.signing, first);
        assert!(material.stages.old.iter().all(|old| old.certificate != first.certificate));
    }

    #[test]
    fn a_restart_in_any_stage_goes_on_where_it_was() {
        let mut material = Material::new(root());
        for step in 0..3_u64 {
            match step {
                0 => drop(material.propose(root(), at(1))),
                1 => drop(material.step(at(2), true, WAITS)),
                _ => drop(material.step(at(1_000_000), true, WAITS)),
            }
            let text = serde_json::to_string(&material).unwrap();
            assert_eq!(serde_json::from_str::<Material>(&text).unwrap(), material);
        }
    }
}
