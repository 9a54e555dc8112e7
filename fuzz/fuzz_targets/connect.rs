//! The HBONE CONNECT parser and that of its answers: no header panics, and what was understood is understood again when
//! it is written out. A line with the authority comes first, then the value of a header.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};

use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use libfuzzer_sys::fuzz_target;
use mesh_agent::transport::hbone::connect::{
    BAGGAGE_HEADER, MESSAGE_HEADER, REFUSAL_HEADER, TRACEPARENT_HEADER, forwarded, parse, parse_authority,
    parse_forwarded, parse_refusal, refusal_response, request,
};

fuzz_target!(|bytes: &[u8]| {
    let (authority, header) =
        bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let (Ok(authority), header) = (std::str::from_utf8(authority), header.get(1..).unwrap_or_default())
    else {
        return;
    };
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    if let Some(destination) = parse_authority(authority) {
        assert_eq!(parse_authority(&destination.to_string()), Some(destination));
    }
    if let Some(client) = std::str::from_utf8(header).ok().and_then(parse_forwarded) {
        assert_eq!(parse_forwarded(&forwarded(client)), Some(client));
    }
    let Ok(value) = HeaderValue::from_bytes(header) else { return };
    let status = StatusCode::from_u16(100 + header.len() as u16 % 500).expect("a status of three digits");
    let told = HeaderMap::from_iter([(REFUSAL_HEADER, value.clone()), (MESSAGE_HEADER, value.clone())]);
    let refusal = parse_refusal(status, &told);
    let again = refusal_response(&refusal);
    assert_eq!(parse_refusal(again.status(), again.headers()).code, refusal.code);
    let built = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header("forwarded", value.clone())
        .header(BAGGAGE_HEADER, value.clone())
        .header(TRACEPARENT_HEADER, value)
        .body(());
    if let Ok(built) = built
        && let Ok(asked) = parse(&built, peer)
    {
        let again = request(&asked.open, "default").expect("a parsed request can be written");
        assert_eq!(parse(&again, peer).expect("and parsed").open, asked.open);
    }
});
