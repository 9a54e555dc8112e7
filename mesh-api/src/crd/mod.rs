//! The custom resources of `ferromesh.io/v1alpha1` as users write them, and their way into the core's types.
//!
//! Manifests come in through serde (an unknown field is an error), checked values go out through `TryFrom`. No field has
//! a schema default: an absent field stays absent, so that what a user applied is what they read back.

mod l7;
#[expect(unreachable_pub, reason = "kube's derive repeats the struct inside of a function")]
mod mesh_config;
#[expect(unreachable_pub, reason = "kube's derive repeats the struct inside of a function")]
mod policy;
mod port;
mod rules;
mod status;
mod text;
mod udp;
#[expect(unreachable_pub, reason = "kube's derive repeats the struct inside of a function")]
mod workload_entry;

pub use mesh_config::{ConnectName, MeshConfig, MeshConfigSpec, MeshSettings, MtlsModeName, MtlsSpec};
pub use policy::{
    ActionName, AuthorizationPolicy, AuthorizationPolicySpec, FromSpec, OperationSpec, ProtocolName,
    RuleSpec, SourceSpec, ToSpec, WhenSpec,
};
pub use port::PortValue;
pub use status::{Condition, ObjectStatus};
pub use workload_entry::{DeclaredUnit, WorkloadEntry, WorkloadEntrySpec};

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of every custom resource of the mesh.
pub const GROUP: &str = "ferromesh.io";
/// The version that this build reads.
pub const VERSION: &str = "v1alpha1";

/// Which pods an object concerns; without labels, every pod in its reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// Labels that a pod must have, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
}

impl WorkloadSelector {
    /// The labels that `selector` asks for; empty when it selects everything.
    pub fn labels(selector: Option<&Self>) -> BTreeMap<String, String> {
        selector.and_then(|s| s.match_labels.clone()).unwrap_or_default()
    }
}

/// A field whose value the mesh cannot honour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// Where it is, for example `spec.rules[0].from[1].source.ipBlocks[0]`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldError {
    fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// The definitions of every custom resource, in the order of their names.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let labels = [("app.kubernetes.io/part-of".to_owned(), "ferromesh".to_owned())];
    let mut all = vec![AuthorizationPolicy::crd(), MeshConfig::crd(), WorkloadEntry::crd()];
    // What users wrote outlives a chart that is removed.
    let keep = [("helm.sh/resource-policy".to_owned(), "keep".to_owned())];
    for definition in &mut all {
        definition.metadata.labels = Some(BTreeMap::from(labels.clone()));
        definition.metadata.annotations = Some(BTreeMap::from(keep.clone()));
    }
    all
}

#[cfg(test)]
mod tests;
