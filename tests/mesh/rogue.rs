//! Peers that must not get in: each speaks TLS to 15008 with something wrong about its certificate, is refused, counted,
//! and harms nobody else.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use rustls::HandshakeKind;

use crate::shop::{Shop, echoed};
use crate::stranger::{PREFACE, Presented, Stranger, leaf, mesh_authority, other_authority};

/// Says the preface of HTTP/2 with this certificate.
fn knock(shop: &Shop, presented: Presented) -> Result<String> {
    let to = SocketAddr::new(shop.api.v4.into(), 15008);
    Stranger::on_node_1(shop, presented, "h2")?.knock(to, PREFACE)
}

#[test]
fn a_peer_with_anything_wrong_about_its_certificate_is_refused_and_counted() -> Result<()> {
    let shop = Shop::open()?;
    let web = shop.web.spiffe_id();
    let (own, other) = (mesh_authority(&shop)?, other_authority()?);
    // The way in is open: else the refusals below would prove nothing.
    let let_in = knock(&shop, leaf(&own, &[&web], false)?)?;
    ensure!(let_in.starts_with("let in"), "a good certificate was refused: {let_in}\n{}", shop.mesh.logs());
    let cases: [(&str, Presented); 6] = [
        ("no certificate", None),
        ("an expired one", leaf(&own, &[&web], true)?),
        ("one of another root", leaf(&other, &[&web], false)?),
        ("one with two URI names", leaf(&own, &[&web, "spiffe://cluster.local/ns/shop/sa/api"], false)?),
        ("one without a URI name", leaf(&own, &[], false)?),
        ("one of another trust domain", leaf(&own, &["spiffe://elsewhere.local/ns/shop/sa/web"], false)?),
    ];
    for (name, presented) in cases {
        let before = refused(&shop)?;
        let outcome = knock(&shop, presented)?;
        ensure!(!outcome.starts_with("let in"), "{name}: {outcome}");
        shop.mesh.in_force(&format!("{name} to be counted"), || {
            ensure!(refused(&shop)? >= before + 1.0, "refusals stay {before}");
            Ok(())
        })?;
    }
    echoed(&shop.ask()?)
}

/// How many handshakes node 2's agent has refused.
fn refused(shop: &Shop) -> Result<f64> {
    Ok(shop.mesh.metrics(2)?.sum("ferromesh_handshake_failures_total", &[]))
}

#[test]
fn a_pod_outside_of_the_mesh_cannot_speak_to_the_agents_ports() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    for port in [15001, 15006] {
        let told = shop.ask_from(&outsider, &shop.api.at(port))?;
        ensure!(told["received"].as_str().unwrap_or_default().is_empty(), "{port}: {told}");
    }
    echoed(&shop.ask()?)
}

#[test]
fn a_handshake_is_always_whole_and_shows_the_pods_own_certificate_whatever_name_is_asked_for() -> Result<()> {
    let shop = Shop::open()?;
    let beside = shop.mesh.pod("shop", "beside", 2)?;
    shop.mesh.enrolled(&[&beside])?;
    for alpn in ["ferromesh/1", "h2"] {
        let presented = leaf(&mesh_authority(&shop)?, &[&shop.web.spiffe_id()], false)?;
        let stranger = Stranger::on_node_1(&shop, presented, alpn)?;
        for (pod, other) in [(&shop.api, &beside), (&beside, &shop.api)] {
            let to = SocketAddr::new(pod.v4.into(), 15008);
            // Its own name, another pod's, nobody's: all the same, and each time from the beginning.
            for sni in ["api.shop.svc", "beside.shop.svc", "api.shop.svc", "beside.shop.svc", "x.invalid"] {
                let mut tls = stranger.connect(to, sni)?;
                // Whatever the server had to say behind its handshake has come with its answer.
                if alpn == "h2" {
                    tls.write_all(PREFACE)?;
                    ensure!(tls.read(&mut [0; 9])? > 0, "no settings came");
                }
                let conn = &mut tls.conn;
                let shown =
                    conn.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
                let shown = String::from_utf8_lossy(&shown.unwrap_or_default()).into_owned();
                ensure!(
                    shown.contains(&pod.spiffe_id()) && !shown.contains(&other.spiffe_id()),
                    "{sni}: {shown}"
                );
                ensure!(conn.handshake_kind() == Some(HandshakeKind::Full), "{:?}", conn.handshake_kind());
                ensure!(conn.tls13_tickets_received() == 0, "a ticket came");
                ensure!(conn.early_data().is_none() && !conn.is_early_data_accepted(), "early data");
            }
        }
    }
    Ok(())
}
