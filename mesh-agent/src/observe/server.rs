//! The node's HTTP port (15020): `/metrics`, `/readyz`, `/healthz`. Nothing of the configuration is shown here.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
/// The most connections at once; scrapers and probes are few.
const MOST_CONNECTIONS: usize = 64;
/// The longest that a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Check = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What must hold before the agent is ready to carry traffic.
#[derive(Default)]
pub struct Readiness {
    checks: Mutex<Vec<(&'static str, Check)>>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.checks.lock().iter().map(|(name, _)| *name).collect();
        f.debug_tuple("Readiness").field(&names).finish()
    }
}

impl Readiness {
    /// Adds a check: `None` when all is well, otherwise what is missing.
    pub fn require(&self, name: &'static str, check: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.checks.lock().push((name, Box::new(check)));
    }

    /// What is missing, a line each; empty when ready. An agent that nobody gave a check is not ready.
    pub fn missing(&self) -> Vec<String> {
        let checks = self.checks.lock();
        if checks.is_empty() {
            return vec!["starting".to_owned()];
        }
        let missing = checks.iter().filter_map(|(name, check)| Some(format!("{name}: {}", check()?)));
        missing.collect()
    }
}

/// Serves the port until dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: Arc<Readiness>) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept on the metrics port failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (metrics, readiness) = (Arc::clone(&metrics), Arc::clone(&readiness));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &metrics, &readiness);
                async { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection to the metrics port ended early");
            }
            drop(slot);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
    }
    match request.uri().path() {
        "/metrics" => match metrics.text() {
            Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, error.to_string()),
        },
        "/readyz" => {
            let missing = readiness.missing();
            if missing.is_empty() {
                return respond(StatusCode::OK, TEXT, "ready\n");
            }
            respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, missing.join("\n") + "\n")
        }
        "/healthz" => respond(StatusCode::OK, TEXT, "alive\n"),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "/metrics, /readyz or /healthz\n"),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
