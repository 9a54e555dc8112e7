//! A systemd unit that a WorkloadEntry declares: read into a pod's form, for the same rules hold for it. It has no address, so
//! no Service is served by it, and its uid is made of what no two units share: the node's name and its own.

use std::collections::BTreeSet;

use mesh_api::crd::{DeclaredUnit, FieldError, WorkloadEntry};
use mesh_core::model::{Owner, WorkloadUid};

use super::pod::{PodInfo, PodPhase, opts_out};
use super::{Labels, Problems};
use crate::object::{Kind, Name};

impl PodInfo {
    /// The unit that `entry` declares.
    pub(super) fn of_entry(
        name: &Name,
        entry: &WorkloadEntry,
        problems: &mut Problems<'_>,
    ) -> Result<Self, FieldError> {
        let DeclaredUnit { node, unit, service_account } = DeclaredUnit::try_from(entry)?;
        let labels: Labels = entry.metadata.labels.clone().unwrap_or_default();
        Ok(Self {
            uid: WorkloadUid(format!("{node}/{unit}").into()),
            name: name.clone(),
            origin: problems.origin.clone(),
            node,
            unit: Some(unit),
            addresses: Vec::new(),
            opts_out: opts_out(&labels, problems),
            labels,
            host_network: false,
            owner: Owner { kind: Kind::WorkloadEntry.to_string().into(), name: name.name.clone() },
            service_account,
            phase: PodPhase::Live,
            ready: true,
            terminating: false,
            ports: Vec::new(),
            udp_ports: Vec::new(),
            probes: BTreeSet::new(),
            created: None,
        })
    }
}
