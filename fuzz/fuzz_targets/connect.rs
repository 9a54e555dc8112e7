//! The HBONE CONNECT parser: no header panics, and what was understood is understood again when it is written out.

#![no_main]

use std::net::{Ipv4Addr, SocketAddr};

use http::{HeaderValue, Method, Request};
use libfuzzer_sys::fuzz_target;
use mesh_agent::transport::hbone::connect::{
    BAGGAGE_HEADER, TRACEPARENT_HEADER, forwarded, parse, parse_authority, parse_forwarded, request,
};

fuzz_target!(|input: (&str, &[u8])| {
    let (authority, header) = input;
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    if let Some(destination) = parse_authority(authority) {
        assert_eq!(parse_authority(&destination.to_string()), Some(destination));
    }
    if let Some(client) = std::str::from_utf8(header).ok().and_then(parse_forwarded) {
        assert_eq!(parse_forwarded(&forwarded(client)), Some(client));
    }
    let Ok(value) = HeaderValue::from_bytes(header) else { return };
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
