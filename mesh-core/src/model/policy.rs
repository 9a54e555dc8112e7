//! L4 authorization policies, compiled: no selector (workloads name their policies), no text left to parse.
//!
//! Within one list the members are alternatives (OR); the fields of a source or an operation must all hold (AND); an
//! empty list does not constrain. A rule without sources takes any source, without operations any TCP port.

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

/// The transport that an operation speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, enforced at the source only. What no rule names by its port passes, and port 53 (DNS) always does.
    Udp,
}

/// The port of DNS: its datagrams are never refused.
pub const DNS_PORT: u16 = 53;

/// Conditions on what is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// The transport.
    pub protocol: Protocol,
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

impl AuthorizationPolicy {
    /// The UDP ports that its rules name.
    pub fn udp_ports(&self) -> impl Iterator<Item = u16> + '_ {
        let operations = self.rules.iter().flat_map(|rule| &rule.to).filter(|o| o.protocol == Protocol::Udp);
        operations.flat_map(|operation| operation.ports.iter().copied()).filter(|port| *port != DNS_PORT)
    }

    /// Whether it says anything of `port`. A policy whose rules all speak of UDP says nothing of TCP; of UDP it speaks only
    /// port by port, so that an ALLOW policy does not cut off the answers to what its workloads ask.
    pub fn concerns(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            Protocol::Udp => {
                let mut operations = self.rules.iter().flat_map(|rule| &rule.to);
                port != DNS_PORT && operations.any(|o| o.protocol == Protocol::Udp && o.ports.contains(&port))
            }
            Protocol::Tcp => {
                let tcp =
                    |rule: &Rule| rule.to.is_empty() || rule.to.iter().any(|o| o.protocol == Protocol::Tcp);
                self.rules.is_empty() || self.rules.iter().any(tcp)
            }
        }
    }
}
