//! A connection that a pod makes, from accept to the last byte; reads top to bottom like the table in
//! `ARCHITECTURE.md`. An [`Accepted`] socket comes in; one record goes out, whatever happens.

mod near;
mod on_host;
mod released;
mod verdict;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_core::model::Workload;
use mesh_core::route::Candidate;
use mesh_core::snapshot::Snapshot;

use crate::accept::{self, Accepted};
use crate::authorize::{self, Cut, Permit, SourcePermit};
use crate::balance::Asker;
use crate::carrier::{Carrier, PodState};
use crate::intercept::Held;
use crate::observe::{self, Facts, Outcome, Record, Reporter, Side};
use crate::route::{self, Routed};
use crate::transport::{self, End, NotOpened, Open, Protocol, Relayed, Target, Tunnel, Watch};
use near::{Failure, Near};
use verdict::{Attempt, FAR, NEAR, finish, not_connected, open_failed, refused};

pub(crate) use released::release;

/// How many distinct endpoints of a service are tried before the client is told.
const MOST_ENDPOINTS: usize = 3;

/// How long an endpoint may leave a SYN unanswered while another one could be asked: a pod that is gone is silent, and its
/// node hears of it before this one, or the controller is away. Less than the kernel waits before it sends a SYN again, so
/// that a client's patience of a second or two is enough for [`MOST_ENDPOINTS`].
const PATIENCE: Duration = Duration::from_millis(500);

/// How long a connection waits until two nodes agree on a pod that joins the mesh or leaves it: its own node may hear of it
/// earlier, or take a moment to serve it. Until then a tunnel is the only way there, and is refused.
const AGREEING: Duration = Duration::from_millis(1500);
const AGREEING_POLL: Duration = Duration::from_millis(20);

/// A connection whose source is known and whose destination has candidates.
struct Plan {
    client: SocketAddr,
    dialled: SocketAddr,
    source: SourcePermit,
    routed: Routed,
    pod: Arc<PodState>,
}

/// One endpoint that was picked.
struct Endpoint<'a> {
    address: SocketAddr,
    permit: &'a Permit,
    /// How long TCP may take to connect.
    patience: Duration,
}

/// Carries one connection that `accept::outbound` took.
pub(crate) async fn serve(carrier: &Carrier, accepted: Accepted, pod: Arc<PodState>) {
    let Accepted { io, client, orig_dst, .. } = accepted;
    run(carrier, Near::Accepted { io, replay: Bytes::new() }, (client, orig_dst), pod).await;
}

/// Dials for a client that waits in `connect()`, answers it as the dial ended, and carries the connection.
pub(crate) async fn answer(carrier: &Carrier, held: Held, pod: Arc<PodState>) {
    let dialled = accept::canonical(held.dst);
    let ends = (accept::shown(&pod.net, held.client(), dialled), dialled);
    run(carrier, Near::Held(held), ends, pod).await;
}

async fn run(carrier: &Carrier, mut near: Near, ends: (SocketAddr, SocketAddr), pod: Arc<PodState>) {
    let mut facts = Facts::new(Reporter::Source, ends.0);
    facts.dialled = Some(ends.1);
    let mut record = Record::new(&carrier.ctx.metrics, facts);
    let mut before = None;
    let mut asked = Instant::now();
    let outcome = loop {
        let (same, failure) = match once(carrier, near, ends, &pod, &mut record).await {
            Attempt::Over(outcome) => break outcome.explained_by(before),
            Attempt::Elsewhere(near, failure) | Attempt::Hopeless(near, failure) => (near, failure),
        };
        if failure.outdated && asked.elapsed() < AGREEING {
            // Less and less often: each look is a dial.
            tokio::time::sleep(AGREEING_POLL.max(asked.elapsed() / 4)).await;
            near = same;
            continue;
        }
        match same.fail(failure.answer).await {
            Some(asking) => (near, before, asked) = (asking, Some(failure.outcome), Instant::now()),
            None => break failure.outcome,
        }
    };
    record.end(outcome);
}

/// All stages once.
async fn once(
    carrier: &Carrier,
    near: Near,
    ends: (SocketAddr, SocketAddr),
    pod: &Arc<PodState>,
    record: &mut Record,
) -> Attempt {
    if let Some(host) = on_host::host_of(pod, ends.1.ip()) {
        // Boxed, as what is rare: it would make the memory of every connection larger.
        return Box::pin(on_host::once(carrier, host, (near, ends), pod, record)).await;
    }
    let planned = near.while_waiting(pin!(plan(carrier, ends, Arc::clone(pod), record))).await;
    match planned {
        Some(Ok(plan)) => carry(carrier, &plan, near, record).await,
        Some(Err(failure)) => Attempt::Hopeless(near, failure),
        None => Attempt::Over(Outcome::gave_up()),
    }
}

/// Identify, and route.
async fn plan(
    carrier: &Carrier,
    (client, dialled): (SocketAddr, SocketAddr),
    pod: Arc<PodState>,
    record: &mut Record,
) -> Result<Plan, Failure> {
    let source = authorize::source(&carrier.ctx.snapshot(), &pod.net.uid, client.ip())
        .map_err(|unknown| Failure::passing(Outcome::unknown_source(&unknown.0)))?;
    record.facts.source = Side::proven(source.workload());
    let routed = route::route(carrier.ctx.known(), &source, dialled).await.map_err(|error| {
        record.facts.service = error.service().cloned();
        Failure::from(&error)
    })?;
    record.facts.service.clone_from(&routed.service);
    Ok(Plan { client, dialled, source, routed, pod })
}

/// Tries endpoints until one takes the connection.
async fn carry(carrier: &Carrier, plan: &Plan, mut near: Near, record: &mut Record) -> Attempt {
    let asker = Asker { client: plan.client.ip(), port: plan.dialled.port() };
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut last = Failure::refused(Outcome::aborted());
    while tried.len() < MOST_ENDPOINTS {
        let balancer = &carrier.ctx.balancer;
        let picked = balancer.pick(&plan.routed, asker, &tried, rand::random(), Instant::now());
        let Some(candidate) = picked else { break };
        let load = balancer.enter(candidate.address);
        let asked = tried.len() + 1;
        let last_one = asked == MOST_ENDPOINTS || asked >= plan.routed.candidates.len();
        let patience = if last_one { carrier.ctx.config.dial_timeout } else { PATIENCE };
        match attempt(carrier, plan, (candidate, patience), near, record).await {
            Attempt::Elsewhere(same, failure) => {
                let reason = &failure.outcome.reason;
                tracing::debug!(endpoint = %candidate.address, %reason, "an endpoint failed");
                (near, last) = (same, last.then(failure));
            }
            done => return done,
        }
        drop(load);
        tried.push(candidate.address);
    }
    Attempt::Hopeless(near, last)
}

/// Authorizes for one endpoint, and dials it as what it is.
async fn attempt(
    carrier: &Carrier,
    plan: &Plan,
    (candidate, patience): (&Candidate, Duration),
    near: Near,
    record: &mut Record,
) -> Attempt {
    let facts = &mut record.facts;
    facts.endpoint = Some(candidate.address);
    let behind =
        near.while_waiting(pin!(route::enrolled_behind(carrier.ctx.known(), &plan.routed, candidate))).await;
    let behind = match behind {
        Some(Ok(behind)) => behind,
        Some(Err(error)) => return Attempt::Elsewhere(near, Failure::from(&error)),
        None => return Attempt::Over(Outcome::gave_up()),
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
        Err(denial) => return Attempt::Hopeless(near, Failure::from(&denial)),
    };
    drop(snapshot);
    record.facts.audit = permit.audit().to_vec();
    let endpoint = Endpoint { address: candidate.address, permit: &permit, patience };
    match in_mesh {
        Some(workload) => tunnel(carrier, plan, &endpoint, (Arc::clone(workload), near), record).await,
        None => plain(carrier, plan, &endpoint, near, record).await,
    }
}

/// An enrolled pod, wherever it runs: a tunnel, never plaintext.
async fn tunnel(
    carrier: &Carrier,
    plan: &Plan,
    endpoint: &Endpoint<'_>,
    (workload, near): (Arc<Workload>, Near),
    record: &mut Record,
) -> Attempt {
    record.facts.protocol = None;
    let svid = match near.while_waiting(pin!(carrier.ctx.svid(plan.source.identity()))).await {
        Some(Some(svid)) => svid,
        Some(None) => {
            return Attempt::Hopeless(
                near,
                Failure::passing(Outcome::no_certificate(plan.source.identity())),
            );
        }
        // It is what the client waited for.
        None => return Attempt::Over(Outcome::no_certificate(plan.source.identity())),
    };
    let open = Open { destination: endpoint.address, client: plan.client };
    let target =
        Target { source_pod: Arc::clone(&plan.pod.net), svid, workload, open, patience: endpoint.patience };
    let tunnel = match near.while_waiting(pin!(carrier.dialer.connect(&target))).await {
        Some(Ok(tunnel)) => tunnel,
        Some(Err(error)) => return open_failed(carrier, near, &error),
        None => return Attempt::Over(Outcome::gave_up()),
    };
    let (registered, cut) = match carrier.register(&plan.pod, endpoint.permit) {
        Ok(entered) => entered,
        Err(outcome) => {
            tunnel.release();
            if plan.pod.is_gone() {
                // Its tunnels were closed while this one was dialled.
                carrier.dialer.close_pod(&plan.pod.net.uid);
            }
            return Attempt::Hopeless(near, Failure::refused(outcome));
        }
    };
    record.facts.protocol = Some(tunnel.protocol());
    let relayed = match near {
        Near::Accepted { io, replay } => {
            let watch = Watch { cut, meter: record.meter(observe::Near::Client) };
            tunnel.relay(io, replay, watch).await
        }
        Near::Held(held) => match open_first(carrier, tunnel, held, (cut, record)).await {
            Ok(relayed) => relayed,
            Err(attempt) => return attempt,
        },
    };
    drop(registered);
    finish(relayed, record)
}

/// The far agent connects the application before the client is answered.
async fn open_first(
    carrier: &Carrier,
    tunnel: Tunnel,
    held: Held,
    (mut cut, record): (Cut, &mut Record),
) -> Result<Relayed, Attempt> {
    let opened = tokio::select! {
        biased;
        opened = tunnel.open() => opened,
        reason = cut.wait() => {
            return Err(Attempt::Hopeless(Near::Held(held), Failure::refused(Outcome::from(&reason))));
        }
        () = held.gone() => return Err(Attempt::Over(Outcome::gave_up())),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(NotOpened::Refused(refusal)) => return Err(refused(Near::Held(held), &refusal)),
        Err(NotOpened::Dial(error)) => return Err(open_failed(carrier, Near::Held(held), &error)),
        Err(NotOpened::Lost(text)) => {
            let outcome = Outcome::of_end(&End::TunnelLost(text), NEAR, FAR);
            // Not one byte of the client's is on its way: it may be asked again.
            return Err(Attempt::Elsewhere(Near::Held(held), Failure::passing(outcome)));
        }
    };
    record.facts.protocol = Some(opened.protocol());
    match held.connected().await {
        Ok(io) => {
            drop(held);
            let watch = Watch { cut, meter: record.meter(observe::Near::Client) };
            Ok(opened.relay(io, watch).await)
        }
        Err(error) => {
            opened.abort();
            Err(not_connected(held, &error))
        }
    }
}

/// Outside the mesh, or a pod that is not enrolled: plain TCP from the pod's network namespace.
async fn plain(
    carrier: &Carrier,
    plan: &Plan,
    endpoint: &Endpoint<'_>,
    near: Near,
    record: &mut Record,
) -> Attempt {
    record.facts.protocol = Some(Protocol::Plain);
    let dial = tokio::time::timeout(endpoint.patience, plan.pod.net.dial(endpoint.address));
    let far = match near.while_waiting(pin!(dial)).await {
        Some(Ok(Ok(far))) => far,
        Some(Ok(Err(error))) => return Attempt::Elsewhere(near, Failure::dial(&error)),
        Some(Err(_)) => return Attempt::Elsewhere(near, Failure::passing(Outcome::dial_timeout())),
        None => return Attempt::Over(Outcome::gave_up()),
    };
    let (registered, cut) = match carrier.register(&plan.pod, endpoint.permit) {
        Ok(entered) => entered,
        Err(outcome) => {
            accept::reset(far);
            return Attempt::Hopeless(near, Failure::refused(outcome));
        }
    };
    let (io, replay) = match near {
        Near::Accepted { io, replay } => (io, replay),
        Near::Held(held) => match held.connected().await {
            Ok(io) => (io, Bytes::new()),
            Err(error) => {
                accept::reset(far);
                return not_connected(held, &error);
            }
        },
    };
    let watch = Watch { cut, meter: record.meter(observe::Near::Client) };
    let relayed = transport::plain::relay(io, far, replay, watch).await;
    drop(registered);
    finish(relayed, record)
}
