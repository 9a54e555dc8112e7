//! Connections that are older than the enrolment of their pods: a real psql session, opened before the label, and those whose
//! SYN is under way when the pod is enrolled or the programs are attached.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use mesh_tests::apps;
use mesh_tests::capture::Capture;
use mesh_tests::mesh::Options;
use mesh_tests::poll;
use mesh_tests::world::{Pod, PodSpec, Process, netns};
use serde_json::{Value, json};

use crate::shop::{ECHO, Shop, echoed, is_echoed, text};

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

/// `pod` hears `client`, and answers nothing; or does again.
fn unanswering(pod: &Pod, client: &Pod, begins: bool) -> Result<()> {
    let verb = if begins { "add" } else { "del" };
    let lines = [format!("{}/32", client.v4), format!("{}/128", client.v6)];
    netns::batch(pod.netns(), &lines.map(|to| format!("route {verb} blackhole {to}")))
}

/// Gateways that nobody has the addresses of.
const ABSENT: [&str; 2] = ["169.254.1.9", "fe80::9"];

/// What `pod` answers waits in its kernel, for longer than a test lasts.
fn answers_wait(pod: &Pod) -> Result<()> {
    let patient = ["net/ipv4/neigh/eth0/mcast_solicit", "net/ipv6/neigh/eth0/mcast_solicit"];
    netns::sysctl(pod.netns(), &patient.map(|key| (key, "200")))?;
    for gateway in ABSENT {
        pod.run("ip", &["neigh", "flush", "to", gateway, "nud", "all"])?.success()?;
    }
    netns::batch(
        pod.netns(),
        &ABSENT.map(|gateway| format!("route replace default via {gateway} dev eth0 onlink")),
    )
}

/// What waits leaves, and whatever is answered from now on.
fn answers_leave(pod: &Pod) -> Result<()> {
    let known = pod.run("ip", &["-j", "neigh", "show", "169.254.1.1"])?.json()?;
    let node = text(&known[0]["lladdr"]);
    let found = |gateway| format!("neigh replace {gateway} lladdr {node} dev eth0 nud permanent");
    netns::batch(pod.netns(), &ABSENT.map(found))
}

/// Begins to dial `to`, and waits for as long as it takes.
fn dialling(from: &Pod, to: &str) -> Result<Process> {
    from.spawn_peer(&["talk", "--to", to, "--send", "hello", "--half-close", "--timeout-ms", "60000"])
}

/// Waits until the kernel has let go of the programs whose pins were removed, which it does when it finds the time.
fn nothing_is_attached(shop: &Shop, late: &Pod, outsider: &Pod) -> Result<()> {
    for (from, to) in [(late, outsider), (&shop.web, &shop.api)] {
        for to in [to.at(ECHO), to.at6(ECHO)] {
            shop.until_asking(from, &to, true)?;
        }
    }
    Ok(())
}

/// Waits until so many sockets of the pod wait for the answer of an echo server, and not of an agent.
fn all_dial(shop: &Shop, pod: &Pod, clients: &[Process]) -> Result<()> {
    shop.mesh.in_force("the SYNs to be under way", || {
        let (states, said) = (pod.connecting(ECHO)?, clients.iter().map(Process::stdout).collect::<String>());
        ensure!(states == clients.len() && said.is_empty(), "{states} of {} dial: {said}", clients.len());
        Ok(())
    })
}

/// How many SYNs the programs of node 1 did not let out for this reason.
fn kept_back(shop: &Shop, reason: &str) -> Result<f64> {
    Ok(shop.mesh.metrics(1)?.sum("ferromesh_kernel_decisions_total", &[("reason", reason)]))
}

/// Each ends, and none was connected.
fn each_is_told(clients: Vec<Process>) -> Result<()> {
    for client in clients {
        let told = client.wait(Duration::from_secs(30))?.json()?;
        ensure!(told["connect"] != "ok", "{told}");
    }
    Ok(())
}

#[test]
fn a_syn_that_is_under_way_when_its_pod_is_enrolled_is_not_sent_again_and_its_client_is_told() -> Result<()> {
    let shop = Shop::open_with(Options::default(), false)?;
    unanswering(&shop.api, &shop.web, true)?;
    let before = Capture::start(&shop.mesh.world, 1, "before")?;
    let mut clients = Vec::new();
    // A SYN is sent again each second: one of them is due at any moment.
    for to in [shop.api.at(ECHO), shop.api.at6(ECHO)].iter().cycle().take(12) {
        clients.push(dialling(&shop.web, to)?);
        thread::sleep(Duration::from_millis(80));
    }
    ensure!(before.stop()?.dialled().get(&ECHO) >= Some(&12), "they do not dial");
    shop.mesh.manifests.namespace("shop", true)?;
    shop.mesh.enrolled(&[&shop.web, &shop.api])?;
    let after = Capture::start(&shop.mesh.world, 1, "after")?;
    unanswering(&shop.api, &shop.web, false)?;
    each_is_told(clients)?;
    let after = after.stop()?;
    ensure!(after.with_port(ECHO) == 0, "{:?}", after.dialled());
    ensure!(kept_back(&shop, "syn_unseen")? >= 1.0, "no SYN was kept back");
    echoed(&shop.ask()?)
}

/// A shop that is enrolled, a pod on the same node that nobody knows, and one outside of the mesh. As after a boot, nothing of
/// the mesh is in the kernel of node 1.
fn booting() -> Result<(Shop, Pod, Pod)> {
    let mut shop = Shop::open_with(Options { unclassified: "hold".to_owned(), ..Options::default() }, true)?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    shop.serve(&outsider)?;
    let late = shop.mesh.world.pod(&PodSpec::new("plain", "late", 1))?;
    shop.mesh.kill_agent(1);
    fs::remove_dir_all(&shop.mesh.world.node(1).pins)?;
    nothing_is_attached(&shop, &late, &outsider)?;
    Ok((shop, late, outsider))
}

#[test]
fn a_syn_that_is_under_way_when_the_programs_are_attached_waits_until_its_pod_is_known() -> Result<()> {
    let (mut shop, late, outsider) = booting()?;
    unanswering(&outsider, &late, true)?;
    unanswering(&shop.api, &shop.web, true)?;
    let mut enrolled = Vec::new();
    let mut unknown = Vec::new();
    for _ in 0..4 {
        enrolled.push(dialling(&shop.web, &shop.api.at(ECHO))?);
        unknown.push(dialling(&late, &outsider.at(ECHO))?);
        unknown.push(dialling(&late, &outsider.at6(ECHO))?);
        thread::sleep(Duration::from_millis(250));
    }
    all_dial(&shop, &shop.web, &enrolled)?;
    all_dial(&shop, &late, &unknown)?;
    shop.mesh.start_agent(1)?;
    let capture = Capture::start(&shop.mesh.world, 1, "attached")?;
    unanswering(&outsider, &late, false)?;
    unanswering(&shop.api, &shop.web, false)?;
    each_is_told(enrolled)?;
    shop.mesh.in_force("SYNs of a pod that nobody knows to be kept back", || {
        let kept = kept_back(&shop, "syn_unseen_held")?;
        ensure!(kept >= 8.0, "{kept}");
        Ok(())
    })?;
    for client in &unknown {
        ensure!(client.stdout().is_empty(), "one did not wait: {}", client.stdout());
    }
    let captured = capture.stop()?;
    ensure!(captured.with_port(ECHO) == 0, "{:?}", captured.dialled());
    // It is of no mesh: its SYN leaves when it is sent again.
    shop.mesh.manifests.pod(&late)?;
    for client in unknown {
        echoed(&client.wait(Duration::from_secs(60))?.json()?)?;
    }
    echoed(&shop.ask()?)
}

#[test]
fn the_answer_to_a_syn_that_left_before_the_programs_were_attached_opens_no_connection() -> Result<()> {
    let (mut shop, late, outsider) = booting()?;
    for server in [&outsider, &shop.api] {
        answers_wait(server)?;
    }
    let mut enrolled = Vec::new();
    let mut unknown = Vec::new();
    for _ in 0..4 {
        enrolled.push(dialling(&shop.web, &shop.api.at(ECHO))?);
        unknown.push(dialling(&late, &outsider.at(ECHO))?);
    }
    all_dial(&shop, &shop.web, &enrolled)?;
    all_dial(&shop, &late, &unknown)?;
    shop.mesh.start_agent(1)?;
    let capture = Capture::start(&shop.mesh.world, 1, "answered")?;
    for server in [&outsider, &shop.api] {
        answers_leave(server)?;
    }
    each_is_told(enrolled)?;
    for client in &unknown {
        ensure!(client.stdout().is_empty(), "one did not wait: {}", client.stdout());
    }
    let captured = capture.stop()?;
    ensure!(captured.accepted(ECHO).count() >= 8, "no answers: {:?}", captured.segments);
    ensure!(!captured.contains(b"hello"), "a client spoke");
    shop.mesh.manifests.pod(&late)?;
    for client in unknown {
        echoed(&client.wait(Duration::from_secs(60))?.json()?)?;
    }
    echoed(&shop.ask()?)
}

/// Enrols `shop` while answers to what `web` dialled are on their way, and lets these arrive. How many clients were echoed.
fn joined(shop: &Shop, outsider: &Pod) -> Result<usize> {
    answers_wait(outsider)?;
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(dialling(&shop.web, &outsider.at(ECHO))?);
        thread::sleep(Duration::from_millis(80));
    }
    all_dial(shop, &shop.web, &clients)?;
    let before = kept_back(shop, "syn_unseen")?;
    shop.mesh.manifests.namespace("shop", true)?;
    // One is due to be sent again at any moment: when it is kept back the pod has joined.
    poll::until_true("a SYN to be kept back", Duration::from_secs(20), || {
        kept_back(shop, "syn_unseen").is_ok_and(|kept| kept > before)
    })?;
    answers_leave(outsider)?;
    let mut echoes = 0;
    for client in clients {
        echoes += usize::from(is_echoed(&client.wait(Duration::from_secs(30))?.json()?));
    }
    Ok(echoes)
}

#[test]
fn what_a_pod_dialled_before_it_joined_is_still_answered() -> Result<()> {
    let mut shop = Shop::open_with(Options::default(), false)?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    shop.serve(&outsider)?;
    // The agent ends what has no answer a second after the enrolment: on a busy machine an answer may come later.
    for _ in 0..3 {
        if joined(&shop, &outsider)? > 0 {
            return Ok(());
        }
        shop.mesh.manifests.namespace("shop", false)?;
        shop.mesh.in_force("the pods to leave the mesh", || {
            ensure!(!shop.web.listens(15001) && !shop.api.listens(15001), "they are enrolled");
            Ok(())
        })?;
    }
    bail!("no client was answered")
}

#[test]
fn a_handshake_to_a_pod_that_is_under_way_when_it_joins_is_completed() -> Result<()> {
    // What the agents do not know is held: a pod that answers is known.
    let shop = Shop::open_with(Options { unclassified: "hold".to_owned(), ..Options::default() }, false)?;
    let outsider = shop.mesh.pod("plain", "outsider", 1)?;
    shop.until_asking(&outsider, &shop.api.at(ECHO), true)?;
    answers_wait(&shop.api)?;
    let mut clients = Vec::new();
    for to in [shop.api.at(ECHO), shop.api.at6(ECHO)].iter().cycle().take(6) {
        clients.push(dialling(&outsider, to)?);
    }
    all_dial(&shop, &outsider, &clients)?;
    shop.mesh.manifests.namespace("shop", true)?;
    shop.mesh.enrolled(&[&shop.web, &shop.api])?;
    answers_leave(&shop.api)?;
    for client in clients {
        echoed(&client.wait(Duration::from_secs(20))?.json()?)?;
    }
    let passed =
        shop.mesh.metrics(2)?.sum("ferromesh_kernel_decisions_total", &[("reason", "ingress_begun")]);
    ensure!(passed >= 6.0, "{passed} were still under way");
    Ok(())
}
