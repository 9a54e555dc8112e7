//! The local agent's administration socket: a path comes in, the JSON of its answer goes out.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// Where an agent listens when nothing else is said.
pub(crate) const DEFAULT_SOCKET: &str = "/run/ferromesh/agent.sock";
/// A lookup at the controller may take the agent five seconds.
const LIMIT: Duration = Duration::from_secs(15);
const MOST_BYTES: usize = 256 << 20;

/// Asks the agent at `socket` (or at the default place).
pub(crate) async fn get(socket: Option<&Path>, target: &str) -> Result<Value> {
    let socket = socket.unwrap_or(Path::new(DEFAULT_SOCKET));
    let place = || format!("the agent at {}", socket.display());
    let asked = tokio::time::timeout(LIMIT, ask(socket, target)).await;
    asked.map_err(|_| anyhow!("no answer within {} seconds", LIMIT.as_secs()))?.with_context(place)
}

async fn ask(socket: &Path, target: &str) -> Result<Value> {
    let stream = UnixStream::connect(socket).await.context(
        "no connection; is the agent running on this node, is this its user, and is --agent-socket right?",
    )?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(target).header("host", "agent").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
    driver.abort();
    let body = body.map_err(|error| anyhow!("reading the answer: {error}"))?.to_bytes();
    let value: Value = serde_json::from_slice(&body).context("the answer is not JSON")?;
    if !status.is_success() {
        bail!("{}", value["error"].as_str().unwrap_or(status.as_str()));
    }
    Ok(value)
}

/// Percent-encodes everything but what is safe in a query's value.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/' | b':') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_survives_the_query() {
        assert_eq!(escape("shop/db.x:80"), "shop/db.x:80");
        assert_eq!(escape("[fd00::1]:80&src=a b"), "%5Bfd00::1%5D:80%26src%3Da%20b");
    }
}
