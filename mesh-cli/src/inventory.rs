//! `meshctl dump`: everything that the agent holds, as tables.

use anyhow::Result;
use serde_json::Value;
use time::OffsetDateTime;

use crate::Answer;
use crate::table::{Table, end_of, visible};

/// Renders the agent's dump.
pub(crate) fn answer(json: Value) -> Result<Answer> {
    let table = render(&json, OffsetDateTime::now_utc());
    Ok(Answer { json, table, ok: true })
}

fn render(json: &Value, now: OffsetDateTime) -> String {
    let snapshot = &json["snapshot"];
    let node = visible(json["node"].as_str().unwrap_or_default());
    let parts = [
        format!("NODE {node}, snapshot {}\n", snapshot["version"]),
        workloads(&snapshot["workloads"]),
        services(&snapshot["services"]),
        policies(&snapshot["policies"]),
        certificates(&json["certificates"], now),
    ];
    parts.join("\n")
}

fn workloads(list: &Value) -> String {
    let mut table = Table::new(&["WORKLOAD", "NODE", "ADDRESSES", "ENROLLED", "MTLS", "POLICIES", "OWNER"]);
    for w in each(list) {
        let name = format!("{}/{}", text(&w["namespace"]), text(&w["name"]));
        let cells =
            ["node", "addresses", "enrolled", "mtls", "policies", "owner"].map(|field| text(&w[field]));
        table.row([name].into_iter().chain(cells));
    }
    table.render("no workloads")
}

fn services(list: &Value) -> String {
    let mut table = Table::new(&["SERVICE", "ADDRESSES", "PORTS", "ENDPOINTS"]);
    for s in each(list) {
        let ports: Vec<String> = each(&s["ports"]).map(|port| text(&port["port"])).collect();
        let endpoints: Vec<String> = each(&s["endpoints"])
            .map(|endpoint| match text(&endpoint["health"]).as_str() {
                "Ready" => text(&endpoint["address"]),
                other => format!("{}({other})", text(&endpoint["address"])),
            })
            .collect();
        table.row([text(&s["name"]), text(&s["vips"]), ports.join(","), endpoints.join(",")]);
    }
    table.render("no services")
}

fn policies(list: &Value) -> String {
    let mut table = Table::new(&["POLICY", "ACTION", "RULES"]);
    for p in each(list) {
        table.row([text(&p["name"]), text(&p["action"]), each(&p["rules"]).count().to_string()]);
    }
    table.render("no policies")
}

/// The certificates that the agent holds.
pub(crate) fn certificates(json: &Value, now: OffsetDateTime) -> String {
    let mut table = Table::new(&["CERTIFICATE", "ENDS", "GENERATION"]);
    for c in each(&json["held"]) {
        table.row([text(&c["identity"]), end_of(&text(&c["not_after"]), now), text(&c["generation"])]);
    }
    table.render("no certificates")
}

pub(crate) fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A value as a cell: lists are joined.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_dump_lists_workloads_services_policies_and_certificates() {
        let json = json!({
            "node": "n1",
            "snapshot": {
                "version": 3,
                "workloads": [{
                    "namespace": "shop", "name": "web", "node": "n1", "addresses": ["10.1.0.1", "fd00::1"],
                    "enrolled": true, "mtls": "strict", "policies": ["shop/p"], "owner": "Deployment/web",
                }],
                "services": [{
                    "name": "shop/db", "vips": ["10.96.0.1"], "ports": [{ "name": "", "port": 5432 }],
                    "endpoints": [
                        { "address": "10.2.0.1", "health": "Ready" },
                        { "address": "10.2.0.2", "health": "NotReady" },
                    ],
                }],
                "policies": [],
            },
            "certificates": { "held": [
                { "identity": "spiffe://cluster.local/ns/shop/sa/web", "not_after": "2001-09-09T01:47:25Z", "generation": 2 },
            ] },
        });
        let text = render(&json, OffsetDateTime::from_unix_timestamp(1_000_000_000).unwrap());
        for line in [
            "NODE n1, snapshot 3",
            "shop/web  n1    10.1.0.1,fd00::1  yes       strict  shop/p    Deployment/web",
            "shop/db  10.96.0.1  5432   10.2.0.1,10.2.0.2(NotReady)",
            "no policies",
            "spiffe://cluster.local/ns/shop/sa/web  2001-09-09T01:47:25Z (in 45s)  2",
        ] {
            assert!(text.lines().any(|have| have == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn an_empty_answer_renders_without_a_panic() {
        let text = render(&Value::Null, OffsetDateTime::UNIX_EPOCH);
        assert!(text.contains("no workloads"), "{text}");
    }
}
