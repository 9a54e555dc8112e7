//! The agent is no open proxy: whoever has a valid identity reaches the applications of the pod whose port was dialled,
//! and nothing else; who the client is does not become true by being said.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};

use crate::shop::{ECHO, NAMES, Shop, echoed, text, was_reset};
use crate::stranger::{
    Answer, BAD_DESTINATION, Stranger, Tls, connect_h2, leaf, mesh_authority, open, read_frame,
};

/// A client with the valid SVID of `web`, which dials from outside of any pod.
fn stranger(shop: &Shop, alpn: &str) -> Result<Stranger> {
    Stranger::on_node_1(shop, leaf(&mesh_authority(shop)?, &[&shop.web.spiffe_id()], false)?, alpn)
}

fn dial(shop: &Shop, alpn: &str) -> Result<Tls> {
    stranger(shop, alpn)?.connect(SocketAddr::new(shop.api.v4.into(), 15008), "any.invalid")
}

#[test]
fn a_peer_with_a_valid_identity_reaches_nothing_but_the_applications_of_the_pod_it_dialled() -> Result<()> {
    let shop = Shop::open()?;
    let beside = shop.mesh.pod("shop", "beside", 2)?;
    shop.mesh.enrolled(&[&beside])?;
    let client = SocketAddr::new(shop.web.v4.into(), 40_000);
    // The way in is open: else the refusals below would prove nothing.
    ensure!(open(&mut dial(&shop, "ferromesh/1")?, shop.api.at(ECHO).parse()?, client)? == Answer::Opened);
    ensure!(connect_h2(&mut dial(&shop, "h2")?, &shop.api.at(ECHO), &client.to_string())? == Answer::Opened);
    let elsewhere = [
        beside.at(15006),
        beside.at(ECHO),
        beside.at6(ECHO),
        shop.web.at(ECHO),
        format!("10.77.0.2:{ECHO}"),
        "10.77.0.2:15020".to_owned(),
        "10.77.0.254:15010".to_owned(),
        format!("127.0.0.1:{ECHO}"),
        format!("127.64.0.1:{ECHO}"),
        format!("[::1]:{ECHO}"),
        format!("[::ffff:127.0.0.1]:{ECHO}"),
        format!("0.0.0.0:{ECHO}"),
        format!("[::]:{ECHO}"),
        "169.254.169.254:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        shop.api.at(0),
        shop.api.at(15001),
        shop.api.at(15006),
        shop.api.at(15008),
        shop.api.at6(15001),
        format!("[::ffff:{}]:15008", shop.api.v4),
    ];
    for to in &elsewhere {
        let before = refusals(&shop)?;
        let opened = open(&mut dial(&shop, "ferromesh/1")?, to.parse()?, client)?;
        ensure!(opened == BAD_DESTINATION, "OPEN {to}: {opened:?}");
        let connected = connect_h2(&mut dial(&shop, "h2")?, to, &client.to_string())?;
        ensure!(connected == BAD_DESTINATION, "CONNECT {to}: {connected:?}");
        shop.mesh.in_force(&format!("{to} to be counted twice"), || {
            ensure!(refusals(&shop)? >= before + 2.0, "refusals: {before} before, {} now", refusals(&shop)?);
            Ok(())
        })?;
    }
    let record =
        shop.mesh.record(2, &[(names::FLAGS, "bad_destination"), (names::DIALLED, "169.254.169.254:80")])?;
    ensure!(field(&record, names::SOURCE_ID) == shop.web.spiffe_id(), "{record}");
    echoed(&shop.ask()?)
}

/// How many OPENs and CONNECTs node 2's agent has refused for their destination.
fn refusals(shop: &Shop) -> Result<f64> {
    Ok(shop
        .mesh
        .metrics(2)?
        .sum("ferromesh_tcp_connections_closed_total", &[("response_flags", "bad_destination")]))
}

#[test]
fn a_forwarded_client_that_is_not_of_the_certificates_identity_is_not_believed() -> Result<()> {
    let shop = Shop::open()?;
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    let names_server: SocketAddr = shop.api.at(NAMES).parse()?;
    let seen = |client: SocketAddr| -> Result<String> {
        let mut tls = dial(&shop, "ferromesh/1")?;
        ensure!(open(&mut tls, names_server, client)? == Answer::Opened);
        // The server writes one line, in as many frames as its writes happened to make.
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let (kind, payload) = read_frame(&mut tls)?;
            ensure!(kind == 4, "frame {kind} instead of DATA");
            line.extend(payload);
        }
        // Its socket is dual-stack.
        Ok(String::from_utf8_lossy(&line).replace("[::ffff:", "").replace("]:", ":"))
    };
    // Its own address may be forwarded: who carries the SVID of `web` speaks for `web`.
    let honest = seen(SocketAddr::new(shop.web.v4.into(), 41_000))?;
    ensure!(honest.contains(&format!("{}:41000", shop.web.v4)), "{honest}");
    for forged in [
        SocketAddr::new(other.v4.into(), 41_001),
        SocketAddr::new(shop.api.v4.into(), 41_002),
        "127.0.0.1:41003".parse()?,
        "10.77.0.2:41004".parse()?,
        "8.8.8.8:41005".parse()?,
    ] {
        let seen = seen(forged)?;
        ensure!(!seen.contains(&forged.to_string()) && seen.contains("10.77.0.1:"), "{forged}: {seen}");
    }
    Ok(())
}

#[test]
fn a_pod_that_dials_the_agents_ports_is_reset() -> Result<()> {
    let shop = Shop::open()?;
    for port in [15001, 15006, 15008] {
        let own =
            [shop.web.at(port), shop.web.at6(port), format!("127.0.0.1:{port}"), format!("[::1]:{port}")];
        for to in own.into_iter().chain([shop.api.at(port), shop.api.at6(port)]) {
            let told = shop.web.peer(&["talk", "--to", &to, "--send", "GET / HTTP/1.0\r\n\r\n"])?;
            let said = text(&told["received"]);
            // 15008 answers what is no TLS with an alert.
            let alert = port == 15008 && said.len() <= 7 && said.starts_with('\u{15}');
            ensure!(was_reset(&told) || alert, "{to}: {told}");
            ensure!(said.is_empty() || alert, "{to} answered: {told}");
        }
    }
    echoed(&shop.ask()?)
}
