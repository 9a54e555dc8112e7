//! Tests of the CONNECT request and its answers.

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::*;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn a_request_is_read_as_it_was_written() {
    for (destination, client) in [("10.1.2.3:80", "10.9.8.7:40000"), ("[fd00::1]:443", "[fd00::2]:1")] {
        let open = Open { destination: address(destination), client: address(client) };
        let read = parse(&request(&open, "shop").unwrap(), address("1.1.1.1:1")).unwrap();
        assert_eq!(read.open, open);
        assert_eq!(read.baggage.as_deref(), Some("k8s.namespace.name=shop"));
    }
}

#[test]
fn the_tunnel_peer_is_the_client_when_none_is_named() {
    let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80").body(()).unwrap();
    assert_eq!(parse(&request, address("9.9.9.9:9")).unwrap().open.client, address("9.9.9.9:9"));
}

#[test]
fn forwarded_is_read_in_every_common_form() {
    for (text, wanted) in [
        ("for=10.0.0.1:80", Some("10.0.0.1:80")),
        ("for=\"10.0.0.1:80\"", Some("10.0.0.1:80")),
        ("For=10.0.0.1;host=a.example", Some("10.0.0.1:0")),
        ("host=a;for=\"[fd00::1]\"", Some("[fd00::1]:0")),
        ("for=\"[fd00::1]:8080\", for=1.2.3.4", Some("[fd00::1]:8080")),
        ("for=unknown", None),
        ("by=1.2.3.4", None),
        ("", None),
    ] {
        assert_eq!(parse_forwarded(text), wanted.map(address), "{text}");
    }
}

#[test]
fn names_ports_zero_and_other_methods_are_not_served() {
    for uri in ["shop.example:80", "10.0.0.1:0"] {
        let request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        assert_eq!(parse(&request, address("9.9.9.9:9")), Err(ConnectError::Authority), "{uri}");
    }
    let request = Request::builder().uri("http://10.0.0.1:80/").body(()).unwrap();
    assert_eq!(parse(&request, address("9.9.9.9:9")), Err(ConnectError::Method));
}

#[test]
fn every_refusal_keeps_its_kind() {
    for number in 1..=6 {
        let refusal = Refusal { code: RefusalCode::from_wire(number).unwrap(), message: "why".into() };
        let response = refusal_response(&refusal);
        assert_eq!(parse_refusal(response.status(), response.headers()), refusal);
    }
}

#[test]
fn ztunnels_401_is_a_denial() {
    let refusal = parse_refusal(StatusCode::UNAUTHORIZED, &HeaderMap::new());
    assert_eq!(refusal, Refusal { code: RefusalCode::Denied, message: "HTTP 401".into() });
}

/// The short form of `fuzz/fuzz_targets/connect.rs`.
#[test]
fn no_header_panics_the_parser() {
    const SEEDS: [&str; 5] =
        ["for=\"[fd00::1]:80\";by=x", "for=1.2.3.4:5", "10.0.0.1:80", "[::1]:15008", "for=\"\",for="];
    let mut rng = StdRng::seed_from_u64(2);
    for _ in 0..100_000 {
        let mut bytes = SEEDS[rng.random_range(0..SEEDS.len())].as_bytes().to_vec();
        for _ in 0..rng.random_range(0..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b"\";=,[]:."[rng.random_range(0..8)]),
            }
        }
        if rng.random_bool(0.2) {
            rng.fill_bytes(&mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some(client) = parse_forwarded(&text) {
            assert_eq!(parse_forwarded(&forwarded(client)), Some(client));
        }
        if let Some(destination) = parse_authority(&text) {
            assert_eq!(parse_authority(&destination.to_string()), Some(destination));
        }
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let request = Request::builder().method(Method::CONNECT).uri("10.0.0.1:80");
            let request =
                request.header(FORWARDED, value.clone()).header(BAGGAGE_HEADER, value).body(()).unwrap();
            assert!(parse(&request, address("9.9.9.9:9")).is_ok());
        }
    }
}
