//! Units as they come and go (ADR 0013): what begins before an agent knows of it, what is older than the enrolment, and what an
//! agent that is away must not hold up.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::apps::{listening, peer_server};
use mesh_tests::capture::Capture;
use mesh_tests::manifests::from_account;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Pod, PodSpec, Process, netns, remove_cgroup};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::shop::{ECHO, NAMES, came_to_nothing, text};
use crate::units::{HANDED, Host, SSHD, answered, ask, is_answered, says_whose_it_is, ways};

/// systemd stops a unit and starts it: another cgroup of the same name.
fn restart(unit: &Pod) -> Result<()> {
    remove_cgroup(unit.cgroup())?;
    fs::create_dir(unit.cgroup()).with_context(|| unit.cgroup().display().to_string())
}

#[test]
fn a_unit_that_starts_anew_is_in_the_mesh_from_its_first_connection_on() -> Result<()> {
    const SECRET: &str = "first-word-of-a-unit";
    let host = Host::open("STRICT")?;
    let vault = host.mesh.pod("shop", "vault", 2)?;
    let _vault = peer_server(&vault, "echo", ECHO, &[])?;
    host.mesh.enrolled(&[&vault])?;
    let talk = |to: &str| host.api.peer(&["talk", "--to", to, "--send", SECRET, "--half-close"]);
    host.mesh.in_force("the vault to answer", || {
        let told = talk(&vault.at(ECHO))?;
        ensure!(told["received"] == SECRET, "{told}");
        Ok(())
    })?;
    let capture = Capture::start(&host.mesh.world, 2, "restarts")?;
    for turn in 0..8 {
        restart(&host.api)?;
        let to = if turn % 2 == 0 { vault.at(ECHO) } else { vault.at6(ECHO) };
        let told = talk(&to)?;
        ensure!(told["received"] == SECRET, "turn {turn}: {told}");
    }
    let captured = capture.stop()?;
    ensure!(captured.with_port(15008) > 0 && !captured.contains(SECRET.as_bytes()), "plaintext on the link");
    ensure!(captured.with_port(ECHO) == 0, "{:?}", captured.dialled());
    Ok(())
}

#[test]
fn a_unit_that_listens_anew_is_reached_around_the_agent_at_no_moment() -> Result<()> {
    let host = Host::open("STRICT")?;
    for turn in 0..6 {
        restart(&host.db)?;
        let _server = peer_server(&host.db, "names", NAMES, &[])?;
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_millis(600) {
            for to in &ways(&host.db, NAMES)[..2] {
                let told = host.login.peer(&["talk", "--to", to, "--half-close", "--timeout-ms", "100"])?;
                ensure!(came_to_nothing(&told), "turn {turn}: {told}");
            }
        }
        for to in ways(&host.db, NAMES) {
            let told = host.until(&host.api, &to, true)?;
            host.recorded(&told, &host.api, &host.db)?;
        }
    }
    Ok(())
}

/// Asks over and over until the answer comes, and says how long that took.
fn soon_answered(from: &Pod, to: &str) -> Result<Duration> {
    let began = Instant::now();
    answered(&ask(from, to)?)?;
    Ok(began.elapsed())
}

#[test]
fn a_service_that_no_manifest_names_waits_a_moment_for_a_live_agent_and_never_for_a_dead_one() -> Result<()> {
    let mut host = Host::open("STRICT")?;
    let (far, patience) = (host.mesh.world.login(2, "far")?, Duration::from_secs(3));
    let _far = peer_server(&far, "names", NAMES, &[])?;
    let fresh = |name: &str| host.mesh.world.unit(&PodSpec::new("n1", name, 1));
    for name in ["one", "two", "three"] {
        let (unit, to) = (fresh(name)?, far.at(NAMES));
        let took = soon_answered(&unit, &to)?;
        ensure!(took < patience, "{name} waited {took:?}");
    }
    let (late, later) = (fresh("late")?, fresh("later")?);
    host.mesh.kill_agent(1);
    // Its last sign of life has to be old.
    std::thread::sleep(Duration::from_secs(6));
    for unit in [&late, &later, &host.mesh.world.unit(&PodSpec::new("n1", "latest", 1))?] {
        let took = soon_answered(unit, &far.at(NAMES))?;
        ensure!(took < patience, "{} waited {took:?}", unit.name());
    }
    let sshd = host.mesh.world.unit(&PodSpec::new("n1", "sshd", 1))?;
    let _sshd = peer_server(&sshd, "names", SSHD, &[])?;
    answered(&ask(&far, &sshd.at(SSHD))?)
}

#[test]
fn an_agent_that_has_heard_of_no_unit_yet_holds_up_nobody() -> Result<()> {
    let mut host = Host::open("STRICT")?;
    let (far, patience) = (host.mesh.world.login(2, "far")?, Duration::from_secs(3));
    let _far = peer_server(&far, "names", NAMES, &[])?;
    host.mesh.kill_controller();
    drop(host.mesh.stop_agent(1)?);
    fs::remove_file(host.mesh.world.files.join("agent-n1/snapshot"))?;
    host.mesh.launch_agent(1)?;
    // As long as the last one's sign of life counts, and a little more.
    std::thread::sleep(Duration::from_secs(7));
    ensure!(host.mesh.agent(1)?.running(), "{}", host.mesh.logs());
    let fresh = host.mesh.world.unit(&PodSpec::new("n1", "fresh", 1))?;
    let took = soon_answered(&fresh, &far.at(NAMES))?;
    ensure!(took < patience, "waited {took:?}");
    let sshd = host.mesh.world.unit(&PodSpec::new("n1", "sshd", 1))?;
    let _sshd = peer_server(&sshd, "names", SSHD, &[])?;
    answered(&ask(&far, &sshd.at(SSHD))?)?;
    // What was enrolled is closed meanwhile.
    let told =
        host.login.peer(&["talk", "--to", &host.db.at(NAMES), "--half-close", "--timeout-ms", "500"])?;
    ensure!(came_to_nothing(&told), "{told}");
    host.mesh.start_controller()?;
    host.mesh.agent_ready(1)?;
    host.until(&host.api, &host.db.at(NAMES), true).map(drop)
}

/// The older sockets that the host's agent lists.
fn listed(mesh: &Mesh) -> Result<Vec<Value>> {
    let status: Value = serde_json::from_str(&mesh.meshctl(1, &["-o", "json", "status"])?.stdout)?;
    let pods = status["agent"]["pods"].as_array().cloned().unwrap_or_default();
    Ok(pods.iter().flat_map(|pod| pod["older_sockets"].as_array().cloned().unwrap_or_default()).collect())
}

fn pulse(from: &Pod, to: &str, seconds: &str) -> Result<Process> {
    from.spawn_peer(&["pulse", "--to", to, "--seconds", seconds])
}

#[test]
fn what_two_units_began_before_their_enrolment_is_listed_and_closed_under_strict_and_nothing_else_is()
-> Result<()> {
    let mut mesh = Mesh::prepare(Options { hosts: 1, ..Options::default() })?;
    mesh.manifests.namespace("shop", false)?;
    let (db, api) = (mesh.unit("shop", "db", 1)?, mesh.unit("shop", "api", 1)?);
    let _server = peer_server(&db, "echo", ECHO, &[])?;
    mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
    mesh.start_controller()?;
    mesh.start_agent(1)?;
    let ways = ways(&db, ECHO);
    let older = ways.iter().map(|to| pulse(&api, to, "60")).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(1));
    mesh.manifests.namespace("shop", true)?;
    mesh.enrolled(&[&db, &api])?;
    // While the older ones are still looked after.
    let carried = ways.iter().map(|to| pulse(&api, to, "20")).collect::<Result<Vec<_>>>()?;
    mesh.in_force("both ends of four connections to be listed", || {
        let found = listed(&mesh)?;
        ensure!(found.len() == 8, "{found:?}");
        Ok(())
    })?;
    for older in older {
        let told = older.wait(Duration::from_secs(40))?.json()?;
        ensure!(told["outcome"] != "ok", "an older connection went on: {told}");
    }
    for carried in carried {
        let told = carried.wait(Duration::from_secs(40))?.json()?;
        ensure!(told["outcome"] == "ok", "a carried connection was ended: {told}");
    }
    mesh.in_force("nothing to be listed any more", || {
        let found = listed(&mesh)?;
        ensure!(found.is_empty(), "{found:?}");
        Ok(())
    })?;
    let told = ask(&api, &db.at(ECHO))?;
    ensure!(is_answered(&told) || text(&told["end"]) == "eof", "{told}");
    Ok(())
}

/// A server of `db` that accepts nothing, with a queue that is full: what the agent dials there from now on stays unanswered, and
/// its records stay.
fn deaf(host: &Host) -> Result<(Process, Process)> {
    netns::sysctl(host.db.netns(), &[("net/core/somaxconn", "1")])?;
    let server = says_whose_it_is(&host.db)?;
    netns::sysctl(host.db.netns(), &[("net/core/somaxconn", "4096")])?;
    server.signal(Signal::STOP)?;
    let hog = host.api.spawn_peer(&["hog", "--to", &format!("127.0.0.1:{HANDED}"), "--count", "6"])?;
    Ok((server, hog))
}

/// Where the agent's dials that nobody has answered yet come from.
fn unanswered(host: &Host) -> Result<Vec<Ipv4Addr>> {
    let table = netns::inside(host.db.netns(), || fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let from = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        let word = u32::from_str_radix(local.split(':').next()?, 16).ok().filter(|_| state == "02")?;
        let address = Ipv4Addr::from(word.swap_bytes());
        (address.octets()[0] == 127 && (64..128).contains(&address.octets()[1])).then_some(address)
    };
    Ok(table.lines().filter_map(from).collect())
}

#[test]
fn who_dials_from_the_address_of_an_agents_record_is_still_not_the_agent() -> Result<()> {
    let host = Host::open("STRICT")?;
    let _deaf = deaf(&host)?;
    // Its clients are patient, and so are the dials.
    let full = format!("127.0.0.1:{HANDED}");
    let wait = ["talk", "--to", &full, "--timeout-ms", "20000"];
    let _waiting = (0..4).map(|_| host.api.spawn_peer(&wait)).collect::<Result<Vec<_>>>()?;
    let to = format!("127.0.0.1:{NAMES}");
    let (mut tried, began) = (0, Instant::now());
    while tried < 3 {
        ensure!(began.elapsed() < Duration::from_secs(30), "only {tried} dials to try beside");
        let ask_from = |from: &Ipv4Addr| {
            let bind = format!("{from}:0");
            host.login.spawn_peer(&["talk", "--bind", &bind, "--to", &to, "--timeout-ms", "500"])
        };
        let from = unanswered(&host)?;
        let asking = from.iter().map(ask_from).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(Duration::from_millis(700));
        // Only one of a dial that is still open says anything.
        let still = unanswered(&host)?;
        for (from, asking) in from.iter().zip(asking).filter(|(from, _)| still.contains(from)) {
            let told = asking.stdout();
            ensure!(!told.contains("getpeername"), "{from} is taken for the agent: {told}");
            tried += 1;
        }
    }
    answered(&ask(&host.api, &to)?)
}

#[test]
fn a_port_that_passes_to_another_unit_while_it_is_dialled_gets_nothing_of_the_connection() -> Result<()> {
    let host = Host::open("STRICT")?;
    host.mesh.manifests.policy(("shop", "web"), "web", "DENY", from_account("shop", "api"))?;
    host.mesh.in_force("web to deny api", || {
        let _server = says_whose_it_is(&host.web)?;
        let told = ask(&host.api, &format!("127.0.0.1:{HANDED}"))?;
        ensure!(!is_answered(&told), "{told}");
        Ok(())
    })?;
    let (mut server, _hog) = deaf(&host)?;
    let to = format!("127.0.0.1:{HANDED}");
    host.mesh.in_force("the queue to be full", || {
        ensure!(!unanswered(&host)?.is_empty(), "every dial is answered");
        Ok(())
    })?;
    let mut asking = Vec::new();
    for _ in 0..5 {
        asking.push(host.api.spawn_peer(&["talk", "--to", &to, "--half-close", "--timeout-ms", "8000"])?);
        std::thread::sleep(Duration::from_millis(150));
    }
    ensure!(unanswered(&host)?.len() >= asking.len(), "they are answered");
    server.kill();
    // Before the kernel sends a SYN again.
    let _server = says_whose_it_is(&host.web)?;
    for asking in asking {
        let told = asking.wait(Duration::from_secs(40))?.json()?;
        ensure!(
            text(&told["received"]).is_empty(),
            "asked for db, allowed for db, and answered by web: {told}"
        );
    }
    Ok(())
}

#[test]
fn a_port_on_one_address_is_not_the_port_on_another() -> Result<()> {
    let mut host = Host::open("STRICT")?;
    let mesh = &host.mesh;
    let (sshd, far) = (mesh.world.unit(&PodSpec::new("n1", "sshd", 1))?, mesh.world.login(2, "far")?);
    let serve = |unit: &Pod, at: &str| -> Result<Process> {
        let server = unit.spawn_peer(&["banner", "--listen", at, "--text", &unit.spec.name])?;
        listening(unit, HANDED, &server)?;
        Ok(server)
    };
    let says = |from: &Pod, to: &str| -> Result<String> { Ok(text(&ask(from, to)?["received"]).to_owned()) };
    // One of a unit's, beside one of nobody's.
    let (home, out) = (format!("127.0.0.1:{HANDED}"), sshd.at(HANDED));
    let servers = [serve(&host.db, &home)?, serve(&sshd, &out)?];
    host.until(&host.api, &home, true)?;
    ensure!(says(&host.api, &home)? == "db" && says(&host.api, &out)? == "sshd");
    for from in [&host.login, &far] {
        ensure!(says(from, &out)? == "sshd", "{}", from.name());
    }
    ensure!(says(&host.login, &home)?.is_empty(), "strict let a stranger in");
    drop(servers);
    // Two units, each on every address of one family.
    netns::sysctl(host.db.netns(), &[("net/ipv6/bindv6only", "1")])?;
    let _servers =
        [serve(&host.db, &format!("0.0.0.0:{HANDED}"))?, serve(&host.web, &format!("[::]:{HANDED}"))?];
    let (v4, v6) = (host.db.at(HANDED), host.db.at6(HANDED));
    for (to, unit) in
        [(&home, &host.db), (&v4, &host.db), (&format!("[::1]:{HANDED}"), &host.web), (&v6, &host.web)]
    {
        let told = host.until(&host.api, to, true)?;
        ensure!(told["received"] == unit.spec.name, "{to}: {told}");
        host.recorded(&told, &host.api, unit)?;
    }
    host.mesh.kill_agent(1);
    ensure!(
        says(&host.login, &v4)?.is_empty() && says(&host.login, &v6)?.is_empty(),
        "open with a dead agent"
    );
    Ok(())
}

#[test]
fn a_lost_agent_opens_only_the_units_whose_owner_chose_it() -> Result<()> {
    let mut host = Host::open("PERMISSIVE")?;
    let mesh = &host.mesh;
    mesh.manifests.namespace("vault", true)?;
    let (safe, far) = (mesh.unit("vault", "safe", 1)?, mesh.world.login(2, "far")?);
    let _servers = [peer_server(&safe, "names", HANDED, &[])?, peer_server(&far, "names", NAMES, &[])?];
    let (patience, strict) = (json!({ "agentLostAfter": "3s" }), json!({ "mode": "STRICT" }));
    mesh.manifests.mesh_config("shop", patience)?;
    mesh.manifests.mesh_config("vault", json!({ "agentLostAfter": "3s", "mtls": strict }))?;
    mesh.enrolled(&[&safe])?;
    mesh.in_force("the choice to be known", || {
        let dump = mesh.meshctl(1, &["-o", "json", "dump"])?.json()?;
        ensure!(dump.to_string().matches("\"opens_after_seconds\":3").count() == 3, "{dump}");
        Ok(())
    })?;
    // The kernel is told right after.
    std::thread::sleep(Duration::from_secs(1));
    host.mesh.kill_agent(1);
    for from in [&host.login, &far] {
        let told = from.peer(&["talk", "--to", &host.db.at(NAMES), "--half-close", "--timeout-ms", "500"])?;
        ensure!(came_to_nothing(&told), "{told}");
    }
    std::thread::sleep(Duration::from_secs(6));
    for to in ways(&host.db, NAMES) {
        for from in [&host.login, &host.api] {
            answered(&ask(from, &to)?).with_context(|| format!("{} to {to}", from.name()))?;
        }
    }
    answered(&ask(&far, &host.db.at(NAMES))?)?;
    answered(&ask(&host.api, &far.at(NAMES))?)?;
    for from in [&host.login, &host.api, &far] {
        let to = safe.at(HANDED);
        let told = from.peer(&["talk", "--to", &to, "--half-close", "--timeout-ms", "500"])?;
        ensure!(came_to_nothing(&told), "{} to a strict unit: {told}", from.name());
    }
    host.mesh.start_agent(1)?;
    for to in ways(&host.db, NAMES) {
        let told = host.until(&host.api, &to, true)?;
        host.recorded(&told, &host.api, &host.db)?;
    }
    Ok(())
}
