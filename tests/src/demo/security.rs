//! Steps about who may: a database for one client only, strict mode, certificates that are renewed under traffic.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

use super::report::{Evidence, Report};
use super::stage::{DB, Stage};
use crate::access_log::{field, names};
use crate::manifests::from_account;
use crate::poll;
use crate::world::{Finished, Pod};

/// A pod asks the database.
fn query(pod: &Pod) -> Result<Finished> {
    pod.run("psql", &["-h", DB, "-U", "postgres", "-Atc", "select 'rows: ' || count(*) from orders"])
}

pub(super) fn database_policy(report: &mut Report, stage: &Stage) {
    let does = "apply AuthorizationPolicy shop/db-for-api: ALLOW cluster.local/ns/shop/sa/api to app=db";
    report.step(
        "only shop/api may reach the database; shop/web is refused, with the reason",
        does,
        |evidence| {
            stage.mesh.manifests.policy(
                ("shop", "db-for-api"),
                "db",
                "ALLOW",
                from_account("shop", "api"),
            )?;
            let refused = stage.mesh.in_force("shop/web to be refused", || {
                let told = query(&stage.web)?;
                if told.ok() { Err(anyhow!("it still gets in: {}", told.stdout)) } else { Ok(told) }
            })?;
            let allowed = query(&stage.api)?.success()?;
            evidence.line(format!("shop/api$ psql -> {}", allowed.trim()));
            evidence.line(format!("shop/web$ psql -> {}", refused.stderr.lines().next().unwrap_or_default()));
            let wanted =
                [(names::SOURCE_ID, &*stage.web.spiffe_id()), (names::FLAGS, "no_allow_policy_matched")];
            let record = stage.mesh.record(1, &wanted)?;
            evidence.line(format!(
                "log of n1's agent: {}: {}",
                field(&record, names::FLAGS),
                field(&record, "reason")
            ));
            explain(evidence, stage)
        },
    );
}

fn explain(evidence: &mut Evidence, stage: &Stage) -> Result<()> {
    let target = format!("{DB}:5432");
    evidence.line(format!("$ meshctl explain shop/web {target}"));
    let told = stage.mesh.meshctl(1, &["explain", "shop/web", &target])?;
    let said = format!("{}{}", told.stdout, told.stderr);
    for line in said.lines() {
        evidence.line(format!("  {line}"));
    }
    ensure!(said.contains("no ALLOW policy matched"), "`meshctl explain` does not give the reason");
    Ok(())
}

pub(super) fn strict(report: &mut Report, stage: &Stage) {
    let does = "apply MeshConfig shop/default: mtls.mode STRICT";
    report.step("a pod outside of the mesh is refused under strict", does, |evidence| {
        let url = format!("http://{}/", stage.front.at(80));
        let ask = || stage.outsider.run("curl", &["-sS", "--max-time", "5", &url]);
        let before = ask()?.success()?;
        evidence.line(format!("other/outsider$ curl {url} -> {before} (permissive)"));
        stage.mesh.manifests.mesh_config("shop", json!({ "mtls": { "mode": "STRICT" } }))?;
        let refused = stage.mesh.in_force("the outsider to be refused", || {
            let told = ask()?;
            if told.ok() { Err(anyhow!("it still gets in")) } else { Ok(told) }
        })?;
        evidence.line(format!("other/outsider$ curl {url} -> {} (strict)", refused.stderr.trim()));
        let record = stage.mesh.record(2, &[(names::FLAGS, "strict_mtls")])?;
        evidence.line(format!("log of n2's agent: {}", field(&record, "reason")));
        let answers = stage.client_answers().0;
        poll::until_true("shop/web to go on", Duration::from_secs(5), || stage.client_answers().0 > answers)?;
        evidence.line("shop/web's client goes on");
        Ok(())
    });
}

/// The ends of the certificates on a node, by identity.
fn ends(stage: &Stage, node: u8) -> Result<BTreeMap<String, f64>> {
    let metrics = stage.mesh.metrics(node)?;
    let samples =
        metrics.0.into_iter().filter(|sample| sample.name == "ferromesh_certificate_not_after_seconds");
    Ok(samples.filter_map(|sample| Some((sample.labels.get("identity")?.clone(), sample.value))).collect())
}

pub(super) fn rotation(report: &mut Report, stage: &Stage) {
    let does = "wait for shop/web's next certificate (they live 30 s here) while its client goes on";
    report.step("a certificate is renewed under traffic and nothing fails", does, |evidence| {
        let identity = stage.web.spiffe_id();
        let (answers, bad) = stage.client_answers();
        let first = ends(stage, 1)?.get(&identity).copied();
        let first = first.ok_or_else(|| anyhow!("no certificate of {identity} in the metrics"))?;
        let next = poll::until("another certificate", Duration::from_secs(40), || {
            let end = ends(stage, 1)?.get(&identity).copied().unwrap_or_default();
            if end > first { Ok(end) } else { Err(anyhow!("still the one that ends at {first}")) }
        })?;
        std::thread::sleep(Duration::from_secs(1));
        let (more, worse) = stage.client_answers();
        evidence.line(format!("{identity}: the end moved from {first} to {next} (seconds since 1970)"));
        evidence.line(format!(
            "pages fetched meanwhile: {}, failed: {}",
            more - answers,
            worse.len() - bad.len()
        ));
        ensure!(more > answers && worse.len() == bad.len(), "requests failed: {:?}", &worse[bad.len()..]);
        Ok(())
    });
}
