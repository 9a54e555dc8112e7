//! The node's HTTP port over a real socket.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::observe::SeriesLimits;

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn readiness_names_what_is_missing_and_metrics_are_openmetrics() {
    let metrics = Metrics::new(SeriesLimits::default());
    metrics.register_kernel(|| vec![("connect_redirected", 7)]);
    metrics.handshake_failed("no_certificate");
    let readiness = Arc::new(Readiness::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, Arc::clone(&metrics), Arc::clone(&readiness)));

    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"), "nobody has said what is required");
    let attached = Arc::new(AtomicBool::new(false));
    let check = Arc::clone(&attached);
    readiness
        .require("interceptor", move || (!check.load(Ordering::Relaxed)).then(|| "not attached".to_owned()));
    let answer = get(address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("interceptor: not attached"), "{answer}");
    attached.store(true, Ordering::Relaxed);
    assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/config").await.starts_with("HTTP/1.1 404"));

    let answer = get(address, "/metrics").await;
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    for line in [
        "ferromesh_kernel_decisions_total{reason=\"connect_redirected\"} 7",
        "ferromesh_handshake_failures_total{reason=\"no_certificate\"} 1",
        "# EOF",
    ] {
        assert!(answer.contains(line), "{line} in {answer}");
    }
}
