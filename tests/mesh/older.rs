//! Connections that are older than the enrolment of their pods: a real psql session, opened before the label.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::Process;
use serde_json::{Value, json};

use crate::shop::{Shop, text};

/// A session that sleeps so many seconds between its first and its last word, and has begun.
fn session(shop: &Shop, seconds: u32) -> Result<Process> {
    let (host, sleep) = (shop.api.v4.to_string(), format!("select pg_sleep({seconds})"));
    let words = ["-Atc", "select 'first'", "-c", &sleep, "-c", "select 'last'"];
    let arguments: Vec<&str> = ["-h", &host, "-U", "postgres"].into_iter().chain(words).collect();
    let psql = shop.web.spawn("psql", "psql", &arguments)?;
    shop.mesh.in_force("the session to begin", || {
        let said = psql.stdout();
        ensure!(said.contains("first"), "{said:?} {}", psql.stderr());
        Ok(())
    })?;
    Ok(psql)
}

/// The older sockets that a node's agent lists.
fn listed(shop: &Shop, node: u8) -> Result<Vec<Value>> {
    let status: Value = serde_json::from_str(&shop.mesh.meshctl(node, &["-o", "json", "status"])?.stdout)?;
    let pods = status["agent"]["pods"].as_array().cloned().unwrap_or_default();
    Ok(pods.iter().flat_map(|pod| pod["older_sockets"].as_array().cloned().unwrap_or_default()).collect())
}

/// Enrols `shop` and waits until both ends of the one session are listed.
fn enrol_and_find(shop: &Shop) -> Result<()> {
    shop.mesh.manifests.namespace("shop", true)?;
    shop.mesh.enrolled(&[&shop.web, &shop.api])?;
    let server = shop.api.at(5432);
    for (node, end) in [(1, "remote"), (2, "local")] {
        shop.mesh.in_force(&format!("the session to be listed on node {node}"), || {
            let found = listed(shop, node)?;
            ensure!(found.len() == 1 && text(&found[0][end]) == server, "{found:?}");
            let counted = shop.mesh.metrics(node)?.sum("ferromesh_older_sockets", &[]);
            ensure!((counted - 1.0).abs() < 0.1, "counted: {counted}");
            Ok(())
        })?;
    }
    let table = shop.mesh.meshctl(2, &["status"])?.stdout;
    ensure!(table.contains("OLDER THAN THE ENROLMENT") && table.contains(&server), "{table}");
    Ok(())
}

fn closed(shop: &Shop) -> Result<f64> {
    let of = |node| -> Result<f64> {
        Ok(shop.mesh.metrics(node)?.sum("ferromesh_older_sockets_closed_total", &[]))
    };
    Ok(of(1)? + of(2)?)
}

fn none_is_listed(shop: &Shop) -> Result<()> {
    for node in [1, 2] {
        shop.mesh.in_force("nothing to be listed any more", || {
            let found = listed(shop, node)?;
            ensure!(found.is_empty(), "node {node}: {found:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_session_older_than_the_enrolment_is_shown_under_permissive_and_closed_under_strict() -> Result<()> {
    let shop = Shop::open_with(Options::default(), false)?;
    let _postgres = apps::postgres(&shop.api)?;
    // Permissive: shown, and left alone for longer than the grace period.
    let psql = session(&shop, 15)?;
    enrol_and_find(&shop)?;
    ensure!(listed(&shop, 2)?[0]["closes_in_seconds"].is_null(), "{:?}", listed(&shop, 2)?);
    let said = psql.wait(Duration::from_secs(40))?.success()?;
    ensure!(said.contains("last"), "{said}");
    none_is_listed(&shop)?;
    ensure!(closed(&shop)? == 0.0, "closed under permissive");
    // Strict: closed, though its programs would have gone on.
    shop.mesh.manifests.namespace("shop", false)?;
    shop.mesh.in_force("the pods to leave the mesh", || {
        ensure!(!shop.web.listens(15001) && !shop.api.listens(15001), "they are enrolled");
        Ok(())
    })?;
    let psql = session(&shop, 300)?;
    enrol_and_find(&shop)?;
    shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    let ended = psql.wait(Duration::from_secs(40))?;
    ensure!(!ended.ok() && !ended.stdout.contains("last"), "{ended:?}");
    none_is_listed(&shop)?;
    ensure!(closed(&shop)? >= 1.0, "none was counted as closed");
    // A new one goes through the mesh: strict lets it in, and nobody lists it.
    let said = session(&shop, 2)?.wait(Duration::from_secs(20))?.success()?;
    ensure!(said.contains("last"), "{said}");
    none_is_listed(&shop)
}
