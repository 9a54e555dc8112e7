//! L4 authorization policies, compiled: no selector (workloads name their policies), no text left to parse.
//!
//! Within one list the members are alternatives (OR); the fields of a source or an operation must all hold (AND); an
//! empty list does not constrain. A rule without sources takes any source, without operations any port.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

/// `namespace/name` of a policy; it names the policy in logs, statuses and `meshctl explain`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a policy does to a connection that one of its rules matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Allow it; once a workload has an ALLOW policy, what no ALLOW policy matches is denied.
    Allow,
    /// Deny it, whatever any ALLOW policy says.
    Deny,
    /// Change nothing, but name the policy in the connection's log record.
    Audit,
}

/// A pattern over a principal or namespace, as users of Istio write it: `x`, `x*`, `*x`, or `*` for any that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// The whole text.
    Exact(Arc<str>),
    /// `x*`.
    Prefix(Arc<str>),
    /// `*x`.
    Suffix(Arc<str>),
    /// `*`: any text, but there must be one (an authenticated peer).
    Present,
}

/// Conditions on where a connection comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// SPIFFE IDs without `spiffe://`, for example `cluster.local/ns/shop/sa/api`.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// Namespaces of the authenticated identity.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// The client's address.
    pub ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_ip_blocks: Vec<IpNet>,
}

/// Conditions on what is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// The application's ports.
    pub ports: Vec<u16>,
    /// None of these.
    pub not_ports: Vec<u16>,
}

/// One rule: some source and some operation must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Alternatives; empty takes any source.
    pub from: Vec<Source>,
    /// Alternatives; empty takes any operation.
    pub to: Vec<Operation>,
}

/// An authorization policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Its name.
    pub name: PolicyName,
    /// What it does.
    pub action: Action,
    /// Alternatives; a policy without rules matches nothing (so ALLOW without rules denies everything).
    pub rules: Vec<Rule>,
}
