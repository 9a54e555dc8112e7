//! What a unit dials on its own host, from the answer to whose the port is to the last byte. The kernel vouches for both ends:
//! for the client by the cgroup of its socket, for the server by that of the socket that listens. So nothing is tunnelled,
//! policy decides as ever, and both ends' records are written here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use mesh_core::authorize::Peer;
use mesh_core::model::WorkloadUid;
use tokio::net::TcpStream;

use super::near::{Failure, Near};
use super::verdict::{Attempt, FAR, NEAR, finish, not_connected};
use crate::accept;
use crate::authorize::{self, Cut, Registered, SourcePermit};
use crate::carrier::{Carrier, PodState};
use crate::inbound;
use crate::intercept::{Host, Owner};
use crate::observe::{self, Facts, Outcome, Record, Reporter, Side};
use crate::transport::{self, Protocol, RefusalCode, Watch};

/// One connection within the host.
struct Within<'a> {
    carrier: &'a Carrier,
    host: &'a Host,
    pod: &'a Arc<PodState>,
    source: SourcePermit,
    client: SocketAddr,
    dialled: SocketAddr,
}

/// The far end, and what may end the connection.
struct Far {
    io: TcpStream,
    registered: Registered,
    cut: Cut,
    /// The other end's record, where that is a workload.
    record: Option<Record>,
}

/// The host that a connection does not leave, if that is so.
pub(super) fn host_of(pod: &PodState, dialled: IpAddr) -> Option<&Arc<Host>> {
    let host = pod.net.host()?;
    match host.is_local(dialled) {
        Ok(local) => local.then_some(host),
        Err(error) => {
            // What is local after all comes back as a plaintext peer, and is decided about there.
            tracing::warn!(%dialled, %error, "whether an address is the host's own cannot be asked");
            None
        }
    }
}

/// All stages once.
pub(super) async fn once(
    carrier: &Carrier,
    host: &Host,
    (near, (client, dialled)): (Near, (SocketAddr, SocketAddr)),
    pod: &Arc<PodState>,
    record: &mut Record,
) -> Attempt {
    let snapshot = carrier.ctx.snapshot();
    let source = match authorize::source(&snapshot, &pod.net.uid, client.ip()) {
        Ok(source) => source,
        Err(unknown) => {
            return Attempt::Hopeless(near, Failure::passing(Outcome::unknown_source(&unknown.0)));
        }
    };
    record.facts.source = Side::proven(source.workload());
    record.facts.endpoint = Some(dialled);
    record.facts.protocol = Some(Protocol::Plain);
    let within = Within { carrier, host, pod, source, client, dialled };
    let far = match near.while_waiting(pin!(within.far(record))).await {
        Some(Ok(far)) => far,
        Some(Err(failure)) => return Attempt::Hopeless(near, failure),
        None => return Attempt::Over(Outcome::gave_up()),
    };
    couple(near, far, record).await
}

impl Within<'_> {
    /// Finds out who is dialled, asks whether that may be, and dials.
    async fn far(&self, record: &mut Record) -> Result<Far, Failure> {
        match self.host.owner(self.dialled).map_err(|error| Failure::dial(&error))? {
            // A pod's own connections within itself are nobody else's either.
            Owner::Unit(uid) if uid == self.pod.net.uid => self.plain(Some(uid)).await,
            Owner::Unit(uid) => self.unit(&uid, record).await,
            Owner::Other => self.plain(None).await,
            Owner::Several => {
                let reason = format!("{} is listened on by several, not all of them one unit", self.dialled);
                Err(Failure::refused(Outcome::bad_destination(reason)))
            }
            Owner::Nobody => Err(Failure::dial(&io::ErrorKind::ConnectionRefused.into())),
        }
    }

    /// An enrolled unit. Denied here, the destination has no record of it, as with pods.
    async fn unit(&self, uid: &WorkloadUid, record: &mut Record) -> Result<Far, Failure> {
        let ctx = &self.carrier.ctx;
        let snapshot = ctx.snapshot();
        let served = self.carrier.neighbours.get(uid);
        let (Some(server), Some(workload)) = (served, snapshot.workload(uid)) else {
            return Err(Failure::passing(Outcome::unknown_source(uid)));
        };
        record.facts.destination = Side::proven(workload);
        let permit = authorize::endpoint(&self.source, &snapshot, Some(workload), self.dialled.port())
            .map_err(|denial| Failure::from(&denial))?;
        record.facts.audit = permit.audit().to_vec();
        let mut facts = Facts::new(Reporter::Destination, self.client);
        facts.source = record.facts.source.clone();
        facts.dialled = Some(self.dialled);
        facts.protocol = Some(Protocol::Plain);
        let mut theirs = Record::new(&ctx.metrics, facts);
        let peer = Peer::Authenticated(self.source.identity().clone());
        match inbound::enter(self.carrier, &server, (peer, self.client, self.dialled), &mut theirs).await {
            Ok((io, registered, cut)) if !self.pod.is_gone() => {
                Ok(Far { io, registered, cut, record: Some(theirs) })
            }
            Ok((io, ..)) => {
                accept::reset(io);
                theirs.end(Outcome::aborted());
                Err(Failure::refused(Outcome::aborted()))
            }
            Err((code, outcome)) => {
                theirs.end(outcome.clone());
                Err(match code {
                    RefusalCode::Denied | RefusalCode::ConnectionRefused => Failure::refused(outcome),
                    _ => Failure::passing(outcome),
                })
            }
        }
    }

    /// Whom no policy speaks of: the unit itself, or somebody who is not enrolled, and is still the one when it has been dialled.
    async fn plain(&self, taker: Option<WorkloadUid>) -> Result<Far, Failure> {
        let ctx = &self.carrier.ctx;
        let dial = tokio::time::timeout(ctx.config.dial_timeout, self.dial(taker.as_ref()));
        let io = match dial.await {
            Ok(dialled) => dialled.map_err(|error| Failure::dial(&error))?,
            Err(_) => return Err(Failure::passing(Outcome::dial_timeout())),
        };
        let snapshot = ctx.snapshot();
        let permit = authorize::endpoint(&self.source, &snapshot, None, self.dialled.port())
            .map_err(|denial| Failure::from(&denial))?;
        match self.carrier.register(self.pod, &permit) {
            Ok((registered, cut)) => Ok(Far { io, registered, cut, record: None }),
            Err(outcome) => {
                accept::reset(io);
                Err(Failure::refused(outcome))
            }
        }
    }

    async fn dial(&self, taker: Option<&WorkloadUid>) -> io::Result<TcpStream> {
        if taker.is_some() {
            return self.pod.net.dial_application(self.dialled, self.client).await;
        }
        let io = self.pod.net.dial(self.dialled).await?;
        if self.host.taker(self.dialled, io.local_addr()?).await?.is_none() {
            return Ok(io);
        }
        accept::reset(io);
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the port has become an enrolled unit's"))
    }
}

/// Connects the client, and carries the bytes.
async fn couple(near: Near, far: Far, record: &mut Record) -> Attempt {
    let (io, replay) = match near {
        Near::Accepted { io, replay } => (io, replay),
        Near::Held(held) => match held.connected().await {
            Ok(io) => (io, Bytes::new()),
            Err(error) => {
                accept::reset(far.io);
                if let Some(theirs) = far.record {
                    theirs.end(Outcome::gave_up());
                }
                return not_connected(held, &error);
            }
        },
    };
    let watch = Watch { cut: far.cut, meter: record.meter(observe::Near::Client) };
    let relayed = transport::plain::relay(io, far.io, replay, watch).await;
    drop(far.registered);
    if let Some(mut theirs) = far.record {
        theirs.carried(relayed.to_near, relayed.from_near);
        theirs.end(Outcome::of_end(&relayed.end, NEAR, FAR));
    }
    finish(relayed, record)
}
