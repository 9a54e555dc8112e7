//! A connection that a pod makes, from accept to the last byte; reads top to bottom like the table in
//! `ARCHITECTURE.md`. An [`Accepted`] socket comes in; one record goes out, whatever happens.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mesh_core::model::Workload;
use mesh_core::route::Candidate;
use mesh_core::snapshot::Snapshot;
use tokio::net::TcpStream;

use crate::accept::{self, Accepted};
use crate::authorize::{self, Permit, SourcePermit};
use crate::balance::Asker;
use crate::dataplane::{PodState, Worker};
use crate::identify::HandshakeFailure;
use crate::observe::{Facts, Outcome, Record, Reporter, Side};
use crate::route::{self, Routed};
use crate::transport::{self, End, Open, OpenError, Protocol, RefusalCode, Relayed, Target};

/// How many distinct endpoints of a service are tried before the client is told.
const MOST_ENDPOINTS: usize = 3;

/// What a reset is called here: the near socket is the client's.
const NEAR: &str = "reset_by_client";
const FAR: &str = "reset_by_server";

/// The client's socket, and what was read from it already. Nothing of it has reached an application.
struct Near {
    io: TcpStream,
    replay: Bytes,
}

/// A connection whose source is known and whose destination has candidates.
struct Plan {
    client: SocketAddr,
    dialled: SocketAddr,
    source: SourcePermit,
    routed: Routed,
    pod: Arc<PodState>,
}

/// What came of one endpoint.
enum Attempt {
    /// The connection is over.
    Over(Outcome),
    /// Nothing was sent; another endpoint may do.
    Elsewhere(Near, Outcome),
    /// Nothing was sent, and no other endpoint would do better.
    Hopeless(Near, Outcome),
}

/// One endpoint that was picked.
struct Endpoint<'a> {
    address: SocketAddr,
    permit: &'a Permit,
}

/// Carries one connection that `accept::outbound` took.
pub(crate) async fn serve(worker: &Worker, accepted: Accepted, pod: Arc<PodState>) {
    let mut facts = Facts::new(Reporter::Source, accepted.client);
    facts.dialled = Some(accepted.orig_dst);
    let mut record = Record::new(&worker.ctx.metrics, facts);
    let Accepted { io, client, orig_dst, .. } = accepted;
    let near = Near { io, replay: Bytes::new() };
    let outcome = match plan(worker, (client, orig_dst), pod, &mut record).await {
        Ok(plan) => carry(worker, &plan, near, &mut record).await,
        Err(outcome) => {
            accept::reset(near.io);
            outcome
        }
    };
    record.end(outcome);
}

/// Identify, and route.
async fn plan(
    worker: &Worker,
    (client, dialled): (SocketAddr, SocketAddr),
    pod: Arc<PodState>,
    record: &mut Record,
) -> Result<Plan, Outcome> {
    let source = authorize::source(&worker.ctx.snapshot(), &pod.net.uid, client.ip())
        .map_err(|unknown| Outcome::unknown_source(&unknown.0))?;
    record.facts.source = Side::proven(source.workload());
    let routed = route::route(&worker.ctx, &source, dialled).await.map_err(|error| Outcome::from(&error))?;
    record.facts.service.clone_from(&routed.service);
    Ok(Plan { client, dialled, source, routed, pod })
}

/// Tries endpoints until one takes the connection.
async fn carry(worker: &Worker, plan: &Plan, mut near: Near, record: &mut Record) -> Outcome {
    let asker = Asker { client: plan.client.ip(), port: plan.dialled.port() };
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut last = Outcome::aborted();
    while tried.len() < MOST_ENDPOINTS {
        let balancer = &worker.ctx.balancer;
        let picked = balancer.pick(&plan.routed, asker, &tried, rand::random(), Instant::now());
        let Some(candidate) = picked else { break };
        let load = balancer.enter(candidate.address);
        match attempt(worker, plan, candidate, near, record).await {
            Attempt::Over(outcome) => return outcome,
            Attempt::Hopeless(same, outcome) => {
                (near, last) = (same, outcome);
                break;
            }
            Attempt::Elsewhere(same, outcome) => {
                tracing::debug!(endpoint = %candidate.address, reason = %outcome.reason, "an endpoint failed");
                (near, last) = (same, outcome);
            }
        }
        drop(load);
        tried.push(candidate.address);
    }
    accept::reset(near.io);
    last
}

/// Authorizes for one endpoint, and dials it as what it is.
async fn attempt(
    worker: &Worker,
    plan: &Plan,
    candidate: &Candidate,
    near: Near,
    record: &mut Record,
) -> Attempt {
    let facts = &mut record.facts;
    facts.endpoint = Some(candidate.address);
    let behind = match route::enrolled_behind(&worker.ctx, &plan.routed, candidate).await {
        Ok(behind) => behind,
        Err(error) => return Attempt::Elsewhere(near, Outcome::from(&error)),
    };
    let (snapshot, workload, enrolled): (Arc<Snapshot>, Option<Arc<Workload>>, bool) = behind;
    let workload = workload.as_ref();
    facts.destination = match workload {
        Some(workload) if enrolled => Side::proven(workload),
        Some(workload) => Side::unproven(workload),
        None => Side::default(),
    };
    let in_mesh = workload.filter(|_| enrolled);
    let port = candidate.address.port();
    let permit = match authorize::endpoint(&plan.source, &snapshot, in_mesh.map(|w| &**w), port) {
        Ok(permit) => permit,
        Err(denial) => return Attempt::Hopeless(near, Outcome::from(&denial)),
    };
    drop(snapshot);
    record.facts.audit = permit.audit().to_vec();
    let endpoint = Endpoint { address: candidate.address, permit: &permit };
    match in_mesh {
        Some(workload) => tunnel(worker, plan, &endpoint, (Arc::clone(workload), near), record).await,
        None => plain(worker, plan, &endpoint, near, record).await,
    }
}

/// An enrolled pod, wherever it runs: a tunnel, never plaintext.
async fn tunnel(
    worker: &Worker,
    plan: &Plan,
    endpoint: &Endpoint<'_>,
    (workload, near): (Arc<Workload>, Near),
    record: &mut Record,
) -> Attempt {
    record.facts.protocol = None;
    let Some(svid) = worker.ctx.svid(plan.source.identity()).await else {
        return Attempt::Hopeless(near, Outcome::no_certificate(plan.source.identity()));
    };
    let open = Open { destination: endpoint.address, client: plan.client };
    let target = Target { source_pod: Arc::clone(&plan.pod.net), svid, workload, open };
    let tunnel = match worker.dialer.connect(&target).await {
        Ok(tunnel) => tunnel,
        Err(error) => return open_failed(worker, near, &error),
    };
    let (registered, cut) = match worker.register(&plan.pod, endpoint.permit) {
        Ok(entered) => entered,
        Err(outcome) => {
            tunnel.release();
            if plan.pod.is_gone() {
                // Its tunnels were closed while this one was dialled.
                worker.dialer.close_pod(&plan.pod.net.uid);
            }
            return Attempt::Hopeless(near, outcome);
        }
    };
    record.facts.protocol = Some(tunnel.protocol());
    record.opened();
    let relayed = tunnel.relay(near.io, near.replay, cut).await;
    drop(registered);
    finish(relayed, record)
}

/// Outside the mesh, or a pod that is not enrolled: plain TCP from the pod's network namespace.
async fn plain(
    worker: &Worker,
    plan: &Plan,
    endpoint: &Endpoint<'_>,
    near: Near,
    record: &mut Record,
) -> Attempt {
    record.facts.protocol = Some(Protocol::Plain);
    let dial = plan.pod.net.dial(endpoint.address);
    let far = match tokio::time::timeout(worker.ctx.config.dial_timeout, dial).await {
        Ok(Ok(far)) => far,
        Ok(Err(error)) => return Attempt::Elsewhere(near, Outcome::dial(&error)),
        Err(_) => return Attempt::Elsewhere(near, Outcome::dial_timeout()),
    };
    let (registered, cut) = match worker.register(&plan.pod, endpoint.permit) {
        Ok(entered) => entered,
        Err(outcome) => {
            accept::reset(far);
            return Attempt::Hopeless(near, outcome);
        }
    };
    record.opened();
    let relayed = transport::plain::relay(near.io, far, near.replay, cut).await;
    drop(registered);
    finish(relayed, record)
}

/// No tunnel came to be: whose fault it is decides whether another endpoint may do.
fn open_failed(worker: &Worker, near: Near, error: &OpenError) -> Attempt {
    let outcome = Outcome::from(error);
    match error {
        OpenError::Dial { source, .. } if is_ours(source) => Attempt::Hopeless(near, outcome),
        OpenError::Dial { .. } | OpenError::Timeout { .. } => Attempt::Elsewhere(near, outcome),
        OpenError::Handshake { reason, .. } => {
            worker.ctx.metrics.handshake_failed(reason.code());
            let ours = matches!(reason, HandshakeFailure::OwnExpired | HandshakeFailure::Config(_));
            if ours { Attempt::Hopeless(near, outcome) } else { Attempt::Elsewhere(near, outcome) }
        }
        OpenError::WrongIdentity { .. } => {
            worker.ctx.metrics.handshake_failed(error.code());
            Attempt::Elsewhere(near, outcome)
        }
    }
}

/// Out of file descriptors, ports or memory: the next endpoint would meet the same.
fn is_ours(error: &io::Error) -> bool {
    let exhausted = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOBUFS];
    rustix::io::Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

/// Notes what was carried; a refusal before the first byte allows another endpoint.
fn finish(relayed: Relayed, record: &mut Record) -> Attempt {
    let outcome = Outcome::of_end(&relayed.end, NEAR, FAR);
    match relayed.end {
        End::Refused { refusal, near: io, replay } => {
            let near = Near { io, replay };
            match refusal.code {
                RefusalCode::Denied | RefusalCode::BadDestination => Attempt::Hopeless(near, outcome),
                RefusalCode::ConnectionRefused
                | RefusalCode::Unreachable
                | RefusalCode::Draining
                | RefusalCode::Overloaded => Attempt::Elsewhere(near, outcome),
            }
        }
        _ => {
            record.carried(relayed.to_near, relayed.from_near);
            Attempt::Over(outcome)
        }
    }
}
