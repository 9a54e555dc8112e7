//! `AuthorizationPolicy`: who may open connections to the selected workloads (L4).
//!
//! Fields that only HTTP could answer are understood and not enforced yet; they never make a policy weaker (see [`super::l7`]).

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ObjectStatus, PortValue, WorkloadSelector};

/// Who may open connections to the selected workloads. In the root namespace it concerns every namespace.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "ferromesh.io",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "fap",
    category = "ferromesh",
    namespaced,
    status = "ObjectStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name": "Action", "type": "string", "jsonPath": ".spec.action"}"#,
    printcolumn = r#"{"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name": "Enforced", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Enforced')].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Enforced')].reason"}"#,
    printcolumn = r#"{"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Enforced')].message", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    doc = "Who may open connections to the selected workloads. In the root namespace it concerns every namespace."
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Which pods; absent selects all of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// What a matching rule does; absent means ALLOW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<ActionName>,
    /// Alternatives; without rules nothing matches, so that ALLOW without rules denies everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub rules: Option<Vec<RuleSpec>>,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ActionName {
    /// Allow what matches, deny what no ALLOW policy matches.
    Allow,
    /// Deny what matches, whatever else allows it.
    Deny,
    /// Only name the policy in the log.
    Audit,
}

/// The transport that an operation speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProtocolName {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// One rule: some source and some operation must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleSpec {
    /// Alternatives; absent takes any source.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub from: Option<Vec<FromSpec>>,
    /// Alternatives; absent takes any operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub to: Option<Vec<ToSpec>>,
    /// Further conditions, all of them to hold; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<Vec<WhenSpec>>,
}

/// An alternative of `from`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FromSpec {
    /// Conditions on the source; all of them must hold.
    pub source: SourceSpec,
}

/// An alternative of `to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToSpec {
    /// Conditions on the operation; all of them must hold.
    pub operation: OperationSpec,
}

/// A further condition, by key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WhenSpec {
    /// What is looked at, for example `request.headers[x-team]`.
    pub key: String,
    /// One of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
    /// None of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_values: Option<Vec<String>>,
}

/// Conditions on where a connection comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces) || has(self.ipBlocks) || has(self.notIpBlocks) || has(self.requestPrincipals) || has(self.notRequestPrincipals)", "a source needs a condition; leave `from` out to take any source"))]
pub struct SourceSpec {
    /// SPIFFE IDs without `spiffe://`: `x`, `x*`, `*x` or `*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 2048), regex(pattern = r"^(\*|\*?[a-zA-Z0-9._/-]+|[a-zA-Z0-9._/-]+\*)$"))
    )]
    pub principals: Option<Vec<String>>,
    /// None of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 2048), regex(pattern = r"^(\*|\*?[a-zA-Z0-9._/-]+|[a-zA-Z0-9._/-]+\*)$"))
    )]
    pub not_principals: Option<Vec<String>>,
    /// Namespaces of the authenticated identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 64), regex(pattern = r"^(\*|\*?[a-z0-9-]+|[a-z0-9-]+\*)$"))
    )]
    pub namespaces: Option<Vec<String>>,
    /// None of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 64), regex(pattern = r"^(\*|\*?[a-z0-9-]+|[a-z0-9-]+\*)$"))
    )]
    pub not_namespaces: Option<Vec<String>>,
    /// Addresses or CIDR blocks of the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 49), regex(pattern = r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"))
    )]
    pub ip_blocks: Option<Vec<String>>,
    /// None of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 1024),
        inner(length(max = 49), regex(pattern = r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$"))
    )]
    pub not_ip_blocks: Option<Vec<String>>,
    /// `ISSUER/SUBJECT` of a JWT; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub request_principals: Option<Vec<String>>,
    /// None of these; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub not_request_principals: Option<Vec<String>>,
}

/// Conditions on what is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = ("has(self.ports) || has(self.notPorts) || has(self.hosts) || has(self.notHosts) || has(self.methods) || has(self.notMethods) || has(self.paths) || has(self.notPaths)", "an operation needs a condition; leave `to` out to take any operation"))]
pub struct OperationSpec {
    /// The transport of `ports`; absent means TCP. UDP is enforced at the source only, on the ports that are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ProtocolName>,
    /// The application's ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub ports: Option<Vec<PortValue>>,
    /// None of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub not_ports: Option<Vec<PortValue>>,
    /// Hosts of HTTP requests; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub hosts: Option<Vec<String>>,
    /// None of these; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub not_hosts: Option<Vec<String>>,
    /// Methods of HTTP requests; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub methods: Option<Vec<String>>,
    /// None of these; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub not_methods: Option<Vec<String>>,
    /// Paths of HTTP requests; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub paths: Option<Vec<String>>,
    /// None of these; not enforced yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub not_paths: Option<Vec<String>>,
}
