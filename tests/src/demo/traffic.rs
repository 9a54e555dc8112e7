//! Steps about bytes: plaintext before, none after, services without a kube-proxy, true addresses, metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::report::{Evidence, Report};
use super::stage::{CACHE, DB, FRONT, SECRET, Stage};
use crate::access_log::{field, names};
use crate::capture::{Capture, Captured};

/// Watches the link between the nodes while the client asks on.
fn watch(stage: &Stage, name: &str) -> Result<(Captured, usize)> {
    let before = stage.client_answers().0;
    let capture = Capture::start(&stage.mesh.world, 2, name)?;
    std::thread::sleep(Duration::from_secs(2));
    let captured = capture.stop()?;
    Ok((captured, stage.client_answers().0 - before))
}

fn ports(captured: &Captured) -> String {
    let dialled: Vec<String> =
        captured.dialled().iter().map(|(port, count)| format!("port {port}: {count} times")).collect();
    if dialled.is_empty() { "none".to_owned() } else { dialled.join(", ") }
}

pub(super) fn plaintext_before(report: &mut Report, stage: &Stage) {
    let does = "tcpdump on the link of node n2, for two seconds";
    report.step("before enrolment the link carries plaintext", does, |evidence| {
        let (captured, answers) = watch(stage, "before")?;
        evidence.line(format!("{answers} pages fetched; {} TCP segments seen", captured.segments.len()));
        evidence.line(format!("new connections on the link: {}", ports(&captured)));
        ensure!(answers > 0, "the client got no answer: {:?}", stage.client_answers().1);
        ensure!(
            captured.contains(format!("GET /?ask={SECRET}").as_bytes()),
            "no request in plaintext was seen"
        );
        evidence.line(format!("seen in the clear: \"GET /?ask={SECRET}\" and the page \"{SECRET}\""));
        Ok(())
    });
}

pub(super) fn enrol(report: &mut Report, stage: &Stage) {
    let does = "kubectl label namespace shop ferromesh.io/enrolled=true (here: the manifest in the folder)";
    report.step(
        "the same client, not restarted, is under mutual TLS after its namespace is labelled",
        does,
        |evidence| {
            stage.mesh.manifests.namespace("shop", true)?;
            stage.mesh.enrolled(&[&stage.web, &stage.api, &stage.front, &stage.db])?;
            let wanted = [(names::REPORTER, names::DESTINATION), (names::SOURCE_ID, &stage.web.spiffe_id())];
            let record = stage
                .mesh
                .in_force("a record with the client's identity", || stage.mesh.record(2, &wanted))?;
            let (captured, answers) = watch(stage, "after")?;
            evidence.line(format!(
                "{answers} pages fetched by process {}, the same as before",
                stage.client.id()
            ));
            evidence.line(format!(
                "new connections on the link: {} (leased connections stay open)",
                ports(&captured)
            ));
            evidence.line(format!("segments to or from 15008: {}", captured.with_port(15008)));
            ensure!(answers > 0 && captured.with_port(15008) > 0, "nothing went through the mesh");
            ensure!(!captured.contains(SECRET.as_bytes()), "bytes of the payload were seen on the link");
            ensure!(captured.with_port(80) == 0, "connections to port 80 were seen on the link");
            evidence.line("not one byte of the payload on the link");
            for name in [names::SOURCE_ID, names::DESTINATION_ID, names::PROTOCOL] {
                evidence.line(format!("log of n2's agent: {name} = {}", field(&record, name)));
            }
            let (_, bad) = stage.client_answers();
            evidence.line(format!("requests of the client that failed so far: {}", bad.len()));
            Ok(())
        },
    );
}

pub(super) fn services(report: &mut Report, stage: &Stage) {
    let does = "curl, psql and redis-cli dial virtual addresses that no kube-proxy serves";
    report.step("curl, psql and redis-cli reach their services by virtual addresses", does, |evidence| {
        let page = stage
            .web
            .run("curl", &["-sS", "--max-time", "5", &format!("http://{FRONT}:8080/")])?
            .success()?;
        evidence.line(format!("shop/web$ curl http://{FRONT}:8080/        -> {page}"));
        let query = ["-h", DB, "-U", "postgres", "-Atc", "select count(*) from orders"];
        let rows = stage.api.run("psql", &query)?.success()?;
        evidence.line(format!("shop/api$ psql -h {DB} 'select count(*)' -> {}", rows.trim()));
        let set = stage.api.run("redis-cli", &["-h", CACHE, "set", "greeting", SECRET])?.success()?;
        let get = stage.web.run("redis-cli", &["-h", CACHE, "get", "greeting"])?.success()?;
        evidence.line(format!("shop/api$ redis-cli -h {CACHE} set ...     -> {}", set.trim()));
        evidence.line(format!("shop/web$ redis-cli -h {CACHE} get ...     -> {}", get.trim()));
        ensure!(page == SECRET && rows.trim() == "3" && get.trim() == SECRET, "a wrong answer");
        Ok(())
    });
}

pub(super) fn true_client(report: &mut Report, stage: &Stage) {
    report.step(
        "nginx logs the true client address",
        "tail -1 access.log of shop/front's nginx",
        |evidence| {
            let log = stage.nginx.access_log();
            let line = log.lines().last().unwrap_or_default();
            evidence.line(line);
            evidence.line(format!("shop/web's address is {}", stage.web.v4));
            ensure!(line.starts_with(&format!("{} ", stage.web.v4)), "another address is logged");
            let others = log.lines().filter(|line| !line.starts_with(&stage.web.v4.to_string())).count();
            ensure!(others == 0, "{others} lines carry another address");
            Ok(())
        },
    );
}

pub(super) fn golden_metrics(report: &mut Report, stage: &Stage) {
    let does = "curl http://NODE:15020/metrics on both nodes";
    report.step("the golden metrics name both ends of every connection", does, |evidence| {
        let mut total = 0.0;
        for node in [1, 2] {
            total += table(evidence, stage, node)?;
        }
        ensure!(total > 0.0, "no connection was counted");
        Ok(())
    });
}

/// Adds a table of the connections that closed, by both ends and response flags.
fn table(evidence: &mut Evidence, stage: &Stage, node: u8) -> Result<f64> {
    let metrics = stage.mesh.metrics(node)?;
    let mut rows: BTreeMap<[String; 6], f64> = BTreeMap::new();
    for sample in metrics.0.iter().filter(|sample| sample.name == "ferromesh_tcp_connections_closed_total") {
        let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
        let end = |side: &str| {
            format!("{}/{}", label(&format!("{side}_workload_namespace")), label(&format!("{side}_workload")))
        };
        let key = [
            label("reporter"),
            end("source"),
            end("destination"),
            label("destination_service"),
            label("connection_security_policy"),
            label("response_flags"),
        ];
        *rows.entry(key).or_default() += sample.value;
    }
    let line = |cells: [&str; 6], count: &str| {
        let [reporter, source, destination, service, security, flags] = cells;
        format!("{reporter:<12}{source:<18}{destination:<18}{service:<13}{security:<11}{flags:<24}{count:>6}")
    };
    evidence.line(format!("node n{node}:"));
    evidence.line(line(["reporter", "source", "destination", "service", "security", "flags"], "closed"));
    for (key, count) in &rows {
        evidence.line(line(key.each_ref().map(String::as_str), &count.to_string()));
    }
    Ok(rows.values().sum())
}
