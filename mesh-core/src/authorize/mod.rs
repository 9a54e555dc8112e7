//! May this peer open a connection to that workload's port? [`decide`] answers for the agent at both ends, for open
//! connections when policy changes, and for `meshctl explain`.
//!
//! The kubelet of the pod's node may ask the TCP ports that the pod's own probes declare, whatever mode and policies say: it
//! has no identity, and a pod that it cannot ask is restarted. It may ask nothing else that plaintext may not.
//!
//! Order otherwise: mTLS mode, DENY policies, ALLOW policies (any ALLOW policy makes the default deny), AUDIT policies.
//! mTLS modes are TCP's; a policy that names nothing of the request's protocol has no say in it.
//! A policy that a workload names but the snapshot does not hold denies: it cannot be known what it says.

mod matching;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::model::{Action, MtlsMode, PolicyName, Protocol, Workload};
use crate::snapshot::Snapshot;

/// Who is at the other end of a connection. Absence carries its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An identity proven by a certificate, or, at the source, by the kernel's objects.
    Authenticated(SpiffeId),
    /// Nobody proved anything.
    Plain(PlainReason),
}

/// Why a peer has no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlainReason {
    /// It spoke plaintext to the pod.
    NotMeshed,
    /// It is the kubelet of the pod's node, by the word of the node's kernel.
    Kubelet,
}

impl Peer {
    /// The identity, if there is one.
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Authenticated(id) => Some(id),
            Self::Plain(_) => None,
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub peer: &'a Peer,
    /// The client's address.
    pub client: IpAddr,
    /// The workload that is asked.
    pub workload: &'a Workload,
    /// The transport.
    pub protocol: Protocol,
    /// The application's port.
    pub port: u16,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on. `by` names the ALLOW policy that matched, or is `None` when no ALLOW policy selects the workload.
    Allow {
        /// The policy.
        by: Option<PolicyName>,
        /// AUDIT policies that matched.
        audit: Vec<PolicyName>,
    },
    /// Refuse.
    Deny(DenyReason),
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Why a connection is refused; the text is what logs and `meshctl explain` show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// The workload takes mutual TLS only and the peer spoke plaintext.
    StrictMtls,
    /// A rule (by its index) of a DENY policy matched.
    Denied(PolicyName, usize),
    /// ALLOW policies select the workload and none matched.
    NoAllowMatched,
    /// The workload names a policy that this agent does not hold.
    PolicyMissing(PolicyName),
}

impl DenyReason {
    /// The reason as one word for metrics and response flags.
    pub fn code(&self) -> &'static str {
        match self {
            Self::StrictMtls => "strict_mtls",
            Self::Denied(..) => "denied_by_policy",
            Self::NoAllowMatched => "no_allow_policy_matched",
            Self::PolicyMissing(_) => "policy_missing",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StrictMtls => f.write_str("the workload takes mutual TLS only and the peer sent plaintext"),
            Self::Denied(policy, rule) => {
                write!(f, "denied by AuthorizationPolicy {policy}, rules[{rule}]")
            }
            Self::NoAllowMatched => {
                f.write_str("no ALLOW policy matched, and at least one selects the workload")
            }
            Self::PolicyMissing(policy) => {
                write!(f, "AuthorizationPolicy {policy} selects the workload but has not reached this agent")
            }
        }
    }
}

/// One step of a decision, for `meshctl explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was looked at.
    pub subject: String,
    /// What came of it.
    pub outcome: String,
}

/// Decides `request` by the policies of `snapshot`.
pub fn decide(snapshot: &Snapshot, request: &Request<'_>) -> Verdict {
    decide_traced(snapshot, request, &mut |_, _| {})
}

/// As [`decide`], telling `trace` each step (what was looked at, what came of it).
pub fn decide_traced(
    snapshot: &Snapshot,
    request: &Request<'_>,
    trace: &mut dyn FnMut(fmt::Arguments<'_>, fmt::Arguments<'_>),
) -> Verdict {
    if request.protocol == Protocol::Tcp {
        if *request.peer == Peer::Plain(PlainReason::Kubelet)
            && request.workload.probes.contains(&request.port)
        {
            trace(
                format_args!("probe of the node's kubelet"),
                format_args!("port {} is a probe's", request.port),
            );
            return Verdict::Allow { by: None, audit: Vec::new() };
        }
        let mode = request.workload.mtls.of(request.port);
        trace(format_args!("mTLS mode of port {}", request.port), format_args!("{mode:?}"));
        if mode == MtlsMode::Strict && request.peer.identity().is_none() {
            return Verdict::Deny(DenyReason::StrictMtls);
        }
    }
    let mut policies = Vec::with_capacity(request.workload.policies.len());
    for name in &request.workload.policies {
        match snapshot.policy(name) {
            Some(policy) if policy.concerns(request.protocol, request.port) => {
                policies.push(Arc::clone(policy));
            }
            Some(_) => {}
            None => return Verdict::Deny(DenyReason::PolicyMissing(name.clone())),
        }
    }
    let (mut allow_exists, mut allowed_by, mut audit) = (false, None, Vec::new());
    for policy in &policies {
        let hit = matching::policy(policy, request);
        trace(
            format_args!("{:?} policy {}", policy.action, policy.name),
            format_args!("{}", matching::Why { policy, request, hit }),
        );
        match (policy.action, hit) {
            (Action::Deny, Some(rule)) => {
                return Verdict::Deny(DenyReason::Denied(policy.name.clone(), rule));
            }
            (Action::Audit, Some(_)) => audit.push(policy.name.clone()),
            (Action::Deny | Action::Audit, None) => {}
            (Action::Allow, hit) => {
                allow_exists = true;
                if hit.is_some() && allowed_by.is_none() {
                    allowed_by = Some(policy.name.clone());
                }
            }
        }
    }
    if allow_exists && allowed_by.is_none() {
        return Verdict::Deny(DenyReason::NoAllowMatched);
    }
    Verdict::Allow { by: allowed_by, audit }
}
