//! Systemd units of a plain host (ADR 0013): several workloads in the host's one namespace, each known by its cgroup, beside
//! processes that no manifest names.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps::{self, peer_server};
use mesh_tests::capture::Capture;
use mesh_tests::manifests::from_account;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Pod, PodSpec, Process};
use serde_json::{Value, json};

use crate::corners::sockets;
use crate::interception::unmapped;
use crate::replacement::failed;
use crate::shop::{ECHO, NAMES, VIP, VIP6, both_records, has, text, was_reset};

/// Ports on which `db` listens on one loopback address alone.
const LOOPBACK4: u16 = 7010;
const LOOPBACK6: u16 = 7011;
/// Ports of those whom no manifest names, or whose namespace is not enrolled.
pub(crate) const SSHD: u16 = 7020;
const OWN: u16 = 7021;
const CRON: u16 = 7022;
/// Goes from hand to hand.
pub(crate) const HANDED: u16 = 7030;
/// The field of a record that names the server's workload, also where no identity was proven.
const SERVER: &str = "destination_pod";

/// Node 1 is a plain host with the units `db`, `api` and `web` of the enrolled namespace `shop`, and `login`, a process
/// that is none; node 2 has pods. `db` answers on [`NAMES`] and [`ECHO`], on every address.
pub(crate) struct Host {
    pub(crate) db: Pod,
    pub(crate) api: Pod,
    pub(crate) web: Pod,
    pub(crate) login: Pod,
    _servers: [Process; 2],
    pub(crate) mesh: Mesh,
}

impl Host {
    pub(crate) fn open(mode: &str) -> Result<Self> {
        Self::open_with(mode, Vec::new())
    }

    fn open_with(mode: &str, agent_arguments: Vec<&'static str>) -> Result<Self> {
        let mut mesh = Mesh::prepare(Options { hosts: 1, agent_arguments, ..Options::default() })?;
        mesh.manifests.namespace("shop", true)?;
        mesh.manifests.namespace("plain", false)?;
        let unit = |name| mesh.unit("shop", name, 1);
        let (db, api, web) = (unit("db")?, unit("api")?, unit("web")?);
        let login = mesh.world.login(1, "login")?;
        // Older than the agent: it finds them, nobody tells it.
        let servers = [peer_server(&db, "names", NAMES, &[])?, peer_server(&db, "echo", ECHO, &[])?];
        mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": mode } }))?;
        mesh.start_controller()?;
        mesh.start_agent(1)?;
        mesh.start_agent(2)?;
        mesh.enrolled(&[&db, &api, &web])?;
        Ok(Self { db, api, web, login, _servers: servers, mesh })
    }

    fn set_mode(&self, mode: &str) -> Result<()> {
        self.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": mode } }))
    }

    /// Only `api` may talk to `db`.
    fn db_is_for_api(&self) -> Result<()> {
        self.mesh.manifests.policy(("shop", "db"), "db", "ALLOW", from_account("shop", "api"))?;
        self.until(&self.web, &self.db.at(NAMES), false).map(drop)
    }

    /// Waits until `from` is answered at `to` (or, if `works` is false, refused).
    pub(crate) fn until(&self, from: &Pod, to: &str, works: bool) -> Result<Value> {
        self.mesh.in_force(&format!("{} to be answered at {to}: {works}", from.name()), || {
            let told = ask(from, to)?;
            if works {
                answered(&told)?
            } else {
                refused(&told)?
            }
            Ok(told)
        })
    }

    /// Fails unless the host's agent has recorded, for both ends, that `from` talked to `to`.
    pub(crate) fn recorded(&self, told: &Value, from: &Pod, to: &Pod) -> Result<()> {
        let client = text(&told["getsockname"]);
        for reporter in [names::SOURCE, names::DESTINATION] {
            let record = self.mesh.record(1, &[(names::CLIENT, client), (names::REPORTER, reporter)])?;
            has(&record, names::SOURCE_ID, &from.spiffe_id())?;
            has(&record, names::DESTINATION_ID, &to.spiffe_id())?;
        }
        Ok(())
    }

    /// Fails unless `meshctl explain` says `verdict` of a connection, and whose the port is.
    fn explained(&self, from: &Pod, to: &str, verdict: &str, owner: &str) -> Result<()> {
        let said = self.mesh.meshctl(1, &["-o", "json", "explain", &from.name(), to])?;
        let told: Value = serde_json::from_str(&said.stdout).with_context(|| said.stderr.clone())?;
        ensure!(told["verdict"] == verdict && said.stdout.contains(owner), "{told}");
        Ok(())
    }

    /// Fails unless the host's agent has recorded, as the source's, that `from` was refused at a port of `to`.
    fn recorded_refusal(&self, from: &Pod, to: &Pod, dialled: &str, flag: &str) -> Result<()> {
        let (reporter, source) = ((names::REPORTER, names::SOURCE), from.spiffe_id());
        let wanted = [reporter, (names::SOURCE_ID, &source), (names::DIALLED, dialled), (names::FLAGS, flag)];
        has(&self.mesh.record(1, &wanted)?, names::DESTINATION_ID, &to.spiffe_id())
    }

    /// Fails unless a plaintext peer, who has no identity, is refused at a port of `db`, and that is recorded.
    fn refused_as_plaintext(&self, from: &Pod, dialled: &str) -> Result<()> {
        let reporter = (names::REPORTER, names::DESTINATION);
        let strict = [reporter, (names::FLAGS, "strict_mtls"), (names::SOURCE_ID, names::NOBODY)];
        let wanted = [&strict[..], &[(names::DIALLED, dialled), (SERVER, "db")]].concat();
        let before = self.mesh.access_log(1).count(&wanted);
        refused(&ask(from, dialled)?).with_context(|| format!("{} to {dialled}", from.name()))?;
        self.mesh.in_force(&format!("a record of {}, refused at {dialled}", from.name()), || {
            ensure!(self.mesh.access_log(1).count(&wanted) > before, "no more than {before} records");
            Ok(())
        })
    }
}

/// Every address under which a port of this host is dialled on the host itself.
pub(crate) fn ways(host: &Pod, port: u16) -> [String; 4] {
    [format!("127.0.0.1:{port}"), format!("[::1]:{port}"), host.at(port), host.at6(port)]
}

/// Connects, says nothing, and hears what the server says.
pub(crate) fn ask(from: &Pod, to: &str) -> Result<Value> {
    from.peer(&["talk", "--to", to, "--half-close", "--timeout-ms", "5000"])
}

/// [`ask`] where no answer is expected.
fn ask_in_vain(from: &Pod, to: &str) -> Result<()> {
    let told = from.peer(&["talk", "--to", to, "--half-close", "--timeout-ms", "1500"])?;
    ensure!(text(&told["received"]).is_empty(), "{} to {to}: {told}", from.name());
    Ok(())
}

pub(crate) fn is_answered(told: &Value) -> bool {
    told["end"] == "eof" && !text(&told["received"]).is_empty()
}

pub(crate) fn answered(told: &Value) -> Result<()> {
    ensure!(is_answered(told), "no answer: {told}");
    Ok(())
}

fn refused(told: &Value) -> Result<()> {
    ensure!(was_reset(told) && text(&told["received"]).is_empty(), "not refused: {told}");
    Ok(())
}

/// Fails unless the client sees what it dialled, and `names` the client and itself as they are.
fn truthful(told: &Value, dialled: &str) -> Result<()> {
    answered(told)?;
    let server: Value = serde_json::from_str(text(&told["received"])).with_context(|| told.to_string())?;
    let seen = |name: &str| unmapped(text(&server[name]));
    let client = text(&told["getsockname"]);
    ensure!(told["getpeername"] == dialled, "{dialled}: {told}");
    ensure!(seen("accept") == client && seen("getpeername") == client, "{dialled}: {server} to {told}");
    ensure!(seen("getsockname") == dialled, "{dialled}: {server}");
    Ok(())
}

/// [`truthful`], and the client has the address that it has without a mesh: who dials an address of its own host has the same.
fn truthful_at_home(told: &Value, dialled: &str) -> Result<()> {
    truthful(told, dialled)?;
    let ip = |address: &str| address.rsplit_once(':').map(|(ip, _)| ip.to_owned());
    ensure!(ip(text(&told["getsockname"])) == ip(dialled), "{dialled}: {told}");
    Ok(())
}

#[test]
fn units_of_one_host_reach_each_other_as_policies_say_over_loopback_and_the_hosts_addresses() -> Result<()> {
    let host = Host::open("STRICT")?;
    // Younger than the enrolment, and not open to other hosts.
    let (home4, home6) = (format!("127.0.0.1:{LOOPBACK4}"), format!("[::1]:{LOOPBACK6}"));
    let mut servers = Vec::new();
    for (home, port) in [(&home4, LOOPBACK4), (&home6, LOOPBACK6)] {
        let server = host.db.spawn_peer(&["names", "--listen", home])?;
        apps::listening(&host.db, port, &server)?;
        servers.push(server);
    }
    host.db_is_for_api()?;
    let all: Vec<String> = ways(&host.db, NAMES).into_iter().chain([home4, home6]).collect();
    for to in &all {
        let told = host.until(&host.api, to, true)?;
        truthful_at_home(&told, to)?;
        host.recorded(&told, &host.api, &host.db)?;
        refused(&ask(&host.web, to)?).with_context(|| format!("web to {to}"))?;
        host.recorded_refusal(&host.web, &host.db, to, "no_allow_policy_matched")?;
        host.explained(&host.api, to, "allowed", "shop/db")?;
        host.explained(&host.web, to, "denied", "shop/db")?;
    }
    host.explained(&host.web, &format!("shop/db:{NAMES}"), "denied", "shop/db")?;
    host.explained(&host.api, "127.0.0.1:1", "passed_through", "no enrolled unit")?;
    // It was the policy.
    host.mesh.manifests.remove("AuthorizationPolicy", "shop", "db")?;
    host.until(&host.web, &host.db.at(NAMES), true)?;
    for to in &all {
        let told = ask(&host.web, to)?;
        truthful_at_home(&told, to)?;
        host.recorded(&told, &host.web, &host.db)?;
    }
    Ok(())
}

#[test]
fn a_process_of_the_host_that_is_no_unit_is_a_plaintext_peer_and_its_own_ports_are_untouched() -> Result<()> {
    let host = Host::open("STRICT")?;
    let world = &host.mesh.world;
    // Beside the units, but in no manifest; a unit whose namespace is not enrolled; a process of another host.
    let sshd = world.unit(&PodSpec::new("n1", "sshd", 1))?;
    let (cron, far) = (host.mesh.unit("plain", "cron", 1)?, world.login(2, "far")?);
    let own = [(&sshd, SSHD), (&host.login, OWN), (&cron, CRON)];
    let servers: Result<Vec<Process>> =
        own.iter().map(|(server, port)| peer_server(server, "names", *port, &[])).collect();
    let _servers = servers?;
    host.until(&host.login, &host.db.at(NAMES), false)?;
    for from in [&host.login, &sshd, &cron] {
        for to in ways(&host.db, NAMES) {
            host.refused_as_plaintext(from, &to)?;
        }
    }
    for port in [SSHD, OWN, CRON] {
        for from in [&host.login, &sshd, &cron] {
            for to in ways(&host.db, port) {
                truthful_at_home(&ask(from, &to)?, &to).with_context(|| from.name())?;
            }
        }
        for to in [host.db.at(port), host.db.at6(port)] {
            truthful(&ask(&far, &to)?, &to)?;
        }
        // The agent dials these for a unit, from a port of its own; it knows of nobody there.
        for to in ways(&host.db, port) {
            answered(&ask(&host.api, &to)?).with_context(|| format!("api to {to}"))?;
            let source = host.api.spiffe_id();
            let record = host.mesh.record(1, &[(names::SOURCE_ID, &source), (names::DIALLED, &to)])?;
            has(&record, names::DESTINATION_ID, names::NOBODY)?;
        }
    }
    host.set_mode("PERMISSIVE")?;
    host.until(&host.login, &host.db.at(NAMES), true)?;
    for from in [&host.login, &sshd, &cron] {
        for to in ways(&host.db, NAMES) {
            truthful_at_home(&ask(from, &to)?, &to).with_context(|| from.name())?;
        }
    }
    // Neither is `somebody`: api proves it, the others cannot.
    host.mesh.manifests.policy(("shop", "edge"), "db", "DENY", from_account("shop", "somebody"))?;
    host.until(&host.login, &host.db.at(NAMES), false)?;
    for to in ways(&host.db, NAMES) {
        refused(&ask(&host.login, &to)?).with_context(|| to.clone())?;
        answered(&ask(&host.api, &to)?).with_context(|| to.clone())?;
    }
    Ok(())
}

/// Whoever binds an address from which, or to which, agents connect hears nothing from `db`. From the same address he is
/// answered by `sshd`, which is in no policy.
fn impostors_hear_nothing(host: &Host, sshd: &Pod) -> Result<()> {
    let (db, free) = (ways(&host.db, NAMES), ways(&host.db, SSHD));
    let tokens = ["127.64.0.1:0", "127.127.255.254:0", "127.128.0.1:0", "127.255.255.254:0"];
    for (bind, to) in
        tokens.iter().flat_map(|bind| [(*bind, 0), (*bind, 2)]).chain([("[::1]:0", 1), ("[::1]:0", 3)])
    {
        let talk = |from: &Pod, to: &str| {
            from.peer(&["talk", "--bind", bind, "--to", to, "--half-close", "--timeout-ms", "1500"])
        };
        answered(&talk(&host.login, &free[to])?).with_context(|| format!("from {bind}"))?;
        for from in [&host.login, sshd] {
            let told = talk(from, &db[to])?;
            ensure!(text(&told["received"]).is_empty(), "{} from {bind}: {told}", from.name());
        }
    }
    Ok(())
}

/// A unit cannot bind what is the agent's, also not beside it.
fn a_unit_cannot_bind(unit: &Pod) -> Result<()> {
    let ports = ["0.0.0.0", "::", "127.0.0.1"]
        .into_iter()
        .flat_map(|host| ["15001", "15002", "15006", "15008"].map(|port| (host, port)));
    let addresses = [("127.64.0.1", "8000"), ("127.255.0.1", "0"), ("::ffff:127.64.0.1", "8000")];
    for (host, port) in ports.chain(addresses) {
        for more in [&[][..], &["reuse"]] {
            let told = sockets(unit, &[&["bind", host, port], more].concat())?;
            ensure!(told["bind"] == "EADDRINUSE", "{host} {port} {more:?}: {told}");
        }
    }
    let told = sockets(unit, &["bind", "127.0.0.1", "8000"])?;
    ensure!(told["listen"] == "ok", "{told}");
    Ok(())
}

#[test]
fn who_binds_the_agents_token_addresses_is_not_taken_for_the_agent() -> Result<()> {
    let mut host = Host::open("STRICT")?;
    let sshd = host.mesh.world.unit(&PodSpec::new("n1", "sshd", 1))?;
    let _sshd = peer_server(&sshd, "names", SSHD, &[])?;
    for to in ways(&host.db, NAMES) {
        answered(&ask(&host.api, &to)?)?;
    }
    impostors_hear_nothing(&host, &sshd)?;
    a_unit_cannot_bind(&host.web)?;
    // Nobody is there to refuse what the kernel takes for the agent's.
    host.mesh.kill_agent(1);
    impostors_hear_nothing(&host, &sshd)?;
    a_unit_cannot_bind(&host.web)?;
    host.mesh.start_agent(1)?;
    host.until(&host.api, &host.db.at(NAMES), true).map(drop)
}

#[test]
fn with_the_agent_dead_units_are_closed_and_the_hosts_own_services_are_not() -> Result<()> {
    // Permissive, so that it is the dead agent that closes them.
    let mut host = Host::open("PERMISSIVE")?;
    let sshd = host.mesh.world.unit(&PodSpec::new("n1", "sshd", 1))?;
    let far = host.mesh.world.login(2, "far")?;
    let _servers = [peer_server(&sshd, "names", SSHD, &[])?, peer_server(&host.login, "names", OWN, &[])?];
    for to in ways(&host.db, NAMES) {
        for from in [&host.login, &host.api] {
            answered(&ask(from, &to)?)?;
        }
    }
    host.mesh.kill_agent(1);
    // A server that comes now is no less closed.
    let young = host.web.spawn_peer(&["names", "--listen", &format!("[::]:{HANDED}")])?;
    apps::listening(&host.web, HANDED, &young)?;
    for to in ways(&host.db, NAMES).iter().chain(&ways(&host.web, HANDED)) {
        for from in [&host.login, &sshd, &host.api] {
            ask_in_vain(from, to)?;
        }
    }
    for to in [host.db.at(NAMES), host.db.at6(NAMES), host.web.at(HANDED)] {
        ask_in_vain(&far, &to)?;
    }
    for port in [SSHD, OWN] {
        for to in ways(&host.db, port) {
            for from in [&host.login, &sshd] {
                truthful_at_home(&ask(from, &to)?, &to).with_context(|| from.name())?;
            }
        }
        for to in [host.db.at(port), host.db.at6(port)] {
            truthful(&ask(&far, &to)?, &to)?;
        }
    }
    host.mesh.start_agent(1)?;
    for to in ways(&host.db, NAMES).iter().chain(&ways(&host.web, HANDED)) {
        let told = host.until(&host.api, to, true)?;
        truthful_at_home(&told, to)?;
        host.until(&host.login, to, true)?;
    }
    host.until(&far, &host.db.at(NAMES), true).map(drop)
}

/// A unit's server that says whose it is, on the port that goes from hand to hand.
pub(crate) fn says_whose_it_is(unit: &Pod) -> Result<Process> {
    peer_server(unit, "banner", HANDED, &["--text", &unit.spec.name])
}

#[test]
fn a_port_belongs_to_whose_socket_listens_on_it_now() -> Result<()> {
    let host = Host::open("STRICT")?;
    let to = format!("127.0.0.1:{HANDED}");
    host.db_is_for_api()?;
    host.mesh.manifests.policy(("shop", "web"), "web", "DENY", from_account("shop", "api"))?;
    let mut server = says_whose_it_is(&host.db)?;
    let told = host.until(&host.api, &to, true)?;
    host.recorded(&told, &host.api, &host.db)?;
    server.kill();
    server = says_whose_it_is(&host.web)?;
    host.until(&host.api, &to, false)?;
    let db = host.db.spiffe_id();
    let to_db = [(names::DESTINATION_ID, &*db), (names::DIALLED, &*to)];
    let before = host.mesh.access_log(1).count(&to_db);
    for _ in 0..5 {
        refused(&ask(&host.api, &to)?)?;
        host.recorded_refusal(&host.api, &host.web, &to, "denied_by_policy")?;
    }
    let now = host.mesh.access_log(1).count(&to_db);
    ensure!(now == before, "{} records name db for a port of web", now - before);
    host.mesh.manifests.remove("AuthorizationPolicy", "shop", "web")?;
    host.until(&host.api, &to, true)?;
    // Whoever it is that answers is the one who was asked for, also while the port changes hands.
    for turn in 0..12 {
        let asking = host.api.spawn_peer(&["talk", "--to", &to, "--half-close", "--timeout-ms", "5000"])?;
        server.kill();
        server = says_whose_it_is(if turn % 2 == 0 { &host.db } else { &host.web })?;
        let between = asking.wait(Duration::from_secs(20))?.json()?;
        let after = host.until(&host.api, &to, true)?;
        ensure!(after["received"] == if turn % 2 == 0 { "db" } else { "web" }, "{after}");
        for told in [between, after].iter().filter(|told| is_answered(told)) {
            let owner = if told["received"] == "db" { &host.db } else { &host.web };
            host.recorded(told, &host.api, owner)?;
        }
    }
    Ok(())
}

#[test]
fn a_unit_talks_to_pods_of_other_nodes_by_mutual_tls_under_its_own_identity() -> Result<()> {
    const SECRET: &str = "secret-of-a-unit";
    let host = Host::open("STRICT")?;
    let (vault, plain) = (host.mesh.pod("shop", "vault", 2)?, host.mesh.pod("plain", "outsider", 2)?);
    let _servers = [peer_server(&vault, "echo", ECHO, &[])?, peer_server(&vault, "names", NAMES, &[])?];
    let _plain = peer_server(&plain, "names", NAMES, &[])?;
    host.mesh.service(("shop", "vault"), &[VIP, VIP6], (ECHO, ECHO), &[&vault])?;
    host.mesh.enrolled(&[&vault])?;
    host.mesh.manifests.policy(("shop", "vault"), "vault", "ALLOW", from_account("shop", "api"))?;
    host.until(&host.web, &vault.at(NAMES), false)?;
    let capture = Capture::start(&host.mesh.world, 2, "unit-to-pod")?;
    for to in [vault.at(ECHO), vault.at6(ECHO), format!("{VIP}:{ECHO}"), format!("[{VIP6}]:{ECHO}")] {
        let talk = ["talk", "--to", &to, "--send", SECRET, "--half-close"];
        let told = host.mesh.in_force("api to be answered", || {
            let told = host.api.peer(&talk)?;
            ensure!(told["received"] == SECRET, "{to}: {told}");
            Ok(told)
        })?;
        ensure!(told["getpeername"] == *to, "{to}: {told}");
        for record in both_records(&host.mesh, text(&told["getsockname"]))? {
            has(&record, names::SOURCE_ID, &host.api.spiffe_id())?;
            has(&record, names::DESTINATION_ID, &vault.spiffe_id())?;
        }
        refused(&host.web.peer(&talk)?).with_context(|| format!("web to {to}"))?;
        host.recorded_refusal(&host.web, &vault, &to, "no_allow_policy_matched")?;
    }
    for to in [vault.at(NAMES), vault.at6(NAMES)] {
        let told = ask(&host.api, &to)?;
        truthful(&told, &to)?;
        let client: SocketAddr = text(&told["getsockname"]).parse()?;
        ensure!(host.api.addresses().contains(&client.ip()), "{told}");
    }
    let captured = capture.stop()?;
    ensure!(captured.with_port(15008) > 0 && captured.is_tls(15008), "{:?}", captured.dialled());
    ensure!(!captured.contains(SECRET.as_bytes()), "plaintext on the link");
    ensure!(captured.with_port(ECHO) == 0 && captured.with_port(NAMES) == 0, "{:?}", captured.dialled());
    // What the mesh does not know is reached as without it.
    for to in [plain.at(NAMES), plain.at6(NAMES)] {
        answered(&ask(&host.api, &to)?)?;
    }
    Ok(())
}

#[test]
fn an_agent_of_units_is_replaced_under_load_and_no_connection_is_lost() -> Result<()> {
    // Connections end before that by themselves.
    let mut host = Host::open_with("PERMISSIVE", vec!["--drain-seconds", "600"])?;
    let ways = ways(&host.db, ECHO);
    let (mut tickers, mut pulses) = (Vec::new(), Vec::new());
    for from in [&host.api, &host.login] {
        for to in &ways {
            host.mesh.in_force("an echo", || {
                let told = from.peer(&["talk", "--to", to, "--send", "hello", "--half-close"])?;
                ensure!(told["received"] == "hello", "{told}");
                Ok(())
            })?;
            let tick = ["ticker", "--to", to, "--text", "tick", "--every-ms", "50"];
            tickers.push((from.name(), to, from.spawn_peer(&tick)?));
            pulses.push((from.name(), to, from.spawn_peer(&["pulse", "--to", to, "--seconds", "20"])?));
        }
    }
    let mut old = Vec::new();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(500));
        old.push(host.mesh.replace_agent(1)?);
    }
    // New connections are the last agent's.
    std::thread::sleep(Duration::from_secs(1));
    for (from, to, pulse) in pulses {
        let told = pulse.wait(Duration::from_secs(60))?.json()?;
        let beats = told["beats"].as_u64().unwrap_or_default();
        ensure!(told["outcome"] == "ok" && beats > 100, "an open connection of {from} to {to}: {told}");
    }
    for (from, to, ticker) in &tickers {
        let ticks = ticker.stdout();
        ensure!(failed(ticker) == 0 && ticks.lines().count() > 100, "{from} to {to}: {ticks}");
    }
    drop(tickers);
    for agent in old {
        let ended = agent.wait(Duration::from_secs(60))?;
        ensure!(ended.ok() && ended.stdout.contains("a successor serves"), "{}", ended.stdout);
        ensure!(!ended.stdout.contains("the drain time is over"), "connections were cut: {}", ended.stdout);
    }
    let to = host.db.at(NAMES);
    let told = host.until(&host.api, &to, true)?;
    host.recorded(&told, &host.api, &host.db)
}

#[test]
fn another_host_reaches_a_units_port_only_where_plaintext_is_taken() -> Result<()> {
    let host = Host::open("STRICT")?;
    let (far, front) = (host.mesh.world.login(2, "far")?, host.mesh.pod("shop", "front", 2)?);
    host.mesh.enrolled(&[&front])?;
    let both = [host.db.at(NAMES), host.db.at6(NAMES)];
    for to in &both {
        // A pod's identity does not help it: units are not reached by tunnel yet.
        for from in [&far, &front] {
            host.refused_as_plaintext(from, to)?;
        }
        let told = ask(&host.api, to)?;
        truthful_at_home(&told, to)?;
        host.recorded(&told, &host.api, &host.db)?;
    }
    host.set_mode("PERMISSIVE")?;
    for to in &both {
        truthful(&host.until(&far, to, true)?, to)?;
        host.until(&front, to, true)?;
        let told = ask(&far, to)?;
        let client = [(names::CLIENT, text(&told["getsockname"])), (names::REPORTER, names::DESTINATION)];
        let record = host.mesh.record(1, &client)?;
        has(&record, names::SOURCE_ID, names::NOBODY)?;
        has(&record, SERVER, "db")?;
    }
    // Nobody can prove who he is from there.
    host.mesh.manifests.policy(("shop", "edge"), "db", "DENY", from_account("shop", "somebody"))?;
    for from in [&far, &front] {
        host.until(from, &both[0], false)?;
    }
    Ok(())
}
