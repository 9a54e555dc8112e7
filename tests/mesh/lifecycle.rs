//! Programs of the mesh that go and come back, and configuration that is wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps;
use mesh_tests::capture::Capture;
use mesh_tests::manifests::from_account;
use mesh_tests::mesh::Options;
use serde_json::Value;

use crate::shop::{ECHO, Shop, VIP, came_to_nothing, echoed, text};

#[test]
fn the_mesh_works_on_while_the_controller_is_away_and_takes_changes_when_it_is_back() -> Result<()> {
    let mut shop = Shop::open()?;
    echoed(&shop.ask()?)?;
    shop.mesh.kill_controller();
    for _ in 0..5 {
        echoed(&shop.ask()?)?;
    }
    shop.mesh.manifests.policy(("shop", "only-other"), "api", "ALLOW", from_account("shop", "other"))?;
    shop.mesh.start_controller()?;
    shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), false)?;
    shop.mesh.manifests.remove("AuthorizationPolicy", "shop", "only-other")?;
    shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), true)?;
    Ok(())
}

#[test]
fn an_agent_that_starts_while_the_controller_is_away_knows_its_pods_and_fails_closed() -> Result<()> {
    let mut shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    let _echo = apps::peer_server(&outsider, "echo", ECHO, &[])?;
    shop.mesh.service(("plain", "outside"), &["10.99.0.77"], (ECHO, ECHO), &[&outsider])?;
    let (mesh_vip, plain_vip) = (format!("{VIP}:{ECHO}"), format!("10.99.0.77:{ECHO}"));
    echoed(&shop.ask()?)?;
    shop.until_asking(&shop.web, &plain_vip, true)?;
    shop.mesh.in_force("both services to be on disk", || {
        let kept = std::fs::read(shop.mesh.world.files.join("agent-n1/snapshot"))?;
        let held = |name: &str| kept.windows(name.len()).any(|window| window == name.as_bytes());
        ensure!(held("outside") && held("api"), "{} bytes", kept.len());
        Ok(())
    })?;
    let capture = Capture::start(&shop.mesh.world, 2, "alone")?;
    shop.mesh.kill_controller();
    shop.mesh.kill_agent(1);
    shop.mesh.launch_agent(1)?;
    // What needs no identity works by the snapshot on disk: the pod is served, and a service of the mesh is found.
    shop.until_asking(&shop.web, &plain_vip, true)?;
    // What needs one fails, is named, and never goes out in plaintext.
    let told = shop.web.peer(&["talk", "--to", &mesh_vip, "--send", "secret-while-alone", "--half-close"])?;
    ensure!(came_to_nothing(&told), "{told}");
    shop.mesh.record(1, &[(names::REPORTER, names::SOURCE), (names::FLAGS, "no_certificate")])?;
    let status = shop.mesh.meshctl(1, &["-o", "json", "status"])?;
    ensure!(status.stdout.contains("\"restored_from_disk\": true"), "{}{}", status.stdout, status.stderr);
    let captured = capture.stop()?;
    ensure!(!captured.contains(b"secret-while-alone"), "plaintext for want of a certificate");
    shop.mesh.start_controller()?;
    shop.until_asking(&shop.web, &mesh_vip, true)?;
    Ok(())
}

/// Outcomes of the ticker that began after `since` (milliseconds on its clock).
fn ticks(text: &str) -> Vec<Value> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Ends the agent of `node` under traffic by `end`, and starts it again; nothing may go over the link in plaintext, and
/// connections must work again soon.
fn restarted(node: u8, end: impl Fn(&mut Shop) -> Result<()>) -> Result<()> {
    let mut shop = Shop::open()?;
    let (to, word) = (format!("{VIP}:{ECHO}"), "word-of-the-ticker");
    echoed(&shop.ask()?)?;
    let direct = shop.api.at(ECHO);
    let capture = Capture::start(&shop.mesh.world, 2, "restart")?;
    let tickers = [
        shop.web.spawn_peer(&["ticker", "--to", &to, "--text", word, "--every-ms", "20"])?,
        shop.web.spawn_peer(&["ticker", "--to", &direct, "--text", word, "--every-ms", "20"])?,
    ];
    std::thread::sleep(Duration::from_millis(500));
    end(&mut shop)?;
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    shop.mesh.launch_agent(node)?;
    let mut last = Value::Null;
    while start.elapsed() < Duration::from_secs(10) {
        last = shop.ask()?;
        if crate::shop::is_echoed(&last) {
            break;
        }
    }
    let took = start.elapsed();
    ensure!(crate::shop::is_echoed(&last), "nothing works after ten seconds: {last}\n{}", shop.mesh.logs());
    eprintln!("node {node}: connections work again {} ms after the start", took.as_millis());
    ensure!(took < Duration::from_millis(1500), "it took {took:?}");
    shop.mesh.agent_ready(node)?;
    std::thread::sleep(Duration::from_millis(500));
    let captured = capture.stop()?;
    ensure!(!captured.contains(word.as_bytes()), "plaintext while the agent was away");
    for ticker in &tickers {
        let all = ticks(&ticker.stdout());
        let good = all.iter().rev().take(5).filter(|tick| tick["outcome"] == "ok").count();
        ensure!(good == 5, "the last ticks: {:?}", all.iter().rev().take(5).collect::<Vec<_>>());
    }
    Ok(())
}

#[test]
fn an_agent_that_is_killed_and_started_again_lets_nothing_out_in_plaintext() -> Result<()> {
    for node in [1, 2] {
        restarted(node, |shop| {
            shop.mesh.kill_agent(node);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn an_agent_that_is_stopped_in_order_drains_and_comes_back() -> Result<()> {
    for node in [1, 2] {
        restarted(node, |shop| {
            let ended = shop.mesh.stop_agent(node)?;
            ensure!(ended.ok(), "it ended with {}", ended.status);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_draining_agent_lets_open_connections_finish() -> Result<()> {
    let mut shop = Shop::open()?;
    let talk = [
        "talk",
        "--to",
        &format!("{VIP}:{ECHO}"),
        "--send",
        "hello",
        "--again-after-ms",
        "1500",
        "--limit",
        "10",
    ];
    let open = shop.web.spawn_peer(&talk)?;
    std::thread::sleep(Duration::from_millis(500));
    let ended = shop.mesh.stop_agent(1)?;
    let told = open.wait(Duration::from_secs(15))?.json()?;
    ensure!(told["received"] == "hellohello", "{told}");
    ensure!(ended.ok(), "it ended with {}", ended.status);
    Ok(())
}

#[test]
fn a_malformed_manifest_keeps_the_last_good_state_and_is_named_with_its_line() -> Result<()> {
    let mut shop = Shop::open()?;
    let rules = from_account("shop", "web");
    shop.mesh.manifests.policy(("shop", "web-only"), "api", "ALLOW", rules)?;
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    let to = format!("{VIP}:{ECHO}");
    shop.until_asking(&other, &to, false)?;
    let file = "authorizationpolicy-shop-web-only.yaml";
    let broken = "apiVersion: ferromesh.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata:\n  name: web-only\n  \
                  namespace: shop\nspec:\n  action: [broken\n";
    shop.mesh.manifests.put_text(file, broken)?;
    shop.mesh.in_force("the controller to name the file", || {
        let said = format!("{}{}", shop.mesh.controller()?.stdout(), shop.mesh.controller()?.stderr());
        let named =
            said.lines().any(|line| line.contains(file) && (line.contains(":7") || line.contains(":8")));
        ensure!(named, "{said}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(500));
    echoed(&shop.ask()?)?;
    ensure!(text(&shop.ask_from(&other, &to)?["received"]).is_empty(), "the policy is gone");
    // A controller that starts over the malformed file has the last good state from disk, and still names the line.
    shop.mesh.kill_controller();
    shop.mesh.start_controller()?;
    shop.mesh.in_force("the new controller to name the file", || {
        let said = format!("{}{}", shop.mesh.controller()?.stdout(), shop.mesh.controller()?.stderr());
        ensure!(said.contains(file) && said.contains("last good state is kept"), "{said}");
        Ok(())
    })?;
    shop.mesh.in_force("the agents to be connected again", || {
        for node in [1, 2] {
            let status = shop.mesh.meshctl(node, &["-o", "json", "status"])?;
            ensure!(status.stdout.contains("\"connected\": true"), "{}", status.stdout);
        }
        Ok(())
    })?;
    echoed(&shop.ask()?)?;
    ensure!(text(&shop.ask_from(&other, &to)?["received"]).is_empty(), "the restart opened the door");
    shop.mesh.manifests.remove_file(file)?;
    shop.until_asking(&other, &to, true)?;
    Ok(())
}

#[test]
fn certificates_are_renewed_under_traffic() -> Result<()> {
    let shop = Shop::open_with(Options { svid_ttl: "8s", ..Options::default() }, true)?;
    echoed(&shop.ask()?)?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;
    std::thread::sleep(Duration::from_secs(14));
    let all = ticks(&ticker.stdout());
    let failed: Vec<&Value> = all.iter().filter(|tick| tick["outcome"] != "ok").collect();
    ensure!(all.len() > 300 && failed.is_empty(), "{} of {} failed: {failed:?}", failed.len(), all.len());
    Ok(())
}
