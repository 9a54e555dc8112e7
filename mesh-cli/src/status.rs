//! `meshctl status`: the controller's view of the mesh, this node's agent's view of itself, or both.

use anyhow::Result;
use mesh_api::proto::{AgentStatus, StatusResponse};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::inventory::{certificates, each, text};
use crate::table::{Table, end, end_of, visible};
use crate::{Answer, Global, agent, authority, controller};

/// Asks the controller if its address is given, and the agent if its socket is given or nothing else is.
pub(crate) async fn status(global: &Global) -> Result<Answer> {
    let now = OffsetDateTime::now_utc();
    let mut parts = Vec::new();
    let (mut json, mut ok) = (json!({}), true);
    if global.controller.controller.is_some() {
        let answer = controller::status(&global.controller).await?;
        ok &= answer.objects.iter().all(|object| object.accepted);
        json["controller"] = controller_json(&answer);
        parts.push(controller_table(&answer, now));
    }
    if global.agent_socket.is_some() || parts.is_empty() {
        let answer = agent::get(global.agent_socket.as_deref(), "/status").await?;
        ok &= answer["ready"] == true && each(&answer["problems"]).next().is_none();
        parts.push(agent_table(&answer, now));
        json["agent"] = answer;
    }
    Ok(Answer { json, table: parts.join("\n"), ok })
}

fn controller_json(status: &StatusResponse) -> Value {
    let agents = status.agents.iter().map(|a| {
        let certificates = a
            .certificates
            .iter()
            .map(|c| json!({ "spiffe_id": c.spiffe_id, "not_after_unix": c.not_after_unix }));
        json!({
            "node": a.node,
            "agent_version": a.agent_version,
            "connected": a.connected,
            "sent_version": a.sent_version,
            "acknowledged_version": a.acknowledged_version,
            "last_error": a.last_error,
            "certificates": certificates.collect::<Vec<_>>(),
        })
    });
    let objects = status.objects.iter().map(|o| {
        json!({ "source": o.source, "accepted": o.accepted, "reason": o.reason,
                     "message": o.message, "enforced": o.enforced })
    });
    json!({
        "version": status.version,
        "trust_domain": status.trust_domain,
        "agents": agents.collect::<Vec<_>>(),
        "objects": objects.collect::<Vec<_>>(),
        "authority": status.authority.as_ref().map(authority::as_json),
    })
}

fn controller_table(status: &StatusResponse, now: OffsetDateTime) -> String {
    let head =
        format!("CONTROLLER version {}, trust domain {}\n", status.version, visible(&status.trust_domain));
    let mut agents = Table::new(&[
        "NODE",
        "AGENT",
        "CONNECTED",
        "SENT",
        "ACKNOWLEDGED",
        "CERTIFICATES",
        "FIRST END",
        "ERROR",
    ]);
    for agent in &status.agents {
        agents.row(agent_row(agent, now));
    }
    // What was accepted without a remark is only counted.
    let (plain, told): (Vec<_>, Vec<_>) =
        status.objects.iter().partition(|object| object.accepted && object.reason == "Accepted");
    let mut objects = Table::new(&["OBJECT", "ACCEPTED", "ENFORCED", "REASON", "MESSAGE"]);
    for object in told {
        let accepted = if object.accepted { "yes" } else { "NO" };
        let enforced = match object.enforced {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        objects.row([
            object.source.clone(),
            accepted.to_owned(),
            enforced.to_owned(),
            object.reason.clone(),
            object.message.clone(),
        ]);
    }
    let mut remarks = objects.render("every object was accepted without remarks");
    if !plain.is_empty() {
        remarks.push_str(&format!("{} objects accepted without remarks\n", plain.len()));
    }
    let signs = status.authority.as_ref().map(|told| authority::table(told, now));
    [head, agents.render("no agents"), remarks].into_iter().chain(signs).collect::<Vec<_>>().join("\n")
}

fn agent_row(agent: &AgentStatus, now: OffsetDateTime) -> [String; 8] {
    let first = agent.certificates.iter().map(|c| c.not_after_unix).min();
    [
        agent.node.clone(),
        agent.agent_version.clone(),
        if agent.connected { "yes" } else { "NO" }.to_owned(),
        agent.sent_version.to_string(),
        agent.acknowledged_version.to_string(),
        agent.certificates.len().to_string(),
        first.map(|unix| end(unix, now)).unwrap_or_default(),
        agent.last_error.clone(),
    ]
}

fn agent_table(status: &Value, now: OffsetDateTime) -> String {
    let field = |value: &Value| visible(&text(value));
    let ready = match status["not_ready"].as_str() {
        None => "ready".to_owned(),
        Some(why) => format!("NOT READY: {}", visible(why)),
    };
    let controller = &status["controller"];
    let link = if controller["connected"] == true {
        format!("connected since {}", field(&controller["since"]))
    } else {
        format!("NOT CONNECTED: {}", field(&controller["last_error"]))
    };
    let mut lines = vec![
        format!(
            "AGENT {} ({}), trust domain {}: {ready}",
            field(&status["node"]),
            field(&status["agent_version"]),
            field(&status["trust_domain"])
        ),
        format!("controller: {link}"),
        format!("snapshot: {}", snapshot_line(&status["snapshot"])),
        format!("node certificate: ends {}", end_of(&text(&status["node_certificate"]["not_after"]), now)),
    ];
    if let Some(refused) = controller["refused"].as_str() {
        lines.push(format!("REFUSED DELTA, the last good snapshot stays: {}", visible(refused)));
    }
    if status["snapshot"]["restored_from_disk"] == true {
        lines.push("SNAPSHOT FROM DISK: this agent has not heard the controller since it started".to_owned());
    }
    if let Some(problem) = status["snapshot"]["problem"].as_str() {
        lines.push(format!("SNAPSHOT ON DISK: {}", visible(problem)));
    }
    if let Some(problem) = status["node_certificate"]["problem"].as_str() {
        lines.push(format!("NODE CERTIFICATE NOT RENEWED: {}", visible(problem)));
    }
    let problems = each(&status["problems"]).map(|p| format!("PROBLEM {}", visible(&text(p))));
    let missing = each(&status["certificates"]["problems"]).map(|p| {
        format!("CERTIFICATE {}: {}", visible(&text(&p["identity"])), visible(&text(&p["problem"])))
    });
    lines.extend(problems.chain(missing));
    let on_node = each(&status["on_node_network"]).count();
    if on_node > 0 {
        lines.push(format!("{on_node} pods on the node's own network (hostNetwork) are left alone"));
    }
    let mut pods = Table::new(&["POD", "IDENTITY", "ADDRESSES", "SERVED", "PROBLEM"]);
    for pod in each(&status["pods"]) {
        let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
        let cells = ["identity", "addresses", "served", "problem"].map(|field| text(&pod[field]));
        pods.row([name].into_iter().chain(cells));
    }
    let mut tables = vec![pods.render("no enrolled pods")];
    tables.extend(older_sockets(&status["pods"]));
    tables.extend(plaintext(&status["plaintext"]));
    tables.push(certificates(&status["certificates"], now));
    format!("{}\n\n{}", lines.join("\n"), tables.join("\n"))
}

/// The connections that go past the mesh, if there are any.
fn older_sockets(pods: &Value) -> Option<String> {
    let mut table = Table::new(&["OLDER THAN THE ENROLMENT", "LOCAL", "REMOTE", "CLOSED"]);
    let mut any = false;
    for pod in each(pods) {
        for socket in each(&pod["older_sockets"]) {
            any = true;
            let left = socket["closes_in_seconds"].as_u64();
            table.row([
                format!("{}/{}", text(&pod["namespace"]), text(&pod["name"])),
                text(&socket["local"]),
                text(&socket["remote"]),
                left.map_or("no: the port is permissive".to_owned(), |left| format!("in {left} s")),
            ]);
        }
    }
    any.then(|| table.render(""))
}

/// Who speaks plaintext where strict would not take it, if anybody does.
fn plaintext(told: &Value) -> Option<String> {
    let mut table = Table::new(&["PLAINTEXT FROM", "TO", "CONNECTIONS", "OPEN", "LAST"]);
    let mut any = false;
    for peer in each(&told["peers"]) {
        any = true;
        let cells = ["connections", "open", "last"].map(|field| text(&peer[field]));
        table.row([speaker(&peer["source"]), spoken_to(peer)].into_iter().chain(cells));
    }
    any.then(|| table.render(""))
}

/// The source of plaintext as the agent tells it.
pub(crate) fn speaker(source: &Value) -> String {
    match source["workload"].as_str() {
        Some(_) => workload(source),
        None => source["address"].as_str().unwrap_or("others, too many to be named").to_owned(),
    }
}

/// The workload and port that plaintext went to.
pub(crate) fn spoken_to(peer: &Value) -> String {
    format!("{}:{}", workload(&peer["destination"]), text(&peer["port"]))
}

fn workload(of: &Value) -> String {
    format!("{}/{}", text(&of["namespace"]), text(&of["workload"]))
}

fn snapshot_line(snapshot: &Value) -> String {
    let count = |name: &str| visible(&text(&snapshot[name]));
    format!(
        "version {}, {} workloads ({} on this node), {} services, {} policies",
        count("version"),
        count("workloads"),
        count("local_workloads"),
        count("services"),
        count("policies")
    )
}

#[cfg(test)]
mod tests {
    use mesh_api::proto::{CertificateInfo, ObjectStatus};

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap()
    }

    fn object(source: &str, accepted: bool, reason: &str) -> ObjectStatus {
        let enforced = (reason == "SelectsNothing").then_some(false);
        ObjectStatus {
            source: source.into(),
            accepted,
            reason: reason.into(),
            message: "why".into(),
            enforced,
        }
    }

    #[test]
    fn the_controllers_table_shows_versions_ends_and_refused_objects() {
        let status = StatusResponse {
            version: 12,
            trust_domain: "cluster.local".into(),
            agents: vec![AgentStatus {
                node: "n1".into(),
                agent_version: "0.1.0".into(),
                connected: true,
                sent_version: 12,
                acknowledged_version: 11,
                last_error: String::new(),
                certificates: vec![
                    CertificateInfo { spiffe_id: "spiffe://a".into(), not_after_unix: 1_000_000_090 },
                    CertificateInfo { spiffe_id: "spiffe://b".into(), not_after_unix: 1_000_000_045 },
                ],
            }],
            objects: vec![
                object("a.yaml:1", true, "Accepted"),
                object("bad.yaml:7", false, "Malformed"),
                object("c.yaml:2", true, "SelectsNothing"),
            ],
            authority: None,
        };
        let text = controller_table(&status, now());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "CONTROLLER version 12, trust domain cluster.local");
        assert_eq!(
            lines[3],
            "n1    0.1.0  yes        12    11            2             2001-09-09T01:47:25Z (in 45s)  -"
        );
        assert_eq!(lines[6], "bad.yaml:7  NO        -         Malformed       why");
        assert_eq!(lines[7], "c.yaml:2    yes       NO        SelectsNothing  why");
        assert_eq!(lines[8], "1 objects accepted without remarks");
        assert_eq!(controller_json(&status)["agents"][0]["acknowledged_version"], 11);
    }

    #[test]
    fn the_agents_table_says_what_is_wrong() {
        let status = json!({
            "node": "n1", "agent_version": "0.1.0", "trust_domain": "cluster.local",
            "ready": false, "not_ready": "no certificate for spiffe://x",
            "controller": { "connected": false, "last_error": "refused", "refused": "policy shop/x: action" },
            "snapshot": { "version": 4, "workloads": 3, "local_workloads": 1, "services": 2, "policies": 0,
                          "restored_from_disk": true, "problem": "it is damaged" },
            "node_certificate": { "not_after": "2001-09-09T01:47:25Z", "problem": null },
            "certificates": { "held": [], "problems": [{ "identity": "spiffe://x", "missing": true, "problem": "away" }] },
            "pods": [{ "namespace": "shop", "name": "web", "identity": "spiffe://x", "addresses": ["10.1.0.1"],
                       "served": false, "problem": "its cgroup was not found" }],
            "problems": ["pod shop/web: its cgroup was not found"],
            "plaintext": { "since": "2001-09-09T01:46:00Z", "unnamed": 0, "peers": [
                { "source": { "namespace": "plain", "workload": "batch" }, "port": 80, "connections": 3, "open": 1,
                  "destination": { "namespace": "shop", "workload": "web" }, "last": "2001-09-09T01:46:20Z" },
            ] },
        });
        let text = agent_table(&status, now());
        for line in [
            "AGENT n1 (0.1.0), trust domain cluster.local: NOT READY: no certificate for spiffe://x",
            "controller: NOT CONNECTED: refused",
            "snapshot: version 4, 3 workloads (1 on this node), 2 services, 0 policies",
            "node certificate: ends 2001-09-09T01:47:25Z (in 45s)",
            "SNAPSHOT FROM DISK: this agent has not heard the controller since it started",
            "SNAPSHOT ON DISK: it is damaged",
            "REFUSED DELTA, the last good snapshot stays: policy shop/x: action",
            "PROBLEM pod shop/web: its cgroup was not found",
            "CERTIFICATE spiffe://x: away",
            "shop/web  spiffe://x  10.1.0.1   no      its cgroup was not found",
            "plain/batch     shop/web:80  3            1     2001-09-09T01:46:20Z",
        ] {
            assert!(text.lines().any(|have| have == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn an_empty_answer_renders_without_a_panic() {
        assert!(agent_table(&Value::Null, now()).contains("no enrolled pods"));
    }
}
