//! What all may read: the ConfigMap `ferromesh-root` with the certificates of the roots that are trusted, for a node's
//! kubelet may read all that its pods mount, and agents mount this. While a root changes, each replica notes in an
//! annotation there how many of its agents trust the next one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::params::{GetParams, Patch, PatchParams};
use kube::core::{Request, Resource};

use super::labelled::metadata;
use super::stages::unix;
use crate::api::{ApiError, Client, MANAGER};
use crate::compile::ROOT_NAMESPACE;

pub(super) const NAME: &str = "ferromesh-root";
const CERTIFICATES: &str = "root.pem";
const NOTE: &str = "acknowledged.ferromesh.io/";
/// A note that is older says nothing: its replica may be gone, and its agents with another one.
const FRESH: Duration = Duration::from_secs(60);

/// What one replica knows of its agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    /// Which roots it speaks of.
    pub(crate) roots_id: String,
    /// Agents that are connected and trust them.
    pub(crate) trusting: usize,
    /// Agents that are connected and do not yet.
    pub(crate) behind: usize,
}

/// Shows the certificates of the trusted roots.
pub(crate) async fn publish(client: &Client, roots_pem: &str) -> Result<(), ApiError> {
    let map = ConfigMap {
        metadata: metadata(NAME),
        data: Some(BTreeMap::from([(CERTIFICATES.to_owned(), roots_pem.to_owned())])),
        ..ConfigMap::default()
    };
    apply(client, MANAGER, &map).await
}

/// Writes this replica's note, or takes it away.
pub(crate) async fn note(
    client: &Client,
    replica: &str,
    note: Option<&Note>,
    now: SystemTime,
) -> Result<(), ApiError> {
    let text = note.map(|n| format!("{} {} {} {}", n.roots_id, n.trusting, n.behind, unix(now)));
    let annotations = text.map(|text| BTreeMap::from([(key_of(replica), text)]));
    let metadata = ObjectMeta { name: Some(NAME.into()), annotations, ..ObjectMeta::default() };
    apply(client, &manager_of(replica), &ConfigMap { metadata, ..ConfigMap::default() }).await
}

/// The notes of all replicas that are alive.
pub(crate) async fn notes(client: &Client, now: SystemTime) -> Result<Vec<Note>, ApiError> {
    let map: ConfigMap = client.call(request().get(NAME, &GetParams::default())?).await?;
    let annotations = map.metadata.annotations.unwrap_or_default();
    let notes = annotations.iter().filter(|(key, _)| key.starts_with(NOTE));
    Ok(notes.filter_map(|(_, text)| fresh(text, now)).collect())
}

/// Whether all agents, so many in number, trust the roots `id`, by what every replica that is alive has noted.
pub(crate) fn all_trust(notes: &[Note], id: &str, agents: usize) -> bool {
    let trusting: usize = notes.iter().map(|note| note.trusting).sum();
    !notes.is_empty()
        && notes.iter().all(|note| note.roots_id == id && note.behind == 0)
        && trusting >= agents
}

fn fresh(text: &str, now: SystemTime) -> Option<Note> {
    let mut parts = text.split(' ');
    let note = Note {
        roots_id: parts.next()?.to_owned(),
        trusting: parts.next()?.parse().ok()?,
        behind: parts.next()?.parse().ok()?,
    };
    let written: u64 = parts.next()?.parse().ok()?;
    (written.saturating_add(FRESH.as_secs()) > unix(now)).then_some(note)
}

/// Names of replicas are as long as their hosts'; a key of an annotation is not.
fn key_of(replica: &str) -> String {
    let hash = digest(&SHA256, replica.as_bytes());
    let hex: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{NOTE}{hex}")
}

fn manager_of(replica: &str) -> String {
    key_of(replica).replace(NOTE, "ferromesh-controller-")
}

fn request() -> Request {
    Request::new(ConfigMap::url_path(&(), Some(ROOT_NAMESPACE)))
}

async fn apply(client: &Client, manager: &str, map: &ConfigMap) -> Result<(), ApiError> {
    let parameters = PatchParams::apply(manager).force();
    let patch = request().patch(NAME, &parameters, &Patch::Apply(map))?;
    client.call::<ConfigMap>(patch).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_agents_trust_the_next_root_only_when_no_replica_says_otherwise_and_none_is_missing() {
        let note = |id: &str, trusting, behind| Note { roots_id: id.into(), trusting, behind };
        let ours = note("next", 2, 0);
        assert!(all_trust(&[ours.clone(), note("next", 1, 0)], "next", 3));
        assert!(!all_trust(&[], "next", 0), "nobody has said anything");
        assert!(
            !all_trust(&[ours.clone(), note("next", 1, 1)], "next", 3),
            "one of another replica does not"
        );
        assert!(
            !all_trust(&[ours.clone(), note("before", 1, 0)], "next", 2),
            "a replica has not heard of it"
        );
        assert!(!all_trust(&[ours], "next", 3), "an agent is with no replica");
    }

    #[test]
    fn a_note_counts_while_it_is_fresh_and_can_be_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let note = Note { roots_id: "ab".into(), trusting: 3, behind: 1 };
        assert_eq!(fresh("ab 3 1 941", now), Some(note));
        for bad in ["ab 3 1 940", "ab 3 1", "ab x 1 999", ""] {
            assert_eq!(fresh(bad, now), None, "{bad}");
        }
        assert!(key_of(&"long".repeat(100)).len() < 63 + 25);
    }
}
