//! The administration socket: HTTP/1 and JSON over a Unix socket that only the agent's user may open (0600).
//!
//! `GET /status`, `/dump`, `/check`, `/ready`, and `/explain?src=NAMESPACE/POD&dst=DESTINATION:PORT`. It only reads.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use super::explain::{ExplainError, Listener, explain};
use super::{Control, NodeSettings, view};

/// What other parts of the agent add to the answers.
pub trait Local: Send + Sync + 'static {
    /// The enrolled pods as the kernel side serves them.
    fn pods(&self) -> Value;
    /// Who has a port of this host; of a node with pods nobody.
    fn listener(&self, at: SocketAddr) -> Listener;
    /// Problems that an operator should see, one text each.
    fn problems(&self) -> Vec<String>;
    /// Uids of pods on the node's own network, which are left alone.
    fn on_node_network(&self) -> Vec<String>;
    /// Who speaks plaintext to the pods where that is still taken.
    fn plaintext(&self) -> Value;
    /// Why this agent is not ready; empty when it is.
    fn missing(&self) -> Vec<String>;
    /// What the kernel of this node can and cannot do.
    fn check(&self) -> Value;
}

/// Answers requests.
pub struct Admin {
    node: NodeSettings,
    control: Control,
    local: Arc<dyn Local>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("node", &self.node.node).finish_non_exhaustive()
    }
}

/// A bound socket.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

/// The file of a socket; it goes when the last holder of this is dropped, if it is this agent's.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    own: AtomicBool,
}

impl SocketFile {
    /// Says whether the file is this agent's: a successor uses the same one.
    pub fn own(&self, own: bool) {
        self.own.store(own, Ordering::SeqCst);
    }
}

impl AdminSocket {
    /// Binds `path`, taking the place of a socket that nobody serves any more.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let text = format!("{} is served by another agent", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Bound beside and renamed, so that at no moment anybody else may open it.
        let beside = path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        fs::rename(&beside, path)?;
        Ok(Self { listener, file: Arc::new(SocketFile { path: path.to_owned(), own: true.into() }) })
    }

    /// The one at `path` that another agent still owns.
    pub fn inherit(listener: std::os::unix::net::UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let file = Arc::new(SocketFile { path: path.to_owned(), own: false.into() });
        Ok(Self { listener: UnixListener::from_std(listener)?, file })
    }

    /// Its file.
    pub fn file(&self) -> Arc<SocketFile> {
        Arc::clone(&self.file)
    }

    /// The same socket once more.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.listener.as_fd().try_clone_to_owned()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.own.load(Ordering::SeqCst) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the administration socket was not removed");
        }
    }
}

impl Admin {
    /// Answers from these.
    pub fn new(node: NodeSettings, control: Control, local: Arc<dyn Local>) -> Arc<Self> {
        Arc::new(Self { node, control, local })
    }

    /// Serves for ever.
    pub async fn serve(self: Arc<Self>, socket: AdminSocket) {
        loop {
            match socket.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(Arc::clone(&self).connection(stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting on the administration socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let admin = Arc::clone(&self);
            async move { Ok::<_, Infallible>(admin.answer(&request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "an administration connection ended");
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return failure(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
        }
        match request.uri().path() {
            "/status" => self.status(),
            "/dump" => respond(StatusCode::OK, &self.dump()),
            "/check" => respond(StatusCode::OK, &self.local.check()),
            // Whose answer it is: two agents may share a node while one takes over from the other.
            "/ready" => respond(
                StatusCode::OK,
                &json!({ "process": std::process::id(), "missing": self.local.missing() }),
            ),
            "/explain" => self.explain(request.uri().query().unwrap_or_default()).await,
            _ => failure(StatusCode::NOT_FOUND, "there is /status, /dump, /check, /ready and /explain"),
        }
    }

    fn status(&self) -> Response<Full<Bytes>> {
        let mut status = view::status(&self.control, &self.node);
        status["pods"] = self.local.pods();
        status["problems"] = json!(self.local.problems());
        status["on_node_network"] = json!(self.local.on_node_network());
        status["plaintext"] = self.local.plaintext();
        respond(StatusCode::OK, &status)
    }

    fn dump(&self) -> Value {
        json!({
            "node": self.node.node,
            "snapshot": view::snapshot(&self.control.published.load()),
            "certificates": view::certificates(&self.control),
            "pods": self.local.pods(),
            "problems": self.local.problems(),
        })
    }

    async fn explain(&self, query: &str) -> Response<Full<Bytes>> {
        let (Some(src), Some(dst)) = (parameter(query, "src"), parameter(query, "dst")) else {
            return failure(StatusCode::BAD_REQUEST, "give src=NAMESPACE/POD and dst=DESTINATION:PORT");
        };
        match explain(&self.control.published, &self.control.lookup, &src, &dst, |at| self.local.listener(at))
            .await
        {
            Ok(explanation) => match serde_json::to_value(&explanation) {
                Ok(value) => respond(StatusCode::OK, &value),
                Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            Err(error) => {
                let status = match error {
                    ExplainError::Source(_) | ExplainError::Destination(_) => StatusCode::BAD_REQUEST,
                    ExplainError::NoSuchPod(_)
                    | ExplainError::NoSuchService(_)
                    | ExplainError::NoAddress(_) => StatusCode::NOT_FOUND,
                };
                failure(status, &error.to_string())
            }
        }
    }
}

fn failure(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    respond(status, &json!({ "error": error }))
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// The first value of `name` in a query, percent-decoded; `None` when it is not there or not UTF-8.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_percent_decoded() {
        let query = "src=shop%2Fweb-1&dst=[fd00::1]:80";
        assert_eq!(parameter(query, "src").as_deref(), Some("shop/web-1"));
        assert_eq!(parameter(query, "dst").as_deref(), Some("[fd00::1]:80"));
        for bad in ["src=%", "src=%2", "src=%zz", "src=%ff", "sr=1", ""] {
            assert_eq!(parameter(bad, "src"), None, "{bad}");
        }
    }
}
