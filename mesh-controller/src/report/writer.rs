//! Writes conditions (server-side apply on the status subresource, our own field manager) and events. Only what changed is
//! written, and of one generation of an object at most once a minute, however often its pods come and go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::params::{GetParams, Patch, PatchParams};
use kube::core::{DynamicObject, Request, Resource};
use mesh_api::crd::{Condition, ObjectStatus};
use serde::Deserialize;
use serde_json::{Value, json};

use super::conditions::{Report, Verdict, reports};
use super::event::{self, Involved};
use super::lease::Leading;
use super::turn;
use crate::api::{ApiError, Client, MANAGER, resource};
use crate::object::{ApiOrigin, ObjectRef, Origin, Status};
use crate::serve::CompiledFeed;

/// The least time between two writings of one generation of an object, and between two equal events.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// After a writing failed.
const RETRY: Duration = Duration::from_secs(5);

/// Writes what became of the objects.
#[derive(Debug)]
pub struct Writer {
    client: Client,
    feed: CompiledFeed,
    leading: Leading,
    written: BTreeMap<ObjectRef, Written>,
    /// When each event was last sent; forgotten with the refusal.
    told: BTreeMap<(Origin, &'static str), Instant>,
}

/// What an object's status is, as far as is known.
#[derive(Debug)]
struct Written {
    uid: String,
    status: ObjectStatus,
    at: Option<Instant>,
}

/// As much of an object as is needed to know its status.
#[derive(Deserialize)]
struct Held {
    metadata: HeldMeta,
    status: Option<ObjectStatus>,
}

#[derive(Deserialize)]
struct HeldMeta {
    uid: String,
}

impl Writer {
    /// Writes what `feed` says whenever this replica is `leading`.
    pub fn new(client: Client, feed: CompiledFeed, leading: Leading) -> Self {
        Self { client, feed, leading, written: BTreeMap::new(), told: BTreeMap::new() }
    }

    /// Writes until the controller ends.
    pub async fn run(mut self) {
        loop {
            let due = if *self.leading.borrow_and_update() {
                self.round().await
            } else {
                // Another replica writes now: what is known of the objects is no longer true.
                self.written.clear();
                self.told.clear();
                None
            };
            if !turn::next(&mut self.feed, &mut self.leading, due).await {
                return;
            }
        }
    }

    /// Writes what is due; answers after how long there is more.
    async fn round(&mut self) -> Option<Duration> {
        let compiled = self.feed.borrow_and_update().clone()?;
        let wanted = reports(&compiled.statuses);
        self.written.retain(|object, _| wanted.contains_key(object));
        let mut due: Option<Duration> = None;
        for (object, report) in &wanted {
            let again = match self.write(object, report).await {
                Ok(again) => again,
                // It is gone, or another of its name is there: the watch will say so.
                Err(error) if error.is(404) || error.is(409) => {
                    self.written.remove(object);
                    None
                }
                Err(error) => {
                    tracing::warn!(%object, %error, "its conditions cannot be written");
                    Some(RETRY)
                }
            };
            due = due.into_iter().chain(again).min();
        }
        self.events(&compiled.statuses).await;
        due
    }

    async fn write(&mut self, object: &ObjectRef, report: &Report) -> Result<Option<Duration>, ApiError> {
        if self.written.get(object).is_none_or(|held| *held.uid != *report.uid) {
            let held: Held =
                self.client.call(request(object).get(&object.name.name, &GetParams::default())?).await?;
            if *held.metadata.uid != *report.uid {
                return Ok(None);
            }
            let status = held.status.unwrap_or_default();
            self.written.insert(object.clone(), Written { uid: held.metadata.uid, status, at: None });
        }
        let Some(held) = self.written.get_mut(object) else { return Ok(None) };
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default().to_string();
        let fresh = status(report, &held.status, &now);
        if fresh == held.status {
            return Ok(None);
        }
        let same_generation = held.status.observed_generation == Some(report.generation);
        if let Some(at) = held.at.filter(|at| same_generation && at.elapsed() < AT_MOST_EVERY) {
            return Ok(Some(AT_MOST_EVERY.saturating_sub(at.elapsed())));
        }
        let api = resource(object.kind);
        let patch = json!({
            "apiVersion": api.api_version, "kind": api.kind,
            "metadata": { "namespace": object.name.namespace, "name": object.name.name, "uid": report.uid },
            "status": fresh,
        });
        let params = PatchParams::apply(MANAGER).force();
        let name = &object.name.name;
        let request = request(object).patch_subresource("status", name, &params, &Patch::Apply(&patch))?;
        self.client.call::<Value>(request).await?;
        held.status = fresh;
        held.at = Some(Instant::now());
        Ok(None)
    }

    /// Sends an event for each refusal that is new.
    async fn events(&mut self, statuses: &[Status]) {
        let refused = |s: &&Status| !s.accepted && matches!(s.source, Origin::Api(_));
        let refusals: Vec<&Status> = statuses.iter().filter(refused).collect();
        let stands = |key: &(Origin, &str)| refusals.iter().any(|s| s.source == key.0 && s.reason == key.1);
        self.told.retain(|key, at| stands(key) || at.elapsed() < AT_MOST_EVERY);
        for status in refusals {
            let Origin::Api(origin) = &status.source else { continue };
            let key = (status.source.clone(), status.reason);
            if self.told.contains_key(&key) {
                continue;
            }
            if let Err(error) = self.event(origin, status).await {
                tracing::warn!(object = %origin.object, %error, "its event cannot be sent");
                continue;
            }
            self.told.insert(key, Instant::now());
        }
    }

    async fn event(&self, origin: &ApiOrigin, status: &Status) -> Result<(), ApiError> {
        let (object, api) = (&origin.object, resource(origin.object.kind));
        let about = Involved {
            api_version: &api.api_version,
            kind: &api.kind,
            uid: &origin.uid,
            namespace: &object.name.namespace,
            name: &object.name.name,
        };
        event::warn(&self.client, about, status.reason, &status.message).await
    }
}

fn request(object: &ObjectRef) -> Request {
    let namespace = Some(&*object.name.namespace).filter(|namespace| !namespace.is_empty());
    Request::new(DynamicObject::url_path(&resource(object.kind), namespace))
}

/// The status that `report` asks for; a condition that does not turn keeps the time at which it did.
fn status(report: &Report, held: &ObjectStatus, now: &str) -> ObjectStatus {
    let condition = |verdict: &Verdict| {
        let status = if verdict.holds { "True" } else { "False" };
        let before =
            held.conditions.iter().flatten().find(|c| c.type_ == verdict.about && c.status == status);
        Condition {
            type_: verdict.about.into(),
            status: status.into(),
            reason: verdict.reason.into(),
            message: verdict.message.clone(),
            last_transition_time: before.map_or_else(|| now.into(), |c| c.last_transition_time.clone()),
            observed_generation: Some(report.generation),
        }
    };
    ObjectStatus {
        observed_generation: Some(report.generation),
        conditions: Some(report.verdicts.iter().map(condition).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_does_not_turn_keeps_its_time_and_the_same_report_changes_nothing() {
        let verdict = |holds, message: &str| Verdict {
            about: "Accepted",
            holds,
            reason: "Accepted",
            message: message.into(),
        };
        let report = |verdict| Report { uid: "u".into(), generation: 1, verdicts: vec![verdict] };
        let first = status(&report(verdict(true, "2 pods")), &ObjectStatus::default(), "t1");
        assert_eq!(status(&report(verdict(true, "2 pods")), &first, "t2"), first);
        let time =
            |status: &ObjectStatus| status.conditions.as_ref().unwrap()[0].last_transition_time.clone();
        let second = status(&report(verdict(true, "3 pods")), &first, "t2");
        assert!(second != first && time(&second) == "t1");
        assert_eq!(time(&status(&report(verdict(false, "bad")), &second, "t3")), "t3");
    }
}
