//! One request of kube's core in, its answer out: decoded, or line by line for a watch. Each request has a TLS connection
//! of its own, so that no request waits for another and a dead server is noticed by each.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use kube::core::Status;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::access::{Access, Bearer};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A watch ends itself after less (its own parameter says 290 s); one that is silent for longer has lost its server.
const SILENCE: Duration = Duration::from_secs(310);
/// The largest answer, and the longest line of a watch: etcd keeps no object of more than a few MB, a page has 500.
const MAX_ANSWER: usize = 512 << 20;
const MAX_LINE: usize = 32 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The request could not be made.
    #[error("request: {0}")]
    Request(String),
    /// The server was not reached, or the connection broke.
    #[error("{stage}: {message}")]
    Connection {
        /// What was being done.
        stage: &'static str,
        /// What went wrong.
        message: String,
    },
    /// The server refused.
    #[error("{code} {reason}: {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// One word.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// The answer is not what it should be.
    #[error("answer: {0}")]
    Answer(String),
}

impl ApiError {
    /// Whether the server refused with this HTTP status.
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    pub(crate) fn from_status(status: Status, code: u16) -> Self {
        let code = if status.code == 0 { code } else { status.code };
        Self::Refused { code, reason: status.reason, message: status.message }
    }
}

impl From<kube::core::request::Error> for ApiError {
    fn from(error: kube::core::request::Error) -> Self {
        Self::Request(error.to_string())
    }
}

fn broken(stage: &'static str) -> impl Fn(String) -> ApiError {
    move |message| ApiError::Connection { stage, message }
}

/// Speaks to one API server.
#[derive(Clone, Debug)]
pub struct Client {
    access: Arc<Access>,
}

impl Client {
    /// A client that goes to `access`.
    pub fn new(access: Access) -> Self {
        Self { access: Arc::new(access) }
    }

    /// Where requests go, for people.
    pub fn server(&self) -> String {
        format!("https://{}:{}", self.access.host, self.access.port)
    }

    /// Makes a request and decodes the whole answer.
    pub async fn call<T: DeserializeOwned>(&self, request: Request<Vec<u8>>) -> Result<T, ApiError> {
        let answer = async {
            let body = self.send(request).await?.into_body();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            Ok::<_, ApiError>(body.map_err(|e| broken("receive")(e.to_string()))?.to_bytes())
        };
        let bytes = timeout(CALL_TIMEOUT, answer)
            .await
            .map_err(|_| broken("receive")(format!("no answer within {CALL_TIMEOUT:?}")))??;
        serde_json::from_slice(&bytes).map_err(|e| ApiError::Answer(e.to_string()))
    }

    /// Makes a request whose answer comes line by line, without an end in sight.
    pub async fn lines(&self, request: Request<Vec<u8>>) -> Result<Lines, ApiError> {
        let response = timeout(CALL_TIMEOUT, self.send(request)).await;
        let response = response.map_err(|_| broken("receive")("no answer".into()))??;
        Ok(Lines { body: response.into_body(), buffer: Vec::new(), searched: 0 })
    }

    /// Sends, and reads the answer's head; a refusal is read to its end.
    async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Incoming>, ApiError> {
        let request = self.complete(request)?;
        let mut sender = self.connect().await?;
        let response = sender.send_request(request).await.map_err(|e| broken("send")(e.to_string()))?;
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), 1 << 20).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(match serde_json::from_slice::<Status>(&body) {
            Ok(status) => ApiError::from_status(status, code.as_u16()),
            Err(_) => ApiError::Refused {
                code: code.as_u16(),
                reason: code.canonical_reason().unwrap_or_default().into(),
                message: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
            },
        })
    }

    fn complete(&self, request: Request<Vec<u8>>) -> Result<Request<Full<Bytes>>, ApiError> {
        let access = &self.access;
        let (mut parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = path.trim_end_matches('?');
        let wrong = |what: &str| ApiError::Request(format!("{what} is not valid"));
        parts.uri = format!("{}{path}", access.prefix).parse::<Uri>().map_err(|_| wrong("the path"))?;
        let host = if access.host.contains(':') {
            format!("[{}]:{}", access.host, access.port)
        } else {
            format!("{}:{}", access.host, access.port)
        };
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| wrong("a header"));
        parts.headers.insert(HOST, value(&host)?);
        parts.headers.insert(USER_AGENT, HeaderValue::from_static("ferromesh-controller"));
        parts.headers.entry(ACCEPT).or_insert(HeaderValue::from_static("application/json"));
        let token = match &access.bearer {
            Bearer::None => None,
            Bearer::Token(token) => Some(token.clone()),
            Bearer::File(path) => Some(
                std::fs::read_to_string(path)
                    .map_err(|e| ApiError::Request(format!("{}: {e}", path.display())))?,
            ),
        };
        if let Some(token) = token {
            let mut header = value(&format!("Bearer {}", token.trim()))?;
            header.set_sensitive(true);
            parts.headers.insert(AUTHORIZATION, header);
        }
        Ok(Request::from_parts(parts, Full::new(Bytes::from(body))))
    }

    async fn connect(&self) -> Result<hyper::client::conn::http1::SendRequest<Full<Bytes>>, ApiError> {
        let access = &self.access;
        let connect = async {
            let stream = TcpStream::connect((access.host.as_str(), access.port))
                .await
                .map_err(|e| broken("connect")(e.to_string()))?;
            stream.set_nodelay(true).map_err(|e| broken("connect")(e.to_string()))?;
            let keepalive = socket2::TcpKeepalive::new()
                .with_time(Duration::from_secs(15))
                .with_interval(Duration::from_secs(5));
            socket2::SockRef::from(&stream)
                .set_tcp_keepalive(&keepalive)
                .map_err(|e| broken("connect")(e.to_string()))?;
            let connector = TlsConnector::from(Arc::clone(&access.tls));
            let stream = connector.connect(access.name.clone(), stream).await;
            let stream = stream.map_err(|e| broken("TLS handshake")(e.to_string()))?;
            hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| broken("HTTP handshake")(e.to_string()))
        };
        let (sender, connection) = timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| broken("connect")(format!("not within {CONNECT_TIMEOUT:?}")))??;
        // Its error is the request's, which says it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// The lines of an answer.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                return Err(ApiError::Answer(format!("a line is longer than {MAX_LINE} bytes")));
            }
            let frame = timeout(SILENCE, self.body.frame())
                .await
                .map_err(|_| broken("receive")(format!("nothing came for {SILENCE:?}")))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken("receive")(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
