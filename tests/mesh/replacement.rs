//! An agent that gives way to its successor, under load.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps::{Nginx, peer_server};
use mesh_tests::mesh::Options;
use mesh_tests::world::{Finished, Pod, PodSpec, Process, binary};
use rustix::process::Signal;
use serde_json::Value;

use crate::shop::{ECHO, EXACT, Shop, VIP, echoed};

const SINK: u16 = 7020;
/// Longer than the scenario: connections end before that by themselves.
const DRAIN_SECONDS: &str = "600";
const END: Duration = Duration::from_secs(60);

fn shop() -> Result<Shop> {
    let agent_arguments = vec!["--drain-seconds", DRAIN_SECONDS];
    Shop::open_with(Options { agent_arguments, ..Options::default() }, true)
}

/// wrk until it is told to end.
fn wrk(pod: &Pod, url: &str, name: &str, more: &[&str]) -> Result<Process> {
    let mut arguments = vec!["-t1", "-c8", "-d3600", "--timeout", "30s"];
    arguments.extend(more);
    arguments.push(url);
    pod.spawn(name, "wrk", &arguments)
}

/// How many connections of a ticker did not work.
pub(crate) fn failed(ticker: &Process) -> usize {
    ticker.stdout().lines().filter(|tick| !tick.contains("\"ok\"")).count()
}

/// Ends wrk; how many requests were answered. Any error fails.
fn answered(wrk: Process) -> Result<u64> {
    wrk.signal(Signal::INT)?;
    let Finished { stdout, .. } = wrk.wait(END)?;
    ensure!(!stdout.contains("Socket errors") && !stdout.contains("Non-2xx"), "wrk: {stdout}");
    let count = stdout.lines().find_map(|line| line.trim().split_once(" requests in ")).context("wrk")?.0;
    count.parse().with_context(|| format!("wrk: {stdout}"))
}

#[test]
fn the_agent_is_replaced_ten_times_under_http_and_bulk_load() -> Result<()> {
    let mut shop = shop()?;
    echoed(&shop.ask()?)?;
    let _nginx = Nginx::start(&shop.api, "page")?;
    let _sink = peer_server(&shop.api, "sink", SINK, &[])?;
    let url = format!("http://{}/", shop.api.at(80));
    let kept = wrk(&shop.web, &url, "wrk-kept", &[])?;
    let fresh = wrk(&shop.web, &url, "wrk-fresh", &["-H", "Connection: close"])?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;
    let bulk = shop.web.spawn_peer(&["bulk", "--to", &shop.api.at(SINK), "--seconds", "45"])?;
    let exact = format!("{VIP}:{EXACT}");
    let (mut old, mut streams) = (Vec::new(), Vec::new());
    for turn in 0..10_u8 {
        streams.push(shop.web.spawn_peer(&["exact", "--to", &exact, "--bytes", "100000000"])?);
        let start = Instant::now();
        // The source's agent and the destination's in turn.
        old.push(shop.mesh.replace_agent(1 + turn % 2)?);
        eprintln!("replacement {turn}: {} ms", start.elapsed().as_millis());
        std::thread::sleep(Duration::from_millis(300));
    }
    for stream in streams {
        let told = stream.wait(Duration::from_secs(180))?.json()?;
        ensure!(told["exact"] == true, "a stream was cut: {told}");
    }
    let told = bulk.wait(Duration::from_secs(180))?.json()?;
    eprintln!("bulk through all replacements: {told}");
    let ticks = ticker.stdout();
    ensure!(failed(&ticker) == 0 && ticks.lines().count() > 100, "{ticks}");
    let (kept, fresh) = (answered(kept)?, answered(fresh)?);
    eprintln!("requests: {kept} on kept connections, {fresh} on fresh ones; {} ticks", ticks.lines().count());
    ensure!(kept > 1000 && fresh > 1000, "{kept} and {fresh} requests are too few to tell");
    drop(ticker);
    for agent in old {
        let ended = agent.wait(END)?;
        ensure!(ended.ok() && ended.stdout.contains("a successor serves"), "{}", ended.stdout);
        ensure!(!ended.stdout.contains("the drain time is over"), "connections were cut: {}", ended.stdout);
    }
    echoed(&shop.ask()?)?;
    shop.mesh.agent_ready(1)
}

#[test]
fn a_successor_that_dies_before_it_serves_leaves_the_running_agent_as_it_was() -> Result<()> {
    let mut shop = shop()?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "10"])?;
    for pause in [30, 60, 90, 150, 400] {
        let mut old = shop.mesh.take_agent(1)?;
        shop.mesh.launch_agent(1)?;
        std::thread::sleep(Duration::from_millis(pause));
        let successor = shop.mesh.take_agent(1)?;
        drop(successor);
        // The lines that it had not written yet died with it, but the agent before has heard whether it served.
        std::thread::sleep(Duration::from_millis(200));
        if old.stdout().contains("a successor serves") {
            // It was faster than the test: the roles have changed, and a killed agent is another scenario.
            eprintln!("the successor served within {pause} ms");
            return Ok(());
        }
        ensure!(old.running(), "{}", old.tail());
        shop.mesh.put_agent(1, old);
        echoed(&shop.ask()?)?;
    }
    // A pod that comes now is enrolled: the running agent keeps the kernel in step again.
    let other = shop.mesh.pod("shop", "other", 1)?;
    shop.mesh.enrolled(&[&other])?;
    ensure!(failed(&ticker) == 0, "{}", ticker.stdout());
    let old = shop.mesh.replace_agent(1)?;
    drop(ticker);
    ensure!(old.wait(END)?.ok(), "the old agent failed");
    echoed(&shop.ask()?)
}

/// What a ticker has told so far.
fn ticks(ticker: &Process) -> Vec<Value> {
    ticker.stdout().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn what_waits_in_connect_while_the_agent_is_replaced_is_answered_once_and_soon() -> Result<()> {
    let agent_arguments = vec!["--drain-seconds", DRAIN_SECONDS];
    let hold = || "hold".to_owned();
    let options =
        Options { agent_arguments, connect: "honest".to_owned(), unclassified: hold(), ..Options::default() };
    let mut shop = Shop::open_with(options, true)?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "5"])?;
    let mut old = Vec::new();
    for turn in 0..4 {
        // Nobody knows it yet: the controller hears of it while the agents change places.
        let late = shop.mesh.world.pod(&PodSpec::new("shop", &format!("late-{turn}"), 1))?;
        let talk = ["talk", "--send", "hello", "--half-close", "--timeout-ms", "60000", "--to", &to];
        let waiting = late.spawn_peer(&talk)?;
        std::thread::sleep(Duration::from_millis(300));
        shop.mesh.manifests.pod(&late)?;
        old.push(shop.mesh.replace_agent(1)?);
        let replaced = Instant::now();
        echoed(&waiting.wait(END)?.json()?)?;
        let waited = replaced.elapsed();
        eprintln!("a pod that nobody knew was answered {} ms after the replacement", waited.as_millis());
        ensure!(waited < Duration::from_secs(3), "it waited for {waited:?}");
    }
    let ticks = ticks(&ticker);
    drop(ticker);
    let longest = ticks.iter().filter_map(|tick| tick["took_ms"].as_f64()).fold(0.0, f64::max);
    eprintln!("{} connections, the longest took {longest:.0} ms", ticks.len());
    ensure!(ticks.len() > 100 && ticks.iter().all(|tick| tick["outcome"] == "ok"), "{ticks:?}");
    // A client that nobody answers sends its SYN again after one second, and then after two.
    ensure!(longest < 3000.0, "a connection took {longest} ms");
    let web = [(names::REPORTER, names::DESTINATION), (names::SOURCE_ID, &shop.web.spiffe_id())];
    let all = |shop: &Shop| shop.mesh.access_log(2).count(&web);
    shop.mesh.in_force("every connection to be in the log", || {
        ensure!(all(&shop) >= ticks.len(), "{} of {}", all(&shop), ticks.len());
        Ok(())
    })?;
    // The last one was on its way when the ticker was ended.
    ensure!(all(&shop) <= ticks.len() + 5, "{} connections were dialled for {}", all(&shop), ticks.len());
    for agent in old {
        ensure!(agent.wait(END)?.ok(), "the old agent failed");
    }
    Ok(())
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(arguments).output()?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn attached(cgroup: &Path) -> Result<Vec<Value>> {
    let shown = bpftool(&["cgroup", "show", &cgroup.to_string_lossy()])?;
    Ok(shown.as_array().context("not a list")?.clone())
}

/// Every hook at the node's pods, by its attach type, with how many programs of ours it has.
fn hooks(cgroup: &Path) -> Result<BTreeMap<String, usize>> {
    let mut hooks = BTreeMap::new();
    for program in attached(cgroup)? {
        *hooks.entry(program["attach_type"].to_string()).or_default() += 1;
    }
    Ok(hooks)
}

/// The instructions' tag of each hook's program.
fn tags(cgroup: &Path) -> Result<BTreeMap<String, String>> {
    let tag = |program: Value| -> Result<(String, String)> {
        let shown = bpftool(&["prog", "show", "id", &program["id"].to_string()])?;
        Ok((program["attach_type"].to_string(), shown["tag"].to_string()))
    };
    attached(cgroup)?.into_iter().map(tag).collect()
}

/// Changes node 1's agent for one of another build, by handover or by a stop and a start. Every hook has another program then.
fn change(shop: &mut Shop, build: Option<&Path>, handover: bool) -> Result<()> {
    let cgroup = shop.mesh.world.node(1).pods_cgroup();
    let before = tags(&cgroup)?;
    shop.mesh.agent_program = build.map(Path::to_owned);
    if handover {
        drop(shop.mesh.replace_agent(1)?.wait(END)?.success()?);
    } else {
        ensure!(shop.mesh.stop_agent(1)?.ok(), "the agent failed");
        shop.mesh.start_agent(1)?;
    }
    let after = tags(&cgroup)?;
    ensure!(
        after.iter().all(|(hook, tag)| before.get(hook).is_some_and(|old| old != tag)),
        "{before:?} {after:?}"
    );
    // The two builds disagree on these maps.
    let said = shop.mesh.agent(1)?.stdout();
    ensure!(said.contains("UNSERVED") && said.contains("REASONS"), "no map began anew: {said}");
    Ok(())
}

/// Looks at the hooks again and again until told to stop: how often, or what was wrong.
fn watch(cgroup: &Path, expected: &BTreeMap<String, usize>, stop: &AtomicBool) -> Result<u64> {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let seen = hooks(cgroup)?;
        ensure!(seen == *expected, "at look {looks} the hooks had {seen:?}, not {expected:?}");
        looks += 1;
    }
    Ok(looks)
}

#[test]
fn an_upgrade_and_a_downgrade_under_traffic_leave_exactly_one_program_a_hook_at_every_moment() -> Result<()> {
    let mut shop = shop()?;
    let other = binary("other-build/mesh-agent").context("`cargo xtask build-other` makes it")?;
    let cgroup = shop.mesh.world.node(1).pods_cgroup();
    let expected = hooks(&cgroup)?;
    ensure!(expected.len() >= 7 && expected.values().all(|count| *count == 1), "{expected:?}");
    let to = format!("{VIP}:{ECHO}");
    let ticker = shop.web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "10"])?;
    let stop = AtomicBool::new(false);
    let (looks, changed) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&cgroup, &expected, &stop));
        let mut changes = || {
            for build in [Some(&*other), None, Some(&*other), None] {
                change(&mut shop, build, true)?;
            }
            ensure!(failed(&ticker) == 0, "a handover refused a connection: {}", ticker.stdout());
            change(&mut shop, Some(&*other), false)?;
            change(&mut shop, None, false)
        };
        let changed = changes();
        stop.store(true, Ordering::Relaxed);
        (watcher.join(), changed)
    });
    changed?;
    let looks = looks.map_err(|_| anyhow!("the watcher panicked"))??;
    eprintln!("looked {looks} times");
    ensure!(looks > 15, "only {looks} looks");
    drop(ticker);
    shop.until_asking(&shop.web, &to, true)?;
    Ok(())
}

#[test]
fn agents_that_are_pods_themselves_replace_each_other_and_the_listeners_stay_reachable() -> Result<()> {
    let mut shop = Shop::open_with(Options { agents_as_pods: true, ..Options::default() }, true)?;
    let plain = shop.mesh.pod("plain", "web", 1)?;
    let direct = shop.api.at(ECHO);
    for _ in 0..2 {
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", shop.mesh.agent(2)?.id()))?;
        let name = cgroup.lines().find_map(|line| line.rsplit_once("/podagent-")).context("not a pod")?.1;
        let old = shop.mesh.replace_agent(2)?;
        ensure!(old.wait(END)?.ok(), "the old agent failed");
        // The pod of the old agent is gone, with its cgroup; the listeners that it had opened are not.
        fs::remove_dir(shop.mesh.world.node(2).agent_cgroup(name.parse()?))?;
        echoed(&shop.ask()?)?;
        echoed(&shop.ask_from(&plain, &direct)?)?;
    }
    Ok(())
}
