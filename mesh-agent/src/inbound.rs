//! A connection to a pod, from accept to the last byte: by mutual TLS on 15008 (each OPEN or CONNECT is one), or in
//! plaintext on 15006. One record goes out for each, whatever happens.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use mesh_core::authorize::{Peer, PlainReason};
use mesh_core::identity::SpiffeId;
use mesh_core::model::Workload;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::accept::{self, Accepted};
use crate::authorize::{self, Permit, Registered};
use crate::carrier::{Carrier, Handshaking, PodState};
use crate::context::Context;
use crate::observe::{AcceptFailure, Facts, Near, Outcome, Record, Reporter, Side, Speaker};
use crate::transport::{
    self, Admit, Admitted, Open, Protocol, Refusal, RefusalCode, Relayed, ServeError, Watch,
};

/// Serves one connection to a pod's 15008 to its end: handshake with the pod's own SVID, then any number of OPENs.
pub(crate) async fn serve_mtls(
    carrier: Rc<Carrier>,
    (io, peer): (TcpStream, SocketAddr),
    pod: Arc<PodState>,
    handshaking: Option<Handshaking>,
) {
    let peer = accept::canonical(peer);
    let Some(workload) = carrier.ctx.snapshot().workload(&pod.net.uid).cloned() else {
        refuse(&carrier.ctx, (io, peer), Side::default(), Outcome::unknown_source(&pod.net.uid));
        return;
    };
    let Some(svid) = carrier.ctx.svid(&workload.identity).await else {
        let outcome = Outcome::no_certificate(&workload.identity);
        refuse(&carrier.ctx, (io, peer), Side::unproven(&workload), outcome);
        return;
    };
    let handshaking = Cell::new(handshaking);
    let gate = Rc::new(Gate { carrier: Rc::clone(&carrier), pod: Arc::clone(&pod), peer, handshaking });
    match carrier.acceptor.serve(io, &svid, gate, pod.drain()).await {
        Ok(()) => {}
        Err(ServeError::Handshake { reason, .. }) => {
            carrier.ctx.metrics.handshake_failed(reason.code());
            let record = Record::new(&carrier.ctx.metrics, unserved(peer, Side::unproven(&workload)));
            record.end(Outcome::handshake(&reason));
        }
        // The connections inside it have records of their own.
        Err(error @ ServeError::Tunnel { .. }) => {
            carrier.ctx.metrics.accept_failed(AcceptFailure::TunnelError);
            tracing::info!(%error, pod = %pod.net.uid, "a tunnel ended early");
        }
    }
}

/// A connection that never came to a handshake.
fn refuse(ctx: &Context, (io, peer): (TcpStream, SocketAddr), destination: Side, outcome: Outcome) {
    let record = Record::new(&ctx.metrics, unserved(peer, destination));
    accept::reset(io);
    record.end(outcome);
}

fn unserved(peer: SocketAddr, destination: Side) -> Facts {
    Facts { destination, ..Facts::new(Reporter::Destination, peer) }
}

/// Decides about what comes through one tunnel.
struct Gate {
    carrier: Rc<Carrier>,
    pod: Arc<PodState>,
    /// Who dialled 15008: the pod's address, unless something translates it.
    peer: SocketAddr,
    /// Until the peer has proven who it is.
    handshaking: Cell<Option<Handshaking>>,
}

/// Travels with an admitted connection.
pub(crate) struct Passed {
    record: Record,
    registered: Registered,
}

impl Admit for Gate {
    type Record = Passed;

    fn proven(&self) {
        drop(self.handshaking.take());
    }

    async fn admit(
        &self,
        peer: &SpiffeId,
        protocol: Protocol,
        open: Open,
    ) -> Result<Admitted<Passed>, Refusal> {
        let mut record = self.record(peer, protocol);
        record.facts.dialled = Some(accept::canonical(open.destination));
        match self.pass(peer, open, &mut record).await {
            Ok((app, registered, cut)) => {
                let watch = Watch { cut, meter: record.meter(Near::Server) };
                Ok(Admitted { app, watch, record: Passed { record, registered } })
            }
            Err((code, outcome)) => {
                let message = outcome.reason.clone();
                record.end(outcome);
                Err(Refusal { code, message })
            }
        }
    }

    fn unreadable(&self, peer: &SpiffeId, protocol: Protocol, reason: &str) {
        self.record(peer, protocol).end(Outcome::bad_destination(reason.to_owned()));
    }

    fn ended(&self, passed: Passed, relayed: Relayed) {
        let Passed { mut record, registered } = passed;
        drop(registered);
        // The near socket is the application's: what was read from it went to the client.
        record.carried(relayed.from_near, relayed.to_near);
        record.end(Outcome::of_end(&relayed.end, "reset_by_server", "reset_by_client"));
    }
}

/// A connection to an application that was dialled.
pub(crate) type Entered = (TcpStream, Registered, authorize::Cut);

impl Gate {
    /// The record of one OPEN or CONNECT.
    fn record(&self, peer: &SpiffeId, protocol: Protocol) -> Record {
        let mut facts = Facts::new(Reporter::Destination, self.peer);
        facts.source.principal = Some(peer.clone());
        facts.protocol = Some(protocol);
        Record::new(&self.carrier.ctx.metrics, facts)
    }

    /// The stages of one OPEN, with the current snapshot.
    async fn pass(
        &self,
        peer: &SpiffeId,
        open: Open,
        record: &mut Record,
    ) -> Result<Entered, (RefusalCode, Outcome)> {
        let ctx = &self.carrier.ctx;
        let dst = accept::canonical(open.destination);
        if !accept::is_application(&self.pod.net, dst) {
            let reason = format!("{dst} is not a port of the pod's applications");
            return Err((RefusalCode::BadDestination, Outcome::bad_destination(reason)));
        }
        let client = self.client(peer, accept::canonical(open.client)).await;
        record.facts.client = client;
        record.facts.source.workload =
            ctx.snapshot().workload_at(client.ip()).filter(|w| w.identity == *peer).cloned();
        let peer = Peer::Authenticated(peer.clone());
        enter(&self.carrier, &self.pod, (peer, client, dst), record).await
    }

    /// The true client. What the peer forwards counts only when the snapshot gives that address to its identity;
    /// otherwise the client is whoever dialled.
    async fn client(&self, peer: &SpiffeId, forwarded: SocketAddr) -> SocketAddr {
        let ctx = &self.carrier.ctx;
        let lookup = ctx.lookup.ensure(forwarded.ip());
        if forwarded.ip() == self.peer.ip() {
            // Nothing hangs on the answer but the client's name in log and metrics.
            if tokio::time::timeout(ctx.config.label_wait, lookup).await.is_err() {
                tracing::debug!(client = %forwarded, "the client's workload is not known yet");
            }
            return forwarded;
        }
        if let Err(error) = lookup.await {
            tracing::debug!(%error, "the forwarded client could not be checked; its agent counts as the client");
            return self.peer;
        }
        match ctx.snapshot().workload_at(forwarded.ip()) {
            Some(workload) if workload.identity == *peer => forwarded,
            _ => {
                tracing::debug!(%forwarded, %peer, "the forwarded client is not an address of the peer's identity");
                self.peer
            }
        }
    }
}

/// The stages of one connection of a proven peer to `dst`, a port of `pod`, with the current snapshot.
pub(crate) async fn enter(
    carrier: &Carrier,
    pod: &PodState,
    (peer, client, dst): (Peer, SocketAddr, SocketAddr),
    record: &mut Record,
) -> Result<Entered, (RefusalCode, Outcome)> {
    record.facts.endpoint = Some(dst);
    let snapshot = carrier.ctx.snapshot();
    let Some(workload) = snapshot.workload(&pod.net.uid) else {
        return Err((RefusalCode::Draining, Outcome::unknown_source(&pod.net.uid)));
    };
    record.facts.destination = Side::proven(workload);
    record.facts.service = workload.served.get(&dst.port()).cloned();
    let permit = authorize::inbound(&snapshot, peer, client.ip(), workload, dst.port())
        .map_err(|denial| (RefusalCode::Denied, Outcome::from(&denial)))?;
    drop(snapshot);
    record.facts.audit = permit.audit().to_vec();
    let app = dial(&carrier.ctx, pod, (dst, client), &permit).await?;
    match carrier.register(pod, &permit) {
        Ok((registered, cut)) => Ok((app, registered, cut)),
        Err(outcome) => {
            accept::reset(app);
            let denied = outcome.denied.is_some();
            Err((if denied { RefusalCode::Denied } else { RefusalCode::Draining }, outcome))
        }
    }
}

/// Carries one plaintext connection that `accept::inbound_plain` took.
pub(crate) async fn serve_plain(carrier: &Carrier, accepted: Accepted, pod: Arc<PodState>) {
    let Accepted { io, client, orig_dst: dst, .. } = accepted;
    let mut facts = Facts::new(Reporter::Destination, client);
    facts.dialled = Some(dst);
    facts.endpoint = Some(dst);
    facts.protocol = Some(Protocol::Plain);
    let mut record = Record::new(&carrier.ctx.metrics, facts);
    let outcome = match pass_plain(carrier, (client, dst), &pod, &mut record).await {
        Ok(((app, registered, cut), reason)) => {
            // Strict takes the kubelet's probes too.
            let _heard = (reason == PlainReason::NotMeshed).then(|| hear(carrier, &pod, (client, dst)));
            let watch = Watch { cut, meter: record.meter(Near::Client) };
            let relayed = transport::plain::relay(io, app, Bytes::new(), watch).await;
            drop(registered);
            record.carried(relayed.to_near, relayed.from_near);
            Outcome::of_end(&relayed.end, "reset_by_client", "reset_by_server")
        }
        Err(outcome) => {
            accept::reset(io);
            outcome
        }
    };
    record.end(outcome);
}

/// The stages of a plaintext connection.
async fn pass_plain(
    carrier: &Carrier,
    (client, dst): (SocketAddr, SocketAddr),
    pod: &Arc<PodState>,
    record: &mut Record,
) -> Result<(Entered, PlainReason), Outcome> {
    let snapshot = carrier.ctx.snapshot();
    record.facts.source.workload = snapshot.workload_at(client.ip()).cloned();
    let workload: &Arc<Workload> =
        snapshot.workload(&pod.net.uid).ok_or_else(|| Outcome::unknown_source(&pod.net.uid))?;
    record.facts.destination = Side::unproven(workload);
    record.facts.service = workload.served.get(&dst.port()).cloned();
    let reason = plain_reason(carrier, workload, (client, dst));
    let permit = authorize::inbound(&snapshot, Peer::Plain(reason), client.ip(), workload, dst.port())
        .map_err(|denial| Outcome::from(&denial))?;
    drop(snapshot);
    record.facts.audit = permit.audit().to_vec();
    let app = dial(&carrier.ctx, pod, (dst, client), &permit).await.map_err(|(_, outcome)| outcome)?;
    match carrier.register(pod, &permit) {
        Ok((registered, cut)) => Ok(((app, registered, cut), reason)),
        Err(outcome) => {
            accept::reset(app);
            Err(outcome)
        }
    }
}

/// Notes a plaintext connection among those that strict would break, until what is given back is dropped. Beside the
/// connection, which does not wait for the name of its client.
fn hear(carrier: &Carrier, pod: &PodState, (client, dst): (SocketAddr, SocketAddr)) -> oneshot::Sender<()> {
    let (open, ended) = oneshot::channel();
    let (ctx, uid) = (Arc::clone(&carrier.ctx), pod.net.uid.clone());
    tokio::task::spawn_local(async move {
        let Some(workload) = ctx.snapshot().workload(&uid).cloned() else { return };
        let known = || ctx.snapshot().workload_at(client.ip()).map(|of| Speaker::Workload((&**of).into()));
        if known().is_none()
            && let Some(_asking) = ctx.metrics.plaintext.may_ask(&workload, dst.port())
            && tokio::time::timeout(ctx.config.label_wait, ctx.lookup.ensure(client.ip())).await.is_err()
        {
            tracing::debug!(%client, "whose address it is that speaks plaintext is not known yet");
        }
        let source = known().unwrap_or(Speaker::Address(client.ip()));
        let _speaking = ctx.metrics.plaintext.note(source, &workload, dst.port(), SystemTime::now());
        // An error: nothing is ever sent, the other end is dropped.
        ended.await.unwrap_or_default();
    });
    open
}

/// Who speaks plaintext. Only where it may matter is the kernel asked.
fn plain_reason(
    carrier: &Carrier,
    workload: &Workload,
    (client, dst): (SocketAddr, SocketAddr),
) -> PlainReason {
    let kubelet = carrier.ctx.kubelet.as_ref().filter(|_| workload.probes.contains(&dst.port()));
    if kubelet.is_some_and(|kubelet| kubelet.made(client, dst)) {
        carrier.ctx.metrics.probes.inc();
        return PlainReason::Kubelet;
    }
    PlainReason::NotMeshed
}

/// Dials the application, which sees `client` as its peer.
async fn dial(
    ctx: &Context,
    pod: &PodState,
    (dst, client): (SocketAddr, SocketAddr),
    _permit: &Permit,
) -> Result<TcpStream, (RefusalCode, Outcome)> {
    match tokio::time::timeout(ctx.config.dial_timeout, pod.net.dial_application(dst, client)).await {
        Ok(Ok(app)) => Ok(app),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err((RefusalCode::ConnectionRefused, Outcome::dial(&error)))
        }
        Ok(Err(error)) => Err((RefusalCode::Unreachable, Outcome::dial(&error))),
        Err(_) => Err((RefusalCode::Unreachable, Outcome::dial_timeout())),
    }
}
