//! Warm tunnels and who they belong to: an address that changed hands, a certificate or a pod that ended, a policy that
//! came while a lease was idle, two pods of one service account.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::access_log::{field, names};
use mesh_tests::apps;
use mesh_tests::mesh::Options;
use mesh_tests::world::{Pod, PodSpec, netns};
use serde_json::json;

use crate::shop::{ECHO, Shop, VIP, came_to_nothing, echoed, is_echoed, was_reset};

/// Parts the controller from node 1's agent, or joins them again: what changes meanwhile, that agent does not learn.
fn part(shop: &Shop, apart: bool) -> Result<()> {
    let verb = if apart { "add" } else { "del" };
    netns::batch(&shop.mesh.world.wire().netns, &[format!("route {verb} blackhole 10.77.0.1/32")])
}

/// How many tunnels end at the pod's 15008.
fn tunnels(pod: &Pod) -> Result<usize> {
    let listed = pod.run("ss", &["-Htn", "state", "established", "sport", "=", ":15008"])?.success()?;
    Ok(listed.lines().count())
}

#[test]
fn a_pod_that_got_the_address_of_another_proves_another_identity_and_is_refused() -> Result<()> {
    let shop = Shop::open()?;
    let heir = shop.mesh.pod("shop", "heir", 2)?;
    shop.mesh.enrolled(&[&heir])?;
    echoed(&shop.ask()?)?;
    let to = shop.api.at(ECHO);
    part(&shop, true)?;
    // `heir` takes over the addresses of `api`, which is deleted; node 2 learns of both.
    shop.mesh.manifests.remove("Pod", "shop", "api")?;
    shop.mesh.in_force("api to be gone from node 2", || {
        let pods = shop.mesh.meshctl(2, &["status"])?.stdout;
        ensure!(!pods.contains(&shop.api.v4.to_string()), "{pods}");
        Ok(())
    })?;
    let mut renamed = heir.clone();
    (renamed.v4, renamed.v6) = (shop.api.v4, shop.api.v6);
    let (v4, v6) = (renamed.v4, renamed.v6);
    netns::batch(shop.api.netns(), &["link set eth0 down".to_owned()])?;
    let given = [format!("addr add {v4}/32 dev eth0"), format!("addr add {v6}/128 dev eth0 nodad")];
    netns::batch(heir.netns(), &given)?;
    let routed = [format!("route replace {v4}/32 dev p3"), format!("route replace {v6}/128 dev p3")];
    netns::batch(&shop.mesh.world.node(2).netns, &routed)?;
    shop.mesh.manifests.pod(&renamed)?;
    let _echo = apps::peer_server(&heir, "echo", ECHO, &[])?;
    shop.mesh.in_force("heir to be served at its new address", || {
        let pods = shop.mesh.meshctl(2, &["-o", "json", "status"])?.stdout;
        ensure!(pods.contains(&v4.to_string()), "{pods}");
        Ok(())
    })?;
    // Node 1 still believes that `api` is there.
    shop.mesh.in_force("the wrong identity to be noticed", || {
        let told = shop.ask_from(&shop.web, &to)?;
        ensure!(was_reset(&told) && !is_echoed(&told), "{told}");
        let record = shop.mesh.record(1, &[(names::FLAGS, "wrong_identity")])?;
        ensure!(record.to_string().contains("/sa/heir"), "{record}");
        Ok(())
    })?;
    let counted =
        shop.mesh.metrics(1)?.sum("ferromesh_handshake_failures_total", &[("reason", "wrong_identity")]);
    ensure!(counted >= 1.0, "wrong identities counted: {counted}");
    // Once node 1 knows better, the same address is the other pod's.
    part(&shop, false)?;
    shop.until_asking(&shop.web, &to, true)?;
    let record = shop.mesh.record(1, &[(names::DESTINATION_ID, &heir.spiffe_id())])?;
    ensure!(field(&record, names::DIALLED) == to, "{record}");
    Ok(())
}

#[test]
fn two_pods_of_one_service_account_are_told_apart_by_an_ip_block_on_each_connection() -> Result<()> {
    let shop = Shop::open()?;
    let twin = PodSpec { service_account: "web".to_owned(), ..PodSpec::new("shop", "twin", 1) };
    let twin = shop.mesh.pod_from(&twin)?;
    shop.mesh.enrolled(&[&twin])?;
    let to = format!("{VIP}:{ECHO}");
    shop.until_asking(&twin, &to, true)?;
    echoed(&shop.ask()?)?;
    // Both have warm tunnels now. Only the destination learns of the policy.
    part(&shop, true)?;
    let block = json!([{ "from": [{ "source": { "ipBlocks": [format!("{}/32", twin.v4)] } }] }]);
    shop.mesh.manifests.policy(("shop", "no-twin"), "api", "DENY", block)?;
    shop.until_asking(&twin, &to, false)?;
    for _ in 0..5 {
        echoed(&shop.ask()?)?;
        let told = shop.ask_from(&twin, &to)?;
        ensure!(was_reset(&told), "{told}");
    }
    let client = twin.v4.to_string();
    let denied = [(names::FLAGS, "denied_by_policy"), (names::SOURCE_ID, &twin.spiffe_id())];
    shop.mesh.in_force("every refusal to be in the log", || {
        let refused = shop.mesh.access_log(2).count(&denied);
        ensure!(refused >= 6, "{refused} refusals of {client} in the log of node 2");
        Ok(())
    })?;
    // The refused pod's tunnel was not given up: each OPEN is decided anew on it.
    shop.mesh.manifests.remove("AuthorizationPolicy", "shop", "no-twin")?;
    let before = tunnels(&shop.api)?;
    shop.until_asking(&twin, &to, true)?;
    ensure!(tunnels(&shop.api)? <= before, "a new handshake was made for it");
    part(&shop, false)
}

#[test]
fn a_lease_whose_certificate_ended_while_it_was_idle_carries_nothing_more() -> Result<()> {
    let mut shop = Shop::open_with(Options { svid_ttl: "60s", ..Options::default() }, true)?;
    echoed(&shop.ask()?)?;
    ensure!(tunnels(&shop.api)? > 0, "no lease is idle");
    // It ends, and the next connection has a new one with the certificate that was renewed meanwhile.
    std::thread::sleep(Duration::from_secs(61));
    echoed(&shop.ask()?)?;
    // Nothing is renewed any more: connections end with the certificate, open ones too.
    shop.mesh.kill_controller();
    let to = format!("{VIP}:{ECHO}");
    let open = shop.web.spawn_peer(&["talk", "--to", &to, "--send", "hello", "--timeout-ms", "70000"])?;
    let told = open.wait(Duration::from_secs(80))?.json()?;
    ensure!(told["received"] == "hello" && told["end"] == "reset", "{told}");
    shop.mesh.record(1, &[(names::FLAGS, "identity_ended")])?;
    let told = shop.ask()?;
    ensure!(came_to_nothing(&told), "{told}");
    shop.mesh.in_force("the idle tunnels to be closed", || {
        ensure!(tunnels(&shop.api)? == 0, "{} are open", tunnels(&shop.api)?);
        Ok(())
    })?;
    shop.mesh.start_controller()?;
    shop.until_asking(&shop.web, &to, true)?;
    Ok(())
}

#[test]
fn the_idle_tunnels_of_a_pod_end_with_it_at_both_sides() -> Result<()> {
    for transport in ["auto", "hbone"] {
        let shop = Shop::open_with(Options { transports: vec![transport; 2], ..Options::default() }, true)?;
        let brief = shop.mesh.pod("shop", "brief", 1)?;
        shop.mesh.enrolled(&[&brief])?;
        let to = format!("{VIP}:{ECHO}");
        shop.until_asking(&brief, &to, true)?;
        let (own, all) =
            (brief.v4.to_string(), |pod: &Pod| pod.run("ss", &["-Htn", "state", "established"])?.success());
        ensure!(all(&shop.api)?.contains(&own), "no tunnel of {own}: {}", all(&shop.api)?);
        shop.mesh.manifests.remove("Pod", "shop", "brief")?;
        std::fs::write(brief.cgroup().join("cgroup.kill"), "1")?;
        shop.mesh.in_force("the pod's cgroup to be gone", || Ok(std::fs::remove_dir(brief.cgroup())?))?;
        // Well before its ninety idle seconds.
        shop.mesh.in_force(&format!("{transport}: the tunnels of the source to be closed"), || {
            ensure!(!all(&shop.api)?.contains(&own), "{}", all(&shop.api)?);
            Ok(())
        })?;
        echoed(&shop.ask()?)?;
        let far = shop.api.v4.to_string();
        ensure!(all(&shop.web)?.contains(&far), "no tunnel to {far}: {}", all(&shop.web)?);
        shop.mesh.manifests.remove("Pod", "shop", "api")?;
        shop.mesh.in_force(&format!("{transport}: the tunnels to the destination to be closed"), || {
            ensure!(!all(&shop.web)?.contains(&far), "{}", all(&shop.web)?);
            Ok(())
        })?;
    }
    Ok(())
}
