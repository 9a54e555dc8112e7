//! Takes the taint off new nodes once their agent is ready: compiled states in, patches of Nodes out. Nobody's pods start on a
//! node before the mesh is there, when whoever makes nodes gives them the taint; this never gives it to one.

use std::time::Duration;

use kube::core::params::{GetParams, Patch, PatchParams};
use kube::core::{DynamicObject, Request, Resource};
use serde::Deserialize;
use serde_json::{Value, json};

use super::lease::Leading;
use super::turn;
use crate::api::{ApiError, Client, MANAGER, resource};
use crate::object::Kind;
use crate::serve::CompiledFeed;

/// After a patch failed.
const RETRY: Duration = Duration::from_secs(5);

/// Takes taints off.
#[derive(Debug)]
pub struct Taints {
    client: Client,
    feed: CompiledFeed,
    leading: Leading,
    key: String,
}

/// As much of a Node as is needed.
#[derive(Deserialize)]
struct Held {
    metadata: HeldMeta,
    spec: Option<HeldSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeldMeta {
    resource_version: String,
}

#[derive(Deserialize)]
struct HeldSpec {
    taints: Option<Vec<Value>>,
}

impl Taints {
    /// Takes the taint `key`, whatever its value and effect, off nodes whenever this replica is `leading`.
    pub fn new(client: Client, feed: CompiledFeed, leading: Leading, key: String) -> Self {
        Self { client, feed, leading, key }
    }

    /// Until the controller ends.
    pub async fn run(mut self) {
        loop {
            let leading = *self.leading.borrow_and_update();
            let due = if leading && self.round().await { Some(RETRY) } else { None };
            if !turn::next(&mut self.feed, &mut self.leading, due).await {
                return;
            }
        }
    }

    /// Whether something failed.
    async fn round(&mut self) -> bool {
        let Some(compiled) = self.feed.borrow_and_update().clone() else { return false };
        let mut failed = false;
        let ready = compiled.ready_taints.iter().filter(|(_, keys)| keys.contains(&self.key));
        for (node, _) in ready {
            match self.take_off(node).await {
                Ok(true) => tracing::info!(%node, taint = self.key, "the agent is ready: taint removed"),
                // It is off already, or the node is gone: the watch will say so.
                Ok(false) => {}
                Err(error) if error.is(404) => {}
                Err(error) => {
                    tracing::warn!(%node, taint = self.key, %error, "the taint cannot be removed");
                    failed = true;
                }
            }
        }
        failed
    }

    async fn take_off(&self, node: &str) -> Result<bool, ApiError> {
        let nodes = Request::new(DynamicObject::url_path(&resource(Kind::Node), None));
        let held: Held = self.client.call(nodes.get(node, &GetParams::default())?).await?;
        let taints = held.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let rest: Vec<&Value> = taints.iter().filter(|taint| taint["key"] != *self.key).collect();
        if rest.len() == taints.len() {
            return Ok(false);
        }
        // A patch replaces the whole list: the version keeps it from undoing what somebody else did meanwhile.
        let patch = json!({
            "metadata": { "resourceVersion": held.metadata.resource_version }, "spec": { "taints": rest },
        });
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        self.client.call::<Value>(nodes.patch(node, &params, &Patch::Merge(&patch))?).await?;
        Ok(true)
    }
}
