//! The record of one connection: facts are filled in as the stages learn them, and exactly one log line and one metrics
//! update are written when it ends, or when the record is dropped because its task was.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_core::identity::SpiffeId;
use mesh_core::model::{PolicyName, ServiceName, Workload};

use super::labels::{Labels, Party, Reporter};
use super::metrics::Metrics;
use super::outcome::Outcome;
use super::series::Series;
use crate::transport::{Counters, Meter, Protocol};

/// One end of a connection, as the log shows it.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// The pod, when it is known.
    pub workload: Option<Arc<Workload>>,
    /// The identity that was proven.
    pub principal: Option<SpiffeId>,
}

impl Side {
    /// A pod whose identity the mesh vouches for.
    pub fn proven(workload: &Arc<Workload>) -> Self {
        Self { workload: Some(Arc::clone(workload)), principal: Some(workload.identity.clone()) }
    }

    /// A pod known by its address alone.
    pub fn unproven(workload: &Arc<Workload>) -> Self {
        Self { workload: Some(Arc::clone(workload)), principal: None }
    }

    fn party(&self) -> Party {
        match (&self.workload, &self.principal) {
            (Some(workload), principal) => Party::of(workload, principal.is_some()),
            (None, Some(principal)) => Party::Principal(principal.clone()),
            (None, None) => Party::Unknown,
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which end this agent is.
    pub reporter: Reporter,
    /// The client.
    pub source: Side,
    /// The server.
    pub destination: Side,
    /// At the source the service that was dialled; at the destination the one that has this pod and port behind it.
    pub service: Option<ServiceName>,
    /// The client's address.
    pub client: SocketAddr,
    /// What the client dialled.
    pub dialled: Option<SocketAddr>,
    /// Where it was sent.
    pub endpoint: Option<SocketAddr>,
    /// What carried it between the nodes.
    pub protocol: Option<Protocol>,
    /// AUDIT policies that matched.
    pub audit: Vec<PolicyName>,
}

impl Facts {
    /// Of a connection about which nothing else is known yet.
    pub fn new(reporter: Reporter, client: SocketAddr) -> Self {
        Self {
            reporter,
            source: Side::default(),
            destination: Side::default(),
            service: None,
            client,
            dialled: None,
            endpoint: None,
            protocol: None,
            audit: Vec::new(),
        }
    }

    fn security_policy(&self) -> &'static str {
        match self.protocol {
            Some(Protocol::Ferromesh | Protocol::Hbone) => "mutual_tls",
            Some(Protocol::Plain) | None => "none",
        }
    }

    fn labels(&self, response_flags: &'static str) -> Labels {
        Labels {
            reporter: self.reporter,
            source: self.source.party(),
            destination: self.destination.party(),
            service: self.service.clone(),
            security_policy: self.security_policy(),
            response_flags,
        }
    }
}

/// Whose socket a relay has as its near one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    /// The client's, at the source.
    Client,
    /// The application's, at the destination.
    Server,
}

/// The record of one connection.
#[derive(Debug)]
pub struct Record {
    /// What is known so far.
    pub facts: Facts,
    metrics: Arc<Metrics>,
    started: Instant,
    counted: Option<(Near, Arc<Series>, Meter)>,
    sent: u64,
    received: u64,
    outcome: Option<Outcome>,
}

impl Record {
    /// Begins the record.
    pub fn new(metrics: &Arc<Metrics>, facts: Facts) -> Self {
        metrics.open.inc();
        Self {
            facts,
            metrics: Arc::clone(metrics),
            started: Instant::now(),
            counted: None,
            sent: 0,
            received: 0,
            outcome: None,
        }
    }

    /// Both ends are known and bytes are about to flow: what counts them while they do, for the relay whose near socket is
    /// `near`'s. A relay that was refused has counted nothing, and the next one asks again.
    pub fn meter(&mut self, near: Near) -> Meter {
        let series = self.metrics.series.get(self.facts.labels("-"));
        let (from_near, to_near) = match near {
            Near::Client => (&series.received, &series.sent),
            Near::Server => (&series.sent, &series.received),
        };
        let (opened, from_near, to_near) = (series.opened.clone(), from_near.clone(), to_near.clone());
        let meter = Meter::new(Counters { opened, from_near, to_near });
        self.counted = Some((near, series, meter.clone()));
        meter
    }

    /// Notes what was carried: bytes to the client and from the client.
    pub fn carried(&mut self, sent: u64, received: u64) {
        self.sent += sent;
        self.received += received;
    }

    /// Writes the record.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    fn count(&self, outcome: &Outcome, seconds: f64) {
        let series = match &self.counted {
            Some((_, series, _)) if outcome.flags == "-" => Arc::clone(series),
            _ => self.metrics.series.get(self.facts.labels(outcome.flags)),
        };
        let (opened, sent, received) = self.counted();
        if !opened {
            series.opened.inc();
        }
        series.closed.inc();
        // What no relay has counted: it never began, or ended without a last look.
        series.sent.inc_by(self.sent.saturating_sub(sent));
        series.received.inc_by(self.received.saturating_sub(received));
        series.duration.observe(seconds);
        self.metrics.open.dec();
        if let Some(reason) = &outcome.denied {
            self.metrics.denied(reason.code());
        }
    }

    /// Whether a relay has counted the connection as opened, and the bytes to and from the client that it counted.
    fn counted(&self) -> (bool, u64, u64) {
        let Some((near, _, meter)) = &self.counted else { return (false, 0, 0) };
        let (opened, from_near, to_near) = meter.counted();
        match near {
            Near::Client => (opened, to_near, from_near),
            Near::Server => (opened, from_near, to_near),
        }
    }

    fn log(&self, outcome: &Outcome, millis: u64) {
        let facts = &self.facts;
        let (source, destination) = (&facts.source, &facts.destination);
        let (from, to) = (source.party(), destination.party());
        tracing::info!(
            target: "access",
            reporter = facts.reporter.as_str(),
            source_workload = from.workload(),
            source_pod = source.workload.as_ref().map(|workload| &*workload.name),
            source_namespace = from.namespace(),
            source_principal = text(source.principal.as_ref()),
            destination_workload = to.workload(),
            destination_pod = destination.workload.as_ref().map(|workload| &*workload.name),
            destination_namespace = to.namespace(),
            destination_principal = text(destination.principal.as_ref()),
            service = text(facts.service.as_ref()),
            client = %facts.client,
            dialled = text(facts.dialled.as_ref()),
            endpoint = text(facts.endpoint.as_ref()),
            protocol = facts.protocol.map(protocol_name),
            security_policy = facts.security_policy(),
            bytes_sent = self.sent,
            bytes_received = self.received,
            duration_ms = millis,
            result = outcome.result,
            response_flags = outcome.flags,
            reason = (!outcome.reason.is_empty()).then_some(outcome.reason.as_str()),
            audit = (!facts.audit.is_empty()).then(|| policies(&facts.audit)),
        );
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            self.metrics.aborted.inc();
            Outcome::aborted()
        });
        let duration = self.started.elapsed();
        self.count(&outcome, duration.as_secs_f64());
        self.log(&outcome, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    }
}

fn text<T: fmt::Display>(value: Option<T>) -> Option<tracing::field::DisplayValue<T>> {
    value.map(tracing::field::display)
}

fn policies(names: &[PolicyName]) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The name of a transport, as ALPN and `meshctl` have it.
fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Plain => "plain",
        Protocol::Ferromesh => "ferromesh/1",
        Protocol::Hbone => "hbone",
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
