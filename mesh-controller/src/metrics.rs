//! The controller's own metrics, and the small HTTP server on 15014 that shows them (`/metrics`, `/readyz`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_api::proto::{self, RootStage};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::serve::CompiledFeed;

/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// One label, `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    kind: &'static str,
}

/// A call and why it was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RejectLabels {
    method: &'static str,
    code: String,
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Discovery streams that are open.
    pub streams: Gauge,
    /// The version of the last compiled state.
    pub version: Gauge,
    /// Deltas that agents refused.
    pub nacks: Counter,
    /// Handshakes that failed.
    pub handshakes_failed: Counter,
    objects: Family<KindLabel, Gauge>,
    signed: Family<KindLabel, Counter>,
    rejected: Family<RejectLabels, Counter>,
    root_stage: Family<KindLabel, Gauge>,
    authority_ends: Family<KindLabel, Gauge>,
    agents_behind: Gauge,
    intermediate_refused: Gauge,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("ferromesh_controller");
        let mut new = Self {
            registry: Registry::default(),
            streams: Gauge::default(),
            version: Gauge::default(),
            nacks: Counter::default(),
            handshakes_failed: Counter::default(),
            objects: Family::default(),
            signed: Family::default(),
            rejected: Family::default(),
            root_stage: Family::default(),
            authority_ends: Family::default(),
            agents_behind: Gauge::default(),
            intermediate_refused: Gauge::default(),
        };
        registry.register("connected_agents", "Discovery streams that are open", new.streams.clone());
        registry.register("snapshot_version", "Version of the last compiled state", new.version.clone());
        registry.register("refused_deltas", "Deltas that an agent refused", new.nacks.clone());
        registry.register("failed_handshakes", "TLS handshakes that failed", new.handshakes_failed.clone());
        registry.register("objects", "Compiled objects by kind", new.objects.clone());
        registry.register("signed_certificates", "Certificates signed by kind", new.signed.clone());
        registry.register("rejected_calls", "Calls refused by method and code", new.rejected.clone());
        registry.register("roots", "Trusted roots by stage: signs, next, old", new.root_stage.clone());
        let ends = "When root and intermediate end, in seconds since 1970";
        registry.register("authority_not_after_seconds", ends, new.authority_ends.clone());
        let behind = "Agents known here that do not trust the next root yet";
        registry.register("agents_behind_root", behind, new.agents_behind.clone());
        let refused = "1 while the files of a plugged-in intermediate are refused";
        registry.register("intermediate_refused", refused, new.intermediate_refused.clone());
        new.registry = registry;
        new
    }

    /// Sets the number of compiled objects of a kind.
    pub fn set_objects(&self, kind: &'static str, count: usize) {
        let gauge = self.objects.get_or_create_owned(&KindLabel { kind });
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Shows the authority.
    pub fn authority(&self, status: &proto::AuthorityStatus) {
        let stages = [("signs", RootStage::Signs), ("next", RootStage::Next), ("old", RootStage::Old)];
        for (kind, stage) in stages {
            let held = status.roots.iter().filter(|root| root.stage() == stage).count();
            let gauge = self.root_stage.get_or_create_owned(&KindLabel { kind });
            gauge.set(i64::try_from(held).unwrap_or(i64::MAX));
        }
        let root = status.roots.iter().find(|root| root.stage() == RootStage::Signs);
        let ends = [
            ("root", root.map_or(0, |r| r.not_after_unix)),
            ("intermediate", status.intermediate_not_after_unix),
        ];
        for (kind, end) in ends {
            self.authority_ends.get_or_create_owned(&KindLabel { kind }).set(end);
        }
        self.agents_behind.set(i64::try_from(status.waiting_for.len()).unwrap_or(i64::MAX));
        self.intermediate_refused.set(i64::from(!status.problem.is_empty()));
    }

    /// Counts a signed certificate.
    pub fn signed(&self, kind: &'static str) {
        self.signed.get_or_create_owned(&KindLabel { kind }).inc();
    }

    /// Counts a refused call, and passes its status on.
    pub fn rejected(&self, method: &'static str, status: tonic::Status) -> tonic::Status {
        let code = format!("{:?}", status.code());
        self.rejected.get_or_create_owned(&RejectLabels { method, code }).inc();
        tracing::warn!(method, code = ?status.code(), message = status.message(), "call refused");
        status
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, compiled: CompiledFeed) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "metrics: accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (metrics, compiled) = (Arc::clone(&metrics), compiled.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(request.uri().path(), &metrics, &compiled);
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(async move {
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "metrics: connection failed");
            }
        });
    }
}

fn answer(path: &str, metrics: &Metrics, compiled: &CompiledFeed) -> Response<Full<Bytes>> {
    let (status, body) = match path {
        "/metrics" => {
            let mut body = String::new();
            match text::encode(&mut body, &metrics.registry) {
                Ok(()) => (StatusCode::OK, body),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
        "/readyz" if compiled.borrow().is_some() => (StatusCode::OK, "ready\n".into()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "the source has not delivered yet\n".into()),
        _ => (StatusCode::NOT_FOUND, "not found\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}

/// Binds the metrics listener.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
