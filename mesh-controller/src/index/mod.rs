//! The objects of the source as plain structs: `apply` and `delete` go in, [`crate::compile`] reads.
//!
//! What an object says is checked here once. An object that cannot be honoured keeps its last good version; a MeshConfig
//! that never had one is remembered as undecodable, because it may have said STRICT.

mod entry;
mod pod;
mod probes;
mod service;
mod slice;

pub use pod::{PodInfo, PodPhase};
pub use service::{PortInfo, ServiceInfo, TargetPort};
pub use slice::{SliceEndpoint, SliceInfo};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node};
use mesh_api::crd::{self, MeshSettings, WorkloadSelector};
use mesh_core::model as core;
use serde_json::Value;

use crate::object::{Kind, Name, Object, ObjectRef, Origin, Status};
use crate::watch::{Batch, Change};

/// The label that enrols a namespace (`true`), and by which a pod may opt out (`false`).
pub const ENROLLED_LABEL: &str = "ferromesh.io/enrolled";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Index {
    /// Whether a Service without an EndpointSlice takes its endpoints from pods.
    pub derives_endpoints: bool,
    /// Namespaces.
    pub namespaces: BTreeMap<Arc<str>, NamespaceInfo>,
    /// The nodes, with the keys of their taints.
    pub nodes: BTreeMap<Arc<str>, Vec<String>>,
    /// Service accounts.
    pub service_accounts: BTreeSet<Name>,
    /// Pods.
    pub pods: BTreeMap<Name, PodInfo>,
    /// Systemd units that WorkloadEntries declare, in a pod's form; one may be called as a pod is.
    pub entries: BTreeMap<Name, PodInfo>,
    /// Services.
    pub services: BTreeMap<Name, ServiceInfo>,
    /// EndpointSlices.
    pub slices: BTreeMap<Name, SliceInfo>,
    /// Policies.
    pub policies: BTreeMap<Name, PolicyInfo>,
    /// Configurations.
    pub configs: BTreeMap<Name, ConfigInfo>,
    /// Routes of the Gateway API, kept as they are written: nothing serves them yet.
    pub routes: BTreeMap<ObjectRef, Value>,
    problems: BTreeMap<ObjectRef, Vec<Status>>,
    source: Vec<Status>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Whether its pods are enrolled.
    pub enrolled: bool,
    /// Where it was found.
    pub origin: Origin,
}

/// A policy with its selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    /// The policy.
    pub policy: Arc<core::AuthorizationPolicy>,
    /// Labels that a pod must have; empty selects every pod in reach.
    pub selector: Labels,
    /// Paths of its fields that only HTTP could answer, and that are not enforced.
    pub unenforced: Vec<String>,
    /// Where it was found.
    pub origin: Origin,
}

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigInfo {
    /// What it says; `None` when that cannot be known, which counts as strict.
    pub settings: Option<MeshSettings>,
    /// Where it was found.
    pub origin: Origin,
}

/// Collects what is wrong with one object.
#[derive(Debug)]
pub(crate) struct Problems<'a> {
    key: &'a ObjectRef,
    origin: &'a Origin,
    found: Vec<Status>,
}

impl Problems<'_> {
    /// A part that has no effect.
    pub(crate) fn refuse(&mut self, reason: &'static str, message: impl std::fmt::Display) {
        self.found.push(Status::refused(self.origin, reason, format!("{}: {message}", self.key)));
    }
}

impl Index {
    /// An empty index.
    pub fn new(derives_endpoints: bool) -> Self {
        Self { derives_endpoints, ..Self::default() }
    }

    /// Takes a batch over.
    pub fn update(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Apply(key, object, origin) => self.apply(&key, &object, &origin),
                Change::Undecodable(key, origin) => self.undecodable(&key, origin),
                Change::Delete(key) => self.delete(&key),
            }
        }
        self.source = batch.statuses;
    }

    /// What is wrong with what was read, object by object.
    pub fn statuses(&self) -> impl Iterator<Item = &Status> {
        self.source.iter().chain(self.problems.values().flatten())
    }

    /// Whatever can be a workload: pods, and systemd units that entries declare.
    pub fn candidates(&self) -> impl Iterator<Item = &PodInfo> {
        self.pods.values().chain(self.entries.values())
    }

    fn apply(&mut self, key: &ObjectRef, object: &Object, origin: &Origin) {
        let mut problems = Problems { key, origin, found: Vec::new() };
        let name = key.name.clone();
        match object {
            Object::Namespace(object) => {
                let info = namespace(object, origin, &mut problems);
                self.namespaces.insert(Arc::clone(&name.name), info);
            }
            Object::Node(object) => drop(self.nodes.insert(name.name, taints(object))),
            Object::ServiceAccount(_) => drop(self.service_accounts.insert(name)),
            Object::Pod(object) => match PodInfo::read(&name, object, origin, &mut problems) {
                Some(info) => drop(self.pods.insert(name, info)),
                None => self.note_kept(&mut problems),
            },
            Object::Service(object) => {
                let info = ServiceInfo::read(&name, object, origin, &mut problems);
                self.services.insert(name, info);
            }
            Object::EndpointSlice(object) => {
                let info = SliceInfo::read(&name, object, origin, &mut problems);
                self.slices.insert(name, info);
            }
            Object::AuthorizationPolicy(object) => match core::AuthorizationPolicy::try_from(&**object) {
                Ok(policy) => {
                    let selector = WorkloadSelector::labels(object.spec.selector.as_ref());
                    let (policy, unenforced) = (Arc::new(policy), object.unenforced_fields());
                    let info = PolicyInfo { policy, selector, unenforced, origin: origin.clone() };
                    self.policies.insert(name, info);
                }
                Err(error) => {
                    problems.refuse("Invalid", error);
                    self.note_kept(&mut problems);
                }
            },
            Object::MeshConfig(object) => self.apply_config(name, object, &mut problems),
            Object::WorkloadEntry(object) => match PodInfo::of_entry(&name, object, &mut problems) {
                Ok(info) => drop(self.entries.insert(name, info)),
                Err(error) => {
                    problems.refuse("Invalid", error);
                    self.note_kept(&mut problems);
                }
            },
            Object::Route(object) => drop(self.routes.insert(key.clone(), (**object).clone())),
        }
        let found = problems.found;
        if found.is_empty() {
            self.problems.remove(key);
        } else {
            self.problems.insert(key.clone(), found);
        }
    }

    fn apply_config(&mut self, name: Name, object: &crd::MeshConfig, problems: &mut Problems<'_>) {
        match MeshSettings::try_from(object) {
            Ok(settings) => {
                let info = ConfigInfo { settings: Some(settings), origin: problems.origin.clone() };
                self.configs.insert(name, info);
            }
            Err(error) => {
                problems.refuse("Invalid", error);
                self.note_kept(problems);
                let unknown = ConfigInfo { settings: None, origin: problems.origin.clone() };
                self.configs.entry(name).or_insert(unknown);
            }
        }
    }

    /// Says whether the object's last good version stays in force.
    fn note_kept(&self, problems: &mut Problems<'_>) {
        let name = &problems.key.name;
        let held = match problems.key.kind {
            Kind::Pod => self.pods.contains_key(name),
            Kind::AuthorizationPolicy => self.policies.contains_key(name),
            Kind::MeshConfig => self.configs.get(name).is_some_and(|c| c.settings.is_some()),
            Kind::WorkloadEntry => self.entries.contains_key(name),
            _ => false,
        };
        let note = if held { "; its last good version is kept" } else { "; it is not in force" };
        for status in &mut problems.found {
            status.message.push_str(note);
        }
    }

    fn undecodable(&mut self, key: &ObjectRef, origin: Origin) {
        if key.kind == Kind::MeshConfig {
            self.configs.entry(key.name.clone()).or_insert(ConfigInfo { settings: None, origin });
        }
    }

    fn delete(&mut self, key: &ObjectRef) {
        self.problems.remove(key);
        let name = &key.name;
        match key.kind {
            Kind::Namespace => drop(self.namespaces.remove(&name.name)),
            Kind::Node => drop(self.nodes.remove(&name.name)),
            Kind::ServiceAccount => drop(self.service_accounts.remove(name)),
            Kind::Pod => drop(self.pods.remove(name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::EndpointSlice => drop(self.slices.remove(name)),
            Kind::AuthorizationPolicy => drop(self.policies.remove(name)),
            Kind::MeshConfig => drop(self.configs.remove(name)),
            Kind::WorkloadEntry => drop(self.entries.remove(name)),
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute => {
                drop(self.routes.remove(key));
            }
        }
    }
}

fn taints(object: &Node) -> Vec<String> {
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().map(|taint| taint.key.clone()).collect()
}

fn namespace(object: &Namespace, origin: &Origin, problems: &mut Problems<'_>) -> NamespaceInfo {
    let label = object.metadata.labels.as_ref().and_then(|labels| labels.get(ENROLLED_LABEL));
    let enrolled = match label.map(String::as_str) {
        Some("true") => true,
        Some("false") | None => false,
        Some(other) => {
            problems
                .refuse("UnknownLabelValue", format!("{ENROLLED_LABEL}={other:?} is neither true nor false"));
            false
        }
    };
    NamespaceInfo { enrolled, origin: origin.clone() }
}

/// Whether a port that an object gives with this protocol (absent means TCP) is one of `protocol`.
fn is_of(given: Option<&str>, protocol: core::Protocol) -> bool {
    match protocol {
        core::Protocol::Tcp => matches!(given, None | Some("" | "TCP")),
        core::Protocol::Udp => given == Some("UDP"),
    }
}

/// Whether `labels` has everything that `selector` asks for.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
