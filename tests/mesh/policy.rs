//! Who may talk to whom: modes, policies, their changes, and what they say to people.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::capture::Capture;
use mesh_tests::manifests::from_account;
use mesh_tests::mesh::Options;
use serde_json::json;

use crate::shop::{BANNER, ECHO, Shop, VIP, echoed, has, is_echoed, text, was_reset};

const ANYBODY: &str = "[{}]";

#[test]
fn permissive_takes_plaintext_and_strict_refuses_it() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    let to = shop.api.at(ECHO);
    // The first connection of a new pod may be held until the pod is known, and is then dialled for it.
    shop.until_asking(&outsider, &to, true)?;
    let told = shop.ask_from(&outsider, &to)?;
    echoed(&told)?;
    let client = text(&told["getsockname"]).to_owned();
    let record = shop.mesh.record(2, &[(names::CLIENT, &client)])?;
    has(&record, names::SOURCE_ID, names::NOBODY)?;
    shop.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    shop.until_asking(&outsider, &to, false)?;
    shop.mesh.record(2, &[(names::REPORTER, names::DESTINATION), (names::FLAGS, "strict_mtls")])?;
    echoed(&shop.ask()?)?;
    // One port is left open.
    let open = json!({ "mtls": { "mode": "STRICT", "ports": { "7000": "PERMISSIVE" } } });
    shop.mesh.manifests.mesh_config("shop", open)?;
    shop.until_asking(&outsider, &to, true)?;
    let banner = outsider.peer(&["talk", "--to", &shop.api.at(BANNER), "--half-close"])?;
    ensure!(text(&banner["received"]).is_empty(), "{banner}");
    Ok(())
}

#[test]
fn an_allow_policy_lets_in_only_whom_it_names() -> Result<()> {
    let shop = Shop::open()?;
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    let to = format!("{VIP}:{ECHO}");
    shop.until_asking(&other, &to, true)?;
    shop.mesh.manifests.policy(("shop", "api"), "api", "ALLOW", from_account("shop", "other"))?;
    let told = shop.until_asking(&shop.web, &to, false)?;
    ensure!(was_reset(&told), "{told}");
    shop.until_asking(&other, &to, true)?;
    shop.mesh
        .record(1, &[(names::SOURCE_ID, &shop.web.spiffe_id()), (names::FLAGS, "no_allow_policy_matched")])?;
    let explained = shop.mesh.meshctl(1, &["explain", "shop/web", &to])?;
    let said = format!("{}{}", explained.stdout, explained.stderr);
    ensure!(said.contains("no ALLOW policy matched"), "{said}");
    let explained = shop.mesh.meshctl(1, &["-o", "json", "explain", "shop/other", &to])?;
    ensure!(explained.stdout.contains("shop/api"), "{}{}", explained.stdout, explained.stderr);
    Ok(())
}

#[test]
fn deny_beats_allow() -> Result<()> {
    let shop = Shop::open()?;
    echoed(&shop.ask()?)?;
    shop.mesh.manifests.policy(("shop", "allow-web"), "api", "ALLOW", from_account("shop", "web"))?;
    shop.mesh.manifests.policy(("shop", "deny-web"), "api", "DENY", from_account("shop", "web"))?;
    let to = format!("{VIP}:{ECHO}");
    shop.until_asking(&shop.web, &to, false)?;
    // The one before may have been let in and cut a moment later.
    ensure!(!is_echoed(&shop.ask()?), "allowed again");
    let record = shop.mesh.record(1, &[(names::FLAGS, "denied_by_policy")])?;
    ensure!(record.to_string().contains("shop/deny-web"), "{record}");
    shop.mesh.manifests.remove("AuthorizationPolicy", "shop", "deny-web")?;
    shop.until_asking(&shop.web, &to, true)?;
    Ok(())
}

#[test]
fn the_destination_enforces_when_the_source_does_not_know() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    let to = shop.api.at(ECHO);
    shop.until_asking(&outsider, &to, true)?;
    let block = json!([{ "from": [{ "source": { "ipBlocks": [outsider.v4.to_string()] } }] }]);
    shop.mesh.manifests.policy(("shop", "deny-block"), "api", "DENY", block)?;
    shop.until_asking(&outsider, &to, false)?;
    let record = shop.mesh.record(2, &[(names::FLAGS, "denied_by_policy")])?;
    ensure!(field(&record, names::CLIENT).starts_with(&outsider.v4.to_string()), "{record}");
    // Another family is another address.
    echoed(&shop.ask_from(&outsider, &shop.api.at6(ECHO))?)
}

#[test]
fn a_policy_on_one_port_leaves_the_others() -> Result<()> {
    let shop = Shop::open()?;
    let rules = json!([{ "to": [{ "operation": { "ports": [ECHO] } }] }]);
    shop.mesh.manifests.policy(("shop", "no-echo"), "api", "DENY", rules)?;
    shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), false)?;
    let banner = shop.web.peer(&["talk", "--to", &format!("{VIP}:{BANNER}"), "--half-close"])?;
    ensure!(text(&banner["received"]).starts_with("220 "), "{banner}");
    Ok(())
}

#[test]
fn an_audit_policy_changes_nothing_but_is_named_in_the_log() -> Result<()> {
    let shop = Shop::open()?;
    shop.mesh.manifests.policy(("shop", "watch"), "api", "AUDIT", serde_json::from_str(ANYBODY)?)?;
    shop.mesh.in_force("the policy to be named in a record", || {
        let told = shop.ask()?;
        echoed(&told)?;
        let record = shop.mesh.record(2, &[(names::CLIENT, text(&told["getsockname"]))])?;
        ensure!(record.to_string().contains("shop/watch"), "{record}");
        Ok(())
    })
}

#[test]
fn a_policy_change_cuts_an_open_connection() -> Result<()> {
    let shop = Shop::open()?;
    let to = format!("{VIP}:{ECHO}");
    let talk = ["talk", "--to", &to, "--send", "hello", "--timeout-ms", "20000"];
    let open = shop.web.spawn_peer(&talk)?;
    std::thread::sleep(Duration::from_millis(500));
    shop.mesh.manifests.policy(("shop", "closed"), "api", "DENY", serde_json::from_str(ANYBODY)?)?;
    let told = open.wait(Duration::from_secs(15))?.json()?;
    ensure!(told["received"] == "hello" && told["end"] == "reset", "{told}");
    ensure!(told["end_ms"].as_f64().is_some_and(|ms| ms < 10_000.0), "{told}");
    let client = text(&told["getsockname"]).to_owned();
    // The agent that hears of the policy first cuts it, and says why.
    let said = |node| -> Result<bool> {
        let record = shop.mesh.record(node, &[(names::CLIENT, &client)])?;
        Ok(field(&record, "reason").contains("policy changed: denied by AuthorizationPolicy shop/closed"))
    };
    ensure!(said(1)? || said(2)?, "no record says why\n{}", shop.mesh.logs());
    Ok(())
}

#[test]
fn enrolling_and_unenrolling_a_running_pod_restarts_nothing() -> Result<()> {
    let shop = Shop::open_with(Options::default(), false)?;
    let to = shop.api.at(ECHO);
    let text = "bytes-of-the-ticker";
    let ticking = ["ticker", "--to", &to, "--text", text, "--every-ms", "50"];
    let ticker = shop.web.spawn_peer(&ticking)?;
    // New pods are held until they are known.
    shop.mesh.in_force("a tick of pods that are not enrolled", || {
        ensure!(ticker.stdout().contains("\"ok\""), "{}", ticker.stdout());
        Ok(())
    })?;
    let old = ["talk", "--to", &to, "--send", "hello", "--again-after-ms", "4000", "--limit", "10"];
    let old = shop.web.spawn_peer(&old)?;
    let seen = |name| -> Result<bool> {
        let capture = Capture::start(&shop.mesh.world, 2, name)?;
        std::thread::sleep(Duration::from_millis(700));
        Ok(capture.stop()?.contains(text.as_bytes()))
    };
    ensure!(seen("before")?, "before enrolment the link must carry plaintext");
    shop.mesh.manifests.namespace("shop", true)?;
    shop.mesh.enrolled(&[&shop.web, &shop.api])?;
    shop.mesh.record(2, &[(names::SOURCE_ID, &shop.web.spiffe_id())])?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(!seen("enrolled")?, "plaintext while enrolled");
    let told = old.wait(Duration::from_secs(15))?.json()?;
    ensure!(told["received"] == "hellohello", "a connection older than enrolment goes on: {told}");
    shop.mesh.manifests.namespace("shop", false)?;
    shop.mesh.in_force("the pods to be let go", || {
        ensure!(!shop.web.listens(15001) && !shop.api.listens(15001), "still enrolled");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(seen("after")?, "after un-enrolment the link must carry plaintext");
    let ticks = ticker.stdout();
    let failed: Vec<&str> = ticks.lines().filter(|line| !line.contains("\"ok\"")).collect();
    ensure!(failed.len() <= 5, "{} of {} failed: {failed:?}", failed.len(), ticks.lines().count());
    Ok(())
}

#[test]
fn a_pod_opts_out_where_the_mesh_config_lets_it() -> Result<()> {
    let shop = Shop::open()?;
    shop.mesh.manifests.pod_with(&shop.web, &[("ferromesh.io/enrolled", "false")])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(shop.web.listens(15001), "nobody allowed it to leave");
    shop.mesh.manifests.mesh_config("shop", json!({ "allowOptOut": true }))?;
    shop.mesh.in_force("web to be let go", || {
        ensure!(!shop.web.listens(15001), "still enrolled");
        Ok(())
    })?;
    let told = shop.until_asking(&shop.web, &shop.api.at(ECHO), true)?;
    ensure!(is_echoed(&told));
    let record = shop.mesh.record(2, &[(names::CLIENT, text(&told["getsockname"]))])?;
    has(&record, names::SOURCE_ID, names::NOBODY)
}
