//! What a source delivers: Kubernetes objects with their names and where they were found, and what became of them.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_api::crd::{AuthorizationPolicy, MeshConfig, WorkloadEntry};
use serde_json::Value;

/// The kinds that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` ServiceAccount.
    ServiceAccount,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `ferromesh.io/v1alpha1` AuthorizationPolicy.
    AuthorizationPolicy,
    /// `ferromesh.io/v1alpha1` MeshConfig.
    MeshConfig,
    /// `ferromesh.io/v1alpha1` WorkloadEntry.
    WorkloadEntry,
    /// `gateway.networking.k8s.io` HTTPRoute.
    HTTPRoute,
    /// `gateway.networking.k8s.io` GRPCRoute.
    GRPCRoute,
    /// `gateway.networking.k8s.io` TCPRoute.
    TCPRoute,
    /// `gateway.networking.k8s.io` TLSRoute.
    TLSRoute,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `namespace/name`; the namespace is empty for what is in none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Name {
    /// A name from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The key of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// An object that was decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A namespace.
    Namespace(Box<Namespace>),
    /// A node.
    Node(Box<Node>),
    /// A service account.
    ServiceAccount(Box<ServiceAccount>),
    /// A pod.
    Pod(Box<Pod>),
    /// A service.
    Service(Box<Service>),
    /// A slice of a service's endpoints.
    EndpointSlice(Box<EndpointSlice>),
    /// A policy.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// A configuration.
    MeshConfig(Box<MeshConfig>),
    /// A systemd unit that is a workload.
    WorkloadEntry(Box<WorkloadEntry>),
    /// A route of the Gateway API, as it is written.
    Route(Box<Value>),
}

/// Where an object was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A place that people can look at: `file:line`, a folder, a server.
    Place(Arc<str>),
    /// An API server, which can be told what became of the object.
    Api(Arc<ApiOrigin>),
}

/// One generation of an object of an API server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiOrigin {
    /// The object.
    pub object: ObjectRef,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`; 0 for kinds that have none.
    pub generation: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => f.write_str(place),
            Self::Api(origin) => origin.object.fmt(f),
        }
    }
}

/// What became of an object: the stand-in for a status condition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Status {
    /// Where the object was found.
    pub source: Origin,
    /// Whether it is in force as it was written.
    pub accepted: bool,
    /// Of policies: whether every selected pod and every condition is enforced (the condition `Enforced`).
    pub enforced: Option<bool>,
    /// One CamelCase word, as in a Kubernetes condition.
    pub reason: &'static str,
    /// What and why, naming the object.
    pub message: String,
}

impl Status {
    /// Something that is not in force as it was written.
    pub fn refused(source: &Origin, reason: &'static str, message: impl Into<String>) -> Self {
        Self { source: source.clone(), accepted: false, enforced: None, reason, message: message.into() }
    }

    /// Something that is in force, with a remark.
    pub fn noted(source: &Origin, reason: &'static str, message: impl Into<String>) -> Self {
        Self { source: source.clone(), accepted: true, enforced: None, reason, message: message.into() }
    }

    /// The same, with the condition `Enforced`.
    #[must_use]
    pub fn enforced(self, enforced: bool) -> Self {
        Self { enforced: Some(enforced), ..self }
    }
}
