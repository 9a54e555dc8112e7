//! `MeshConfig`: how the mesh treats the selected workloads. In the root namespace it speaks for the whole mesh.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::{CustomResource, KubeSchema};
use mesh_core::model::{ConnectMode, MtlsMode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FieldError, ObjectStatus, PortValue, WorkloadSelector, text};

/// How the mesh treats the selected workloads.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "ferromesh.io",
    version = "v1alpha1",
    kind = "MeshConfig",
    plural = "meshconfigs",
    category = "ferromesh",
    shortname = "fmc",
    namespaced,
    status = "ObjectStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name": "mTLS", "type": "string", "jsonPath": ".spec.mtls.mode"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].reason"}"#,
    printcolumn = r#"{"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].message", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    doc = "How the mesh treats the selected workloads. In the root namespace it speaks for the whole mesh."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfigSpec {
    /// Which pods; absent selects all of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Whether plaintext is taken; absent leaves it to the next wider MeshConfig, and PERMISSIVE in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsSpec>,
    /// Whether a pod may leave the mesh by the label `ferromesh.io/enrolled: "false"`; absent leaves it to the next wider
    /// MeshConfig, and means no in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_opt_out: Option<bool>,
    /// How long a node's agent may be lost until pods that are not under STRICT are let pass in plaintext: a number of
    /// seconds, minutes or hours (`90s`, `5m`, `1h`), or `never`; absent leaves it to the next wider MeshConfig, and
    /// means never in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12), regex(pattern = r"^(never|0*[1-9][0-9]*[smh])$"))]
    pub agent_lost_after: Option<String>,
    /// When a pod's `connect()` returns; absent leaves it to the next wider MeshConfig, and to the node's agent in the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect: Option<ConnectName>,
}

/// When a pod's `connect()` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConnectName {
    /// When the destination was dialled, and with that outcome, where the node's kernel carries it.
    Honest,
    /// At once; a failure is a reset.
    Eager,
}

impl From<ConnectName> for ConnectMode {
    fn from(name: ConnectName) -> Self {
        match name {
            ConnectName::Honest => Self::Honest,
            ConnectName::Eager => Self::Eager,
        }
    }
}

/// The mTLS mode, with exceptions by port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MtlsSpec {
    /// The mode of every port that `ports` does not name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsModeName>,
    /// Exceptions, keyed by the application's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 1024))]
    #[x_kube(validation = (
        "self.all(port, port.matches('^[1-9][0-9]{0,4}$') && int(port) <= 65535)",
        "the keys are ports: 1 to 65535"
    ))]
    pub ports: Option<BTreeMap<String, MtlsModeName>>,
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsModeName {
    /// Mutual TLS only.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
}

impl From<MtlsModeName> for MtlsMode {
    fn from(name: MtlsModeName) -> Self {
        match name {
            MtlsModeName::Strict => Self::Strict,
            MtlsModeName::Permissive => Self::Permissive,
        }
    }
}

/// A MeshConfig, checked. What it leaves open is decided by the next wider one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshSettings {
    /// Labels that a pod must have; empty selects every pod in reach.
    pub selector: BTreeMap<String, String>,
    /// The mode of every port without an exception.
    pub mode: Option<MtlsMode>,
    /// Exceptions by port.
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Whether pods may opt out.
    pub allow_opt_out: Option<bool>,
    /// After how long without an agent pods are let pass; `Some(None)`: never.
    pub agent_lost_after: Option<Option<Duration>>,
    /// When `connect()` returns.
    pub connect: Option<ConnectMode>,
}

impl TryFrom<&MeshConfig> for MeshSettings {
    type Error = FieldError;

    fn try_from(config: &MeshConfig) -> Result<Self, FieldError> {
        let spec = &config.spec;
        let mtls = spec.mtls.clone().unwrap_or_default();
        let mut ports = BTreeMap::new();
        for (text, mode) in mtls.ports.iter().flatten() {
            let port = PortValue::parse(text).map_err(|m| FieldError::new("spec.mtls.ports", m))?;
            if ports.insert(port.0, MtlsMode::from(*mode)).is_some() {
                return Err(FieldError::new("spec.mtls.ports", format!("port {} is there twice", port.0)));
            }
        }
        Ok(Self {
            selector: WorkloadSelector::labels(spec.selector.as_ref()),
            mode: mtls.mode.map(MtlsMode::from),
            ports,
            allow_opt_out: spec.allow_opt_out,
            agent_lost_after: match &spec.agent_lost_after {
                None => None,
                Some(text) => {
                    Some(text::lost_after(text).map_err(|m| FieldError::new("spec.agentLostAfter", m))?)
                }
            },
            connect: spec.connect.map(ConnectMode::from),
        })
    }
}
