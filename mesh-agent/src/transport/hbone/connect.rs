//! The CONNECT request and its answer: an [`Open`] becomes headers and headers become an [`Open`]; a [`Refusal`]
//! becomes a status and a status becomes a [`Refusal`]. Pure.

use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use crate::transport::{Open, Refusal, RefusalCode};

/// Names the kind of a refusal where the status alone does not.
pub const REFUSAL_HEADER: HeaderName = HeaderName::from_static("x-ferromesh-refusal");
/// The refusal's text, for logs.
pub const MESSAGE_HEADER: HeaderName = HeaderName::from_static("x-ferromesh-message");
/// W3C baggage: Istio's description of the source workload.
pub const BAGGAGE_HEADER: HeaderName = HeaderName::from_static("baggage");
/// W3C trace context.
pub const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static("traceparent");

/// What a CONNECT asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where to, and for which client.
    pub open: Open,
    /// The source's description of itself, unproven.
    pub baggage: Option<String>,
    /// The trace that the connection belongs to.
    pub traceparent: Option<String>,
}

/// Why a request is not a CONNECT that we serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Another method.
    #[error("the method is not CONNECT")]
    Method,
    /// `:authority` is missing or not an IP address with a port.
    #[error("the authority is not an IP address and a port")]
    Authority,
}

/// The request for `open`. `source_namespace` goes into the baggage.
pub fn request(open: &Open, source_namespace: &str) -> Result<Request<()>, http::Error> {
    let authority = open.destination.to_string();
    Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::builder().authority(authority).build()?)
        .header(FORWARDED, forwarded(open.client))
        .header(BAGGAGE_HEADER, format!("k8s.namespace.name={source_namespace}"))
        .body(())
}

/// Reads a request. `tunnel_peer` is the client when the request does not name one.
pub fn parse<B>(request: &Request<B>, tunnel_peer: SocketAddr) -> Result<ConnectRequest, ConnectError> {
    if request.method() != Method::CONNECT {
        return Err(ConnectError::Method);
    }
    let authority = request.uri().authority().ok_or(ConnectError::Authority)?;
    let destination = parse_authority(authority.as_str()).ok_or(ConnectError::Authority)?;
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let client = header(FORWARDED).and_then(parse_forwarded).unwrap_or(tunnel_peer);
    Ok(ConnectRequest {
        open: Open { destination, client },
        baggage: header(BAGGAGE_HEADER).map(str::to_owned),
        traceparent: header(TRACEPARENT_HEADER).map(str::to_owned),
    })
}

/// `address:port`, IPv6 in brackets; host names are not resolved here.
pub fn parse_authority(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    (address.port() != 0).then_some(address)
}

/// The client in a `Forwarded` header (RFC 7239): the `for` of its first element. ztunnel sends the port without the
/// quotes that the RFC asks for; both are read. A client without port gets port 0.
pub fn parse_forwarded(text: &str) -> Option<SocketAddr> {
    let element = text.split(',').next()?;
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then_some(value.trim())
    })?;
    let node = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
    if let Ok(address) = node.parse::<SocketAddr>() {
        return Some(address);
    }
    let bare = node.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(node);
    bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 0))
}

/// The `Forwarded` header for a client.
pub fn forwarded(client: SocketAddr) -> String {
    format!("for=\"{client}\"")
}

/// The answer that refuses.
pub fn refusal_response(refusal: &Refusal) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = match refusal.code {
        RefusalCode::Denied => StatusCode::FORBIDDEN,
        RefusalCode::BadDestination => StatusCode::BAD_REQUEST,
        RefusalCode::ConnectionRefused | RefusalCode::Unreachable | RefusalCode::Draining => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        RefusalCode::Overloaded => StatusCode::TOO_MANY_REQUESTS,
    };
    let headers = response.headers_mut();
    headers.insert(REFUSAL_HEADER, HeaderValue::from_static(refusal.code.code()));
    // A text that is no header value stays out: it is for logs only.
    if let Ok(text) = HeaderValue::from_str(&refusal.message) {
        headers.insert(MESSAGE_HEADER, text);
    }
    response
}

/// Reads an answer that is not 2xx.
pub fn parse_refusal(status: StatusCode, headers: &HeaderMap) -> Refusal {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let code = match (text(REFUSAL_HEADER), status) {
        (Some("connection-refused"), _) => RefusalCode::ConnectionRefused,
        (Some("draining"), _) => RefusalCode::Draining,
        (_, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => RefusalCode::Denied,
        (_, StatusCode::BAD_REQUEST) => RefusalCode::BadDestination,
        (_, StatusCode::TOO_MANY_REQUESTS) => RefusalCode::Overloaded,
        _ => RefusalCode::Unreachable,
    };
    let message = text(MESSAGE_HEADER).map_or_else(|| format!("HTTP {}", status.as_u16()), str::to_owned);
    Refusal { code, message }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
