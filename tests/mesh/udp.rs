//! UDP under rules: the source's kernel refuses what a policy denies, in every family and by every call, loses nothing else, and
//! never asks anybody.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::manifests::{from_account, udp_from_account};
use mesh_tests::world::{Pod, Process};
use serde_json::{Value, json};

use crate::corners::counted;
use crate::shop::{Shop, VIP, VIP6};

/// On `api`.
const RULED: u16 = 5300;
const FREE: u16 = 5301;
const DNS: u16 = 53;
/// On the VIPs, and leads to `RULED`.
const FRONT: u16 = 1053;
const DENIED: &str = "Operation not permitted (os error 1)";

/// The shop with UDP servers on `api`, and a UDP service in front of them. `other` is a second enrolled pod beside `web`.
struct Ground {
    other: Pod,
    _servers: Vec<Process>,
    shop: Shop,
}

impl Ground {
    fn open() -> Result<Self> {
        let shop = Shop::open()?;
        let other = shop.mesh.pod("shop", "other", 1)?;
        let start = |port: u16| shop.api.spawn_peer(&["udp-echo", "--listen", &format!("[::]:{port}")]);
        let servers = [RULED, FREE, DNS].into_iter().map(start).collect::<Result<Vec<_>>>()?;
        let ports = [("ruled", FRONT, RULED), ("free", FREE, FREE)];
        shop.mesh.manifests.udp_service(("shop", "api"), &["10.99.0.53", "fd99::53"], &ports)?;
        shop.mesh.enrolled(&[&other])?;
        for server in &servers {
            shop.mesh.in_force("the UDP servers", || {
                ensure!(server.stdout().contains("bound"), "{}", server.tail());
                Ok(())
            })?;
        }
        Ok(Self { other, _servers: servers, shop })
    }

    fn policy(&self, name: &str, action: &str, rules: Value) -> Result<()> {
        self.shop.mesh.manifests.policy(("shop", name), "api", action, rules)
    }

    fn until(&self, pod: &Pod, to: &str, wanted: &str) -> Result<()> {
        self.shop.mesh.in_force(&format!("{to} from {} to be {wanted}", pod.name()), || {
            let told = ask(pod, to, &["--timeout-ms", "500"])?;
            ensure!(told["outcomes"][wanted] == 1, "{told}");
            Ok(())
        })
    }
}

fn ask(pod: &Pod, to: &str, more: &[&str]) -> Result<Value> {
    pod.peer(&[&["datagrams", "--to", to], more].concat())
}

/// Every way to send, in every family, and what is to become of it.
fn every_way(from: &Pod, api: &Pod, port: u16, wanted: &str) -> Result<()> {
    for how in ["sendto", "connected", "connected-elsewhere"] {
        let (v4, v6) = (api.at(port), api.at6(port));
        for (to, more) in [(&v4, &[][..]), (&v6, &[][..]), (&v4, &["--mapped"][..])] {
            let told = ask(from, to, &[&["--how", how], more].concat())?;
            ensure!(told["outcomes"][wanted] == 1, "{} {how} {more:?} {to}: {told}", from.name());
        }
    }
    Ok(())
}

/// What `meshctl explain` says of a datagram in its last line.
fn explained(ground: &Ground, pod: &str, to: &str, wanted: &str) -> Result<()> {
    let said = ground.shop.mesh.meshctl(1, &["explain", pod, &format!("udp://{to}")])?.success()?;
    ensure!(said.lines().last().is_some_and(|line| line.starts_with(wanted)), "{wanted}: {said}");
    Ok(())
}

#[test]
fn a_datagram_is_refused_to_whom_no_rule_allows_it_and_to_nobody_else() -> Result<()> {
    let ground = Ground::open()?;
    let (web, api, other) = (&ground.shop.web, &ground.shop.api, &ground.other);
    let plain = ground.shop.mesh.pod("plain", "outsider", 1)?;
    every_way(other, api, RULED, "echoed")?;
    ground.policy("udp", "ALLOW", udp_from_account("shop", "web", &[RULED]))?;
    ground.until(other, &api.at(RULED), DENIED)?;
    every_way(other, api, RULED, DENIED)?;
    every_way(web, api, RULED, "echoed")?;
    every_way(other, api, FREE, "echoed")?;
    every_way(other, api, DNS, "echoed")?;
    // Un-enrolled pods are untouched; nobody can say who they are. The first datagrams wait for nothing.
    every_way(&plain, api, RULED, "echoed")?;
    // A virtual address is refused as what is behind it; where it is not, whoever serves it takes it on.
    for vip in ["10.99.0.53", "[fd99::53]"] {
        let told = ask(other, &format!("{vip}:{FRONT}"), &["--timeout-ms", "300"])?;
        ensure!(told["outcomes"][DENIED] == 1, "{vip}: {told}");
        let told = ask(web, &format!("{vip}:{FRONT}"), &["--timeout-ms", "300"])?;
        ensure!(told["outcomes"][DENIED].is_null(), "{vip}: {told}");
    }
    ensure!(counted(&ground.shop, "udp_denied")? >= 11.0, "{}", counted(&ground.shop, "udp_denied")?);
    ensure!(counted(&ground.shop, "udp_table_full")? == 0.0);
    // TCP goes by its own rules: this policy has none for it.
    crate::shop::echoed(&ground.shop.ask_from(other, &format!("{VIP}:{}", crate::shop::ECHO))?)?;
    crate::shop::echoed(&ground.shop.ask_from(other, &format!("[{VIP6}]:{}", crate::shop::ECHO))?)?;
    explained(&ground, "shop/web", "10.99.0.53:1053", "ALLOWED: allowed by AuthorizationPolicy shop/udp")?;
    ground.policy("udp-deny", "DENY", udp_from_account("shop", "web", &[RULED]))?;
    ground.until(web, &api.at(RULED), DENIED)?;
    let rule =
        "DENIED: the source's kernel refuses it: denied by AuthorizationPolicy shop/udp-deny, rules[0]";
    explained(&ground, "shop/web", &api.at(RULED), rule)?;
    explained(
        &ground,
        "shop/other",
        "10.99.0.53:1053",
        "DENIED: the source's kernel refuses it: no ALLOW policy",
    )?;
    explained(&ground, "shop/other", &api.at(FREE), "PASSED THROUGH: no UDP rule speaks of this")?;
    explained(&ground, "shop/other", &api.at(DNS), "PASSED THROUGH: DNS always passes")?;
    ground.shop.mesh.in_force("the controller to say where UDP rules are enforced", || {
        let controller = ground.shop.mesh.controller()?;
        let said = format!("{}{}", controller.stdout(), controller.stderr());
        ensure!(said.contains("UDP rules are enforced at the source only"), "{said}");
        Ok(())
    })?;
    ground.shop.mesh.manifests.remove("AuthorizationPolicy", "shop", "udp")?;
    ground.until(other, &api.at(RULED), "echoed")
}

#[test]
fn a_connected_socket_is_refused_when_the_rules_have_changed_since_its_connect() -> Result<()> {
    let ground = Ground::open()?;
    let (api, other) = (&ground.shop.api, &ground.other);
    let steady = ["--how", "connected", "--count", "30000", "--pause-us", "5000", "--until-refused"];
    let flow =
        |to: &str, more: &[&str]| other.spawn_peer(&[&["datagrams", "--to", to], &steady[..], more].concat());
    let flows =
        [flow(&api.at(RULED), &[])?, flow(&api.at6(RULED), &[])?, flow(&api.at(RULED), &["--mapped"])?];
    let mut free = flow(&api.at(FREE), &[])?;
    // Each has its socket, and an echo, by then.
    thread::sleep(Duration::from_millis(500));
    ground.policy("udp", "ALLOW", udp_from_account("shop", "web", &[RULED]))?;
    for flow in flows {
        let told = flow.wait(Duration::from_secs(60))?.json()?;
        ensure!(told["outcomes"][DENIED] == 1 && told["outcomes"]["echoed"].as_u64() > Some(0), "{told}");
    }
    ensure!(free.running(), "a port that no rule names: {}", free.tail());
    Ok(())
}

#[test]
fn tables_are_swapped_under_load_and_not_one_query_is_lost() -> Result<()> {
    let ground = Ground::open()?;
    let (web, api) = (&ground.shop.web, &ground.shop.api);
    let paced = ["--count", "10000", "--timeout-ms", "5000", "--pause-us", "1000"];
    let mut dns = web.spawn_peer(&[&["datagrams", "--to", &api.at(DNS), "--fresh"], &paced[..]].concat())?;
    let mut flow = web.spawn_peer(&[&["datagrams", "--to", &api.at(RULED)], &paced[..]].concat())?;
    let mut changes = 0_u16;
    while dns.running() || flow.running() {
        // The flow stays allowed in all of them; DNS is named, and never denied.
        ground.policy("allow", "ALLOW", udp_from_account("shop", "web", &[RULED, 6000 + changes]))?;
        ground.policy("deny", "DENY", udp_from_account("shop", "web", &[DNS, 7000 + changes]))?;
        ground.until(&ground.other, &api.at(6000 + changes), DENIED)?;
        ground.until(web, &api.at(7000 + changes), DENIED)?;
        changes += 1;
    }
    let minute = Duration::from_secs(60);
    for (name, process) in [("dns", dns), ("flow", flow)] {
        let told = process.wait(minute)?.json()?;
        ensure!(told["outcomes"] == json!({ "echoed": 10_000 }), "{name}, {changes} changes: {told}");
    }
    ensure!(changes >= 10, "only {changes} changes");
    ground.until(&ground.other, &api.at(RULED), DENIED)
}

#[test]
fn rules_that_do_not_fit_refuse_all_but_dns_and_the_status_says_so() -> Result<()> {
    let ground = Ground::open()?;
    let (web, api, other) = (&ground.shop.web, &ground.shop.api, &ground.other);
    let ports: Vec<u16> = (10_000..20_000).collect();
    ground.policy("many", "DENY", udp_from_account("shop", "other", &ports))?;
    ground.until(other, &api.at(FREE), DENIED)?;
    every_way(other, api, DNS, "echoed")?;
    every_way(web, api, FREE, "echoed")?;
    ensure!(counted(&ground.shop, "udp_table_full")? >= 1.0);
    ground.shop.mesh.in_force("the status to say so", || {
        let status = ground.shop.mesh.meshctl(1, &["status"])?;
        ensure!(status.stdout.contains("UDP rules do not fit"), "{status:?}");
        Ok(())
    })?;
    ground.policy("many", "DENY", udp_from_account("shop", "other", &[10_000]))?;
    ground.until(other, &api.at(FREE), "echoed")?;
    ground.until(other, &api.at(10_000), DENIED)
}

#[test]
fn rules_stay_in_force_while_the_agent_is_dead_and_are_adopted_by_the_next() -> Result<()> {
    let mut ground = Ground::open()?;
    let to = ground.shop.api.at(RULED);
    let kept = ground.shop.mesh.world.files.join("agent-n1/snapshot");
    let before = ground.shop.mesh.in_force("the pods to be on disk", || {
        let bytes = std::fs::read(&kept)?;
        ensure!(bytes.windows(8).any(|window| window == b"sa/other"), "{} bytes", bytes.len());
        Ok(bytes)
    })?;
    ground.policy("udp", "ALLOW", udp_from_account("shop", "web", &[RULED]))?;
    ground.until(&ground.other, &to, DENIED)?;
    ground.shop.mesh.kill_agent(1);
    every_way(&ground.other, &ground.shop.api, RULED, DENIED)?;
    every_way(&ground.shop.web, &ground.shop.api, RULED, "echoed")?;
    // What is on disk may be older than the rules, as after an agent that died at once: it does not take them back.
    std::fs::write(&kept, before)?;
    ground.shop.mesh.kill_controller();
    ground.shop.mesh.launch_agent(1)?;
    ground.shop.mesh.enrolled(&[&ground.other, &ground.shop.web])?;
    every_way(&ground.other, &ground.shop.api, RULED, DENIED)?;
    ground.shop.mesh.start_controller()?;
    ground.shop.mesh.agent_ready(1)?;
    every_way(&ground.other, &ground.shop.api, RULED, DENIED)?;
    every_way(&ground.shop.web, &ground.shop.api, RULED, "echoed")?;
    // A rule of TCP in its place says nothing of UDP.
    ground.policy("udp", "ALLOW", from_account("shop", "web"))?;
    ground.until(&ground.other, &to, "echoed")
}
