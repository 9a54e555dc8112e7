//! `WorkloadEntry`: a systemd unit of a plain Linux host that is a workload of the mesh, as a pod is.

use std::sync::Arc;

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{FieldError, ObjectStatus, text};

/// A systemd unit that is a workload. Its labels are what selectors see; the label `ferromesh.io/enrolled: "false"` asks to
/// stay out of the mesh, as a pod's does.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "ferromesh.io",
    version = "v1alpha1",
    kind = "WorkloadEntry",
    plural = "workloadentries",
    category = "ferromesh",
    shortname = "fwe",
    namespaced,
    status = "ObjectStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name": "Node", "type": "string", "jsonPath": ".spec.node"}"#,
    printcolumn = r#"{"name": "Unit", "type": "string", "jsonPath": ".spec.unit"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].reason"}"#,
    printcolumn = r#"{"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].message", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    doc = "A systemd unit of a Linux host that is a workload of the mesh, as a pod is. Its labels are what selectors see."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntrySpec {
    /// The node that the unit runs on, by the name that its agent joined with.
    #[schemars(length(max = 253))]
    #[x_kube(validation = (
        r"self.matches(r'^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')",
        "a node's name is a DNS subdomain: lower-case letters, digits, '-' and '.'"
    ))]
    pub node: String,
    /// The unit, whose cgroup is the workload: a service of the system's own systemd, for example `db.service`.
    #[schemars(length(max = 255))]
    #[x_kube(validation = (
        r"self.matches(r'^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\@-]+)?\.service$')",
        "a unit is named as systemctl shows it, with .service at the end; a template with its instance"
    ))]
    pub unit: String,
    /// The service account whose identity the unit has, in the entry's own namespace; absent means `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    #[x_kube(validation = (
        r"self.matches(r'^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')",
        "a service account's name is a DNS subdomain: lower-case letters, digits, '-' and '.'"
    ))]
    pub service_account: Option<String>,
}

/// A WorkloadEntry's spec, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredUnit {
    /// The node that it runs on.
    pub node: Arc<str>,
    /// The unit's name.
    pub unit: Arc<str>,
    /// Its service account.
    pub service_account: String,
}

impl TryFrom<&WorkloadEntry> for DeclaredUnit {
    type Error = FieldError;

    fn try_from(entry: &WorkloadEntry) -> Result<Self, FieldError> {
        let spec = &entry.spec;
        let account = spec.service_account.as_deref().unwrap_or("default");
        text::subdomain(&spec.node).map_err(|m| FieldError::new("spec.node", m))?;
        text::service_unit(&spec.unit).map_err(|m| FieldError::new("spec.unit", m))?;
        text::subdomain(account).map_err(|m| FieldError::new("spec.serviceAccount", m))?;
        Ok(Self {
            node: spec.node.as_str().into(),
            unit: spec.unit.as_str().into(),
            service_account: account.into(),
        })
    }
}
