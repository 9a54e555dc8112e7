//! A pod: what the mesh needs of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_core::model::{Owner, Protocol, WorkloadUid};

use super::{ENROLLED_LABEL, Labels, Problems, is_of, probes};
use crate::object::{Kind, Name, ObjectRef, Origin};

/// The label that a Deployment puts on its ReplicaSets and their pods.
const TEMPLATE_HASH_LABEL: &str = "pod-template-hash";

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Pending or Running.
    Live,
    /// Succeeded, Failed, Unknown or anything newer: its addresses may be somebody else's by now.
    Over,
}

/// One pod, or one systemd unit that a WorkloadEntry declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInfo {
    /// Its uid.
    pub uid: WorkloadUid,
    /// Its name.
    pub name: Name,
    /// Where it was found.
    pub origin: Origin,
    /// Its node; empty while it has none.
    pub node: Arc<str>,
    /// The systemd unit that it is; `None`: a pod.
    pub unit: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// Whether it shares the node's network, and so has no address of its own.
    pub host_network: bool,
    /// Its top owner.
    pub owner: Owner,
    /// Its service account.
    pub service_account: String,
    /// Its phase.
    pub phase: PodPhase,
    /// Its Ready condition; a Running pod without one counts as ready.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Named TCP ports of its containers.
    pub ports: Vec<(String, u16)>,
    /// The same of UDP.
    pub udp_ports: Vec<(String, u16)>,
    /// TCP ports that its kubelet asks: those of probes and lifecycle hooks.
    pub probes: BTreeSet<u16>,
    /// When it was made, in seconds since the epoch.
    pub created: Option<i64>,
    /// Whether its label asks to stay out of the mesh.
    pub opts_out: bool,
}

impl PodInfo {
    /// The object that it was read from, for messages.
    pub fn object(&self) -> ObjectRef {
        let kind = if self.unit.is_some() { Kind::WorkloadEntry } else { Kind::Pod };
        ObjectRef { kind, name: self.name.clone() }
    }

    pub(super) fn read(name: &Name, pod: &Pod, origin: &Origin, problems: &mut Problems<'_>) -> Option<Self> {
        let Some(uid) = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()) else {
            problems.refuse("MissingUid", "metadata.uid is missing, and a pod is known by it");
            return None;
        };
        let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
        let spec = pod.spec.as_ref().unwrap_or(&no_spec);
        let status = pod.status.as_ref().unwrap_or(&no_status);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let phase = match status.phase.as_deref() {
            None | Some("Pending" | "Running") => PodPhase::Live,
            Some(_) => PodPhase::Over,
        };
        let account = [&spec.service_account_name, &spec.service_account].into_iter().flatten();
        Some(Self {
            uid: WorkloadUid(uid.into()),
            name: name.clone(),
            origin: origin.clone(),
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            unit: None,
            addresses: addresses(status, problems),
            opts_out: opts_out(&labels, problems),
            owner: owner(&pod.metadata, &name.name, &labels),
            labels,
            host_network: spec.host_network == Some(true),
            service_account: account.into_iter().find(|a| !a.is_empty()).cloned().unwrap_or("default".into()),
            phase,
            ready: ready(status),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            ports: named_ports(spec, Protocol::Tcp),
            udp_ports: named_ports(spec, Protocol::Udp),
            probes: probes::ports(spec),
            created: pod.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        })
    }
}

fn addresses(status: &PodStatus, problems: &mut Problems<'_>) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_deref());
    }
    let mut addresses = Vec::new();
    for text in texts.into_iter().filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) if addresses.contains(&address.to_canonical()) => {}
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => problems.refuse("InvalidAddress", format!("status.podIPs: {text:?} is not an address")),
        }
    }
    addresses
}

pub(super) fn opts_out(labels: &Labels, problems: &mut Problems<'_>) -> bool {
    match labels.get(ENROLLED_LABEL).map(String::as_str) {
        Some("false") => true,
        None | Some("true") => false,
        Some(other) => {
            problems
                .refuse("UnknownLabelValue", format!("{ENROLLED_LABEL}={other:?} is neither true nor false"));
            false
        }
    }
}

/// The top owner, as far as names tell it: a Deployment's ReplicaSet ends in the template hash, a CronJob's Job in digits.
fn owner(meta: &ObjectMeta, pod: &str, labels: &Labels) -> Owner {
    let references = meta.owner_references.as_deref().unwrap_or_default();
    let controller = references.iter().find(|r| r.controller == Some(true)).or(references.first());
    let Some(controller) = controller else {
        return Owner { kind: "Pod".into(), name: pod.into() };
    };
    let (stem, last) = controller.name.rsplit_once('-').unwrap_or(("", ""));
    let digits = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    let (kind, name) = match controller.kind.as_str() {
        "ReplicaSet" if labels.get(TEMPLATE_HASH_LABEL).is_some_and(|hash| hash == last) => {
            ("Deployment", stem)
        }
        "Job" if digits => ("CronJob", stem),
        kind => (kind, controller.name.as_str()),
    };
    if name.is_empty() {
        return Owner { kind: controller.kind.as_str().into(), name: controller.name.as_str().into() };
    }
    Owner { kind: kind.into(), name: name.into() }
}

fn ready(status: &PodStatus) -> bool {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    condition.map_or(status.phase.as_deref() == Some("Running"), |c| c.status == "True")
}

fn named_ports(spec: &PodSpec, protocol: Protocol) -> Vec<(String, u16)> {
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let ports = ports.filter(|p| is_of(p.protocol.as_deref(), protocol));
    ports.filter_map(|p| Some((p.name.clone()?, u16::try_from(p.container_port).ok()?))).collect()
}
