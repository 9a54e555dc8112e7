//! Who speaks plaintext to enrolled pods where it is still taken, and would be refused under strict. In: the agents' pods,
//! whose agents are asked by `kubectl exec`. Out: one check for each source and port, over all nodes, with its mend.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::Kubectl;
use super::pod::{is_ready, node};
use crate::check::Check;
use crate::inventory::{each, text};
use crate::status::{speaker, spoken_to};

/// How many agents are asked at once.
const AT_ONCE: usize = 8;
/// In the agent's image, beside it.
const ASK: [&str; 4] = ["/usr/local/bin/meshctl", "-o", "json", "status"];

/// What agents told of one source and port.
struct Heard<'a> {
    source: &'a Value,
    port: String,
    connections: u64,
    open: u64,
    last: &'a str,
}

/// Asks the agents in `pods`. `enrolled`: the namespaces that are.
pub(super) fn checks(kubectl: &Kubectl, pods: &[Value], enrolled: &BTreeSet<&str>) -> Vec<Check> {
    let mut told = Vec::with_capacity(pods.len());
    for some in pods.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let asked: Vec<_> = some.iter().map(|pod| scope.spawn(|| ask(kubectl, pod))).collect();
            for (pod, asked) in some.iter().zip(asked) {
                let lost = || Err(anyhow::anyhow!("asking it went wrong"));
                told.push((node(pod), asked.join().unwrap_or_else(|_| lost())));
            }
        });
    }
    of(&told, enrolled)
}

/// One agent's status.
fn ask(kubectl: &Kubectl, pod: &Value) -> Result<Value> {
    ensure!(is_ready(pod), "its agent is not ready");
    let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
    let agent = kubectl.exec(name, &ASK)?["agent"].take();
    ensure!(agent["plaintext"].is_object(), "its agent is of a version that does not tell it");
    Ok(agent)
}

fn of(told: &[(&str, Result<Value>)], enrolled: &BTreeSet<&str>) -> Vec<Check> {
    let (mut checks, mut heard) = (Vec::new(), BTreeMap::<(String, String), Heard<'_>>::new());
    let mut since = "";
    for (node, agent) in told {
        let agent = match agent {
            Ok(agent) => agent,
            Err(error) => {
                let mend = "mend its agent (kubectl -n ferromesh-system describe pods), and check again";
                checks.push(weak(
                    &format!("plaintext on node {node}"),
                    &format!("not asked: {error:#}"),
                    mend,
                ));
                continue;
            }
        };
        let plaintext = &agent["plaintext"];
        since = since.max(plaintext["since"].as_str().unwrap_or_default());
        for peer in each(&plaintext["peers"]) {
            add(&mut heard, peer);
        }
        if let Some(unnamed) = plaintext["unnamed"].as_u64().filter(|number| *number > 0) {
            let found = format!("{unnamed} connections to more ports than its agent remembers");
            let mend = "mend what is told, start the agent again, and check again";
            checks.push(weak(&format!("plaintext on node {node}"), &found, mend));
        }
        checks.extend(each(&agent["pods"]).filter_map(older));
    }
    checks.extend(heard.into_iter().map(|((to, from), heard)| check(&to, &from, &heard, enrolled)));
    if checks.is_empty() {
        let found = format!("nobody, since {since}");
        checks.push(Check::of_cluster("plaintext to enrolled pods", true, &found, ""));
    }
    checks
}

fn add<'a>(heard: &mut BTreeMap<(String, String), Heard<'a>>, peer: &'a Value) {
    let source = &peer["source"];
    let fresh = || Heard { source, port: text(&peer["port"]), connections: 0, open: 0, last: "" };
    let heard = heard.entry((spoken_to(peer), speaker(source))).or_insert_with(fresh);
    let number = |field: &str| peer[field].as_u64().unwrap_or(0);
    heard.connections += number("connections");
    heard.open += number("open");
    // All of them are in the same form, and in UTC.
    heard.last = heard.last.max(peer["last"].as_str().unwrap_or_default());
}

fn check(to: &str, from: &str, heard: &Heard<'_>, enrolled: &BTreeSet<&str>) -> Check {
    let Heard { source, port, connections, open, last } = heard;
    let found = format!("from {from}: {connections} connections, {open} open, the last {last}");
    let keep = format!("leave port {port} PERMISSIVE in a MeshConfig");
    let mend = match source["namespace"].as_str() {
        Some(namespace) if enrolled.contains(namespace) => format!(
            "it goes past the mesh in an enrolled namespace: take its label ferromesh.io/enrolled=false off, or {keep}"
        ),
        Some(namespace) => {
            format!(
                "before strict: kubectl label namespace {namespace} ferromesh.io/enrolled=true, or {keep}"
            )
        }
        None => format!("before strict: let it come through a pod that is enrolled, or {keep}"),
    };
    weak(&format!("plaintext to {to}"), &found, &mend)
}

/// A pod whose connections from before its enrolment go on.
fn older(pod: &Value) -> Option<Check> {
    let stay = each(&pod["older_sockets"]).filter(|socket| socket["closes_in_seconds"].is_null()).count();
    let name = format!("plaintext of {}/{}", text(&pod["namespace"]), text(&pod["name"]));
    let found = format!("{stay} connections are older than its enrolment");
    let mend = "before strict, which closes them: start it or its peers again";
    (stay > 0).then(|| weak(&name, &found, mend))
}

fn weak(name: &str, found: &str, mend: &str) -> Check {
    Check::weak_of_cluster(name, found, mend)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn peer(source: Value, connections: u64, last: &str) -> Value {
        json!({ "source": source, "destination": { "namespace": "shop", "workload": "api" }, "port": 80,
                "connections": connections, "open": 1, "last": last })
    }

    fn agent(peers: &[Value]) -> Result<Value> {
        Ok(json!({ "plaintext": { "since": "2026-01-01T00:00:00Z", "unnamed": 0, "peers": peers } }))
    }

    #[test]
    fn one_source_is_told_once_for_all_nodes_with_a_mend_of_its_kind() {
        let batch = json!({ "namespace": "plain", "workload": "batch" });
        let told = [
            ("n1", agent(&[peer(batch.clone(), 2, "2026-01-01T00:00:09Z")])),
            (
                "n2",
                agent(&[
                    peer(batch, 3, "2026-01-01T00:00:07Z"),
                    peer(json!({ "address": "10.9.9.9" }), 1, "x"),
                ]),
            ),
            (
                "n3",
                agent(&[
                    peer(json!({ "namespace": "shop", "workload": "web" }), 1, "x"),
                    peer(Value::Null, 1, "x"),
                ]),
            ),
        ];
        let checks = of(&told, &BTreeSet::from(["shop"]));
        let lines: Vec<_> = checks.iter().map(|check| (check.found.as_str(), check.mend.as_str())).collect();
        assert!(
            checks.iter().all(|check| check.name == "plaintext to shop/api:80" && check.weak && !check.ok)
        );
        let [address, others, batch, web] = lines[..] else { panic!("{lines:?}") };
        assert_eq!(batch.0, "from plain/batch: 5 connections, 2 open, the last 2026-01-01T00:00:09Z");
        assert!(batch.1.contains("kubectl label namespace plain ferromesh.io/enrolled=true"), "{batch:?}");
        assert!(
            address.0.starts_with("from 10.9.9.9: 1") && address.1.contains("port 80 PERMISSIVE"),
            "{address:?}"
        );
        assert!(others.0.starts_with("from others"), "{others:?}");
        assert!(web.1.contains("past the mesh"), "{web:?}");
    }

    #[test]
    fn silence_is_told_only_when_every_agent_was_asked() {
        let checks = of(&[("n1", agent(&[])), ("n2", agent(&[]))], &BTreeSet::new());
        assert!(
            matches!(&checks[..], [check] if check.ok && check.found == "nobody, since 2026-01-01T00:00:00Z")
        );
        let checks = of(&[("n1", agent(&[])), ("n2", Err(anyhow::anyhow!("gone")))], &BTreeSet::new());
        let [check] = &checks[..] else { panic!("{checks:?}") };
        assert!(
            check.weak && check.name == "plaintext on node n2" && check.found == "not asked: gone",
            "{check:?}"
        );
    }

    #[test]
    fn what_is_older_than_the_enrolment_and_what_has_no_name_is_told() {
        let mut told = agent(&[]).unwrap();
        told["plaintext"]["unnamed"] = json!(7);
        told["pods"] = json!([{ "namespace": "shop", "name": "web", "older_sockets": [
            { "local": "a", "remote": "b", "closes_in_seconds": null }, { "closes_in_seconds": 3 },
        ] }]);
        let found: Vec<_> =
            of(&[("n1", Ok(told))], &BTreeSet::new()).into_iter().map(|check| check.found).collect();
        assert_eq!(
            found,
            [
                "7 connections to more ports than its agent remembers",
                "1 connections are older than its enrolment",
            ]
        );
    }
}
