//! The proof tokens. Routing takes a [`SourcePermit`], the transports take a [`Permit`]; only this file makes them, so
//! that skipping a check does not compile.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use mesh_core::authorize::{DenyReason, Peer, Request, Verdict, decide};
use mesh_core::identity::SpiffeId;
use mesh_core::model::{PolicyName, Protocol, Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;

/// Policy says no. It is the client's fault, and trying again does not help until policy changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denial(pub DenyReason);

/// The snapshot does not hold the pod that a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod {0} is not in this agent's snapshot")]
pub struct UnknownSource(pub WorkloadUid);

/// The source of an outbound connection is known: the kernel's objects named the pod, the snapshot its identity.
#[derive(Clone, Debug)]
pub struct SourcePermit {
    workload: Arc<Workload>,
    client: IpAddr,
}

impl SourcePermit {
    /// The pod.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    /// Its identity.
    pub fn identity(&self) -> &SpiffeId {
        &self.workload.identity
    }

    /// The address that it connects from.
    pub fn client(&self) -> IpAddr {
        self.client
    }
}

/// Finds out who a pod is; an unknown pod may not go on.
pub fn source(snapshot: &Snapshot, pod: &WorkloadUid, client: IpAddr) -> Result<SourcePermit, UnknownSource> {
    let workload = snapshot.workload(pod).ok_or_else(|| UnknownSource(pod.clone()))?;
    Ok(SourcePermit { workload: Arc::clone(workload), client })
}

/// Where a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Early, by what the source knows. No boundary: the destination decides again.
    Source,
    /// Where it binds.
    Destination,
}

/// What `decide()` needs, kept for as long as the connection is open.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    peer: Peer,
    client: IpAddr,
    workload: WorkloadUid,
    port: u16,
    side: Side,
}

impl Subject {
    /// Decides by `snapshot`; gives the AUDIT policies that matched.
    fn decide(&self, snapshot: &Snapshot, workload: &Workload) -> Result<Vec<PolicyName>, DenyReason> {
        let request = Request {
            peer: &self.peer,
            client: self.client,
            workload,
            protocol: Protocol::Tcp,
            port: self.port,
        };
        match decide(snapshot, &request) {
            Verdict::Allow { audit, .. } => Ok(audit),
            // The source need not hold the policies of another node's pods; the destination does, and decides.
            Verdict::Deny(DenyReason::PolicyMissing(_)) if self.side == Side::Source => Ok(Vec::new()),
            Verdict::Deny(reason) => Err(reason),
        }
    }

    /// Decides again for an open connection. One whose workload left the mesh or the snapshot is left alone: its end
    /// comes from the pod's end.
    pub(super) fn decide_again(&self, snapshot: &Snapshot) -> Result<(), DenyReason> {
        match snapshot.workload(&self.workload) {
            Some(workload) if workload.enrolled => self.decide(snapshot, workload).map(drop),
            _ => Ok(()),
        }
    }
}

/// Policy allows this connection.
#[derive(Clone, Debug)]
pub struct Permit {
    /// `None`: the destination is not in the mesh, and no policy concerns it.
    pub(super) subject: Option<Subject>,
    /// The view that decided. Weak, so that a long connection does not keep an old snapshot.
    pub(super) decided_by: Weak<Snapshot>,
    audit: Vec<PolicyName>,
}

impl Permit {
    /// AUDIT policies that matched.
    pub fn audit(&self) -> &[PolicyName] {
        &self.audit
    }

    fn decide(snapshot: &Arc<Snapshot>, subject: Subject, workload: &Workload) -> Result<Self, Denial> {
        let audit = subject.decide(snapshot, workload).map_err(Denial)?;
        Ok(Self { subject: Some(subject), decided_by: Arc::downgrade(snapshot), audit })
    }
}

/// Decides at the source for one endpoint; `workload` is the enrolled pod there, `None` what is outside the mesh.
pub fn endpoint(
    source: &SourcePermit,
    snapshot: &Arc<Snapshot>,
    workload: Option<&Workload>,
    port: u16,
) -> Result<Permit, Denial> {
    let Some(workload) = workload else {
        return Ok(Permit { subject: None, decided_by: Arc::downgrade(snapshot), audit: Vec::new() });
    };
    let subject = Subject {
        peer: Peer::Authenticated(source.identity().clone()),
        client: source.client,
        workload: workload.uid.clone(),
        port,
        side: Side::Source,
    };
    Permit::decide(snapshot, subject, workload)
}

/// Decides at the destination for a connection to `port` of its pod `workload`.
pub fn inbound(
    snapshot: &Arc<Snapshot>,
    peer: Peer,
    client: IpAddr,
    workload: &Workload,
    port: u16,
) -> Result<Permit, Denial> {
    let subject = Subject { peer, client, workload: workload.uid.clone(), port, side: Side::Destination };
    Permit::decide(snapshot, subject, workload)
}
