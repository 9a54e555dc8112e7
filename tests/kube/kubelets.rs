//! Pods that a kubelet makes, in the cgroups of either driver, found by the agents by themselves: Deployments and Jobs on a
//! real control plane.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mesh_tests::access_log::names;
use mesh_tests::kube::Cluster;
use mesh_tests::mesh::Mesh;
use mesh_tests::poll;
use mesh_tests::world::binary;
use serde_json::{Value, json};

use crate::stage::{
    ECHO, MADE, SHOP, VIP, api, ask, cluster, is_echo, open, pod, pods_of, rolled_out, running, source,
    template, until_asking,
};

/// Jobs that are never started again and ask `api` with their first act.
fn job(cluster: &Cluster, app: &str, node: u8, pods: u32) -> Result<()> {
    cluster.service_account(SHOP, app)?;
    let peer = binary("peer")?.to_string_lossy().into_owned();
    let ask =
        format!("\"$0\" talk --to {VIP}:{ECHO} --send hello --half-close | grep '\"received\":\"hello\"'");
    let mut template = template(app, node, &["sh", "-c", &ask, &peer]);
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "namespace": SHOP, "name": app },
        "spec": { "backoffLimit": 0, "completions": pods, "parallelism": pods, "template": template },
    });
    cluster.apply(&job)?.success().map(drop)
}

#[test]
fn pods_of_either_cgroup_driver_are_enrolled_by_a_label_and_a_policy_is_applied_edited_and_deleted()
-> Result<()> {
    let mesh = open(false)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod(cluster, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    let api = running(&mesh, 2, &pods_of(cluster, "api")?[0])?;
    // Nothing but the mesh knows services here.
    let told = web.peer(&["talk", "--to", &api.at(ECHO), "--send", "hello", "--half-close"])?;
    ensure!(is_echo(&told), "{told}");

    cluster.kubectl(&["label", "namespace", SHOP, "ferromesh.io/enrolled=true"])?.success()?;
    mesh.enrolled(&[&web, &api])?;
    let told = until_asking(&mesh, &web, true)?;
    ensure!(source(&mesh, &told)? == web.spiffe_id());

    let policy = |port: u16| {
        json!({
            "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": { "namespace": SHOP, "name": "closed" },
            "spec": {
                "action": "DENY", "selector": { "matchLabels": { "app": "api" } },
                "rules": [{
                    "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/web"] } }],
                    "to": [{ "operation": { "ports": [port] } }],
                }],
            },
        })
    };
    cluster.apply(&policy(ECHO))?.success()?;
    until_asking(&mesh, &web, false)?;
    cluster.apply(&policy(ECHO + 1))?.success()?;
    until_asking(&mesh, &web, true)?;
    cluster.apply(&policy(ECHO))?.success()?;
    until_asking(&mesh, &web, false)?;
    cluster.kubectl(&["-n", SHOP, "delete", "fap", "closed"])?.success()?;
    until_asking(&mesh, &web, true)?;

    // The agents' own pods are on the nodes' network.
    for node in [1, 2] {
        let uid =
            cluster.get("pod", "ferromesh-system", &format!("agent-n{node}"))?["metadata"]["uid"].clone();
        let status: Value = serde_json::from_str(&mesh.meshctl(node, &["-o", "json", "status"])?.stdout)?;
        ensure!(status["agent"]["on_node_network"] == json!([uid]), "{status}");
        ensure!(mesh.metrics(node)?.sum("ferromesh_pods_on_node_network", &[]) == 1.0);
    }
    Ok(())
}

#[test]
fn a_job_that_is_never_restarted_asks_with_its_first_act_and_is_known_by_its_identity() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    rolled_out(&mesh)?;
    for (app, node) in [("once", 1), ("near", 2)] {
        job(cluster, app, node, 1)?;
        done(&mesh, app, MADE)?;
        let id = format!("spiffe://cluster.local/ns/{SHOP}/sa/{app}");
        mesh.record(2, &[(names::SOURCE_ID, &id), (names::REPORTER, names::DESTINATION)])?;
    }
    Ok(())
}

/// Waits until all pods of a Job have ended well.
fn done(mesh: &Mesh, app: &str, limit: Duration) -> Result<()> {
    let end = poll::until(&format!("the Job {app} to end"), limit, || {
        let job = cluster(mesh)?.get("job", SHOP, app)?;
        let ended = |kind: &str| {
            let all = job["status"]["conditions"].as_array().into_iter().flatten();
            all.into_iter().any(|c| c["type"] == kind && c["status"] == "True")
        };
        ensure!(ended("Complete") || ended("Failed"), "{}", job["status"]);
        Ok(ended("Complete"))
    })
    .with_context(|| mesh.logs())?;
    let outputs = || -> Result<String> {
        let pods = pods_of(cluster(mesh)?, app)?;
        let of = |pod: &String| mesh.kubelets.iter().map(|k| k.output(SHOP, pod)).collect::<String>();
        Ok(pods.iter().map(of).collect())
    };
    ensure!(end, "the Job {app} failed: {}\n{}", outputs()?, mesh.logs());
    Ok(())
}

#[test]
fn a_hundred_pods_that_start_at_once_all_ask_with_their_first_act() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    rolled_out(&mesh)?;
    for (app, node) in [("many", 1), ("more", 2)] {
        job(cluster, app, node, 50)?;
    }
    for app in ["many", "more"] {
        done(&mesh, app, Duration::from_secs(180))?;
        let id = format!("spiffe://cluster.local/ns/{SHOP}/sa/{app}");
        mesh.in_force("fifty records", || {
            let wanted = [(names::SOURCE_ID, id.as_str()), (names::REPORTER, names::DESTINATION)];
            let found = mesh.access_log(2).count(&wanted);
            ensure!(found == 50, "{found} records");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_rollout_loses_no_request() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 2)?;
    pod(cluster, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    mesh.enrolled(&[&web])?;
    until_asking(&mesh, &web, true)?;
    let before = pods_of(cluster, "api")?;
    cluster.kubectl(&["-n", SHOP, "rollout", "restart", "deployment/api"])?.success()?;
    let asked = std::thread::scope(|scope| {
        let rolled = scope.spawn(|| rolled_out(&mesh));
        let mut asked = 0;
        while !rolled.is_finished() {
            let told = ask(&web)?;
            ensure!(is_echo(&told), "after {asked} requests: {told}\n{}", mesh.logs());
            asked += 1;
        }
        rolled.join().map_err(|_| anyhow!("it panicked"))??;
        Ok::<_, anyhow::Error>(asked)
    })?;
    let after = pods_of(cluster, "api")?;
    ensure!(after.len() == 2 && before.iter().all(|name| !after.contains(name)), "{before:?} {after:?}");
    ensure!(asked > 10, "only {asked} requests");
    Ok(())
}

#[test]
fn an_address_that_is_used_again_is_the_new_pods() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    rolled_out(&mesh)?;
    let mut address = None;
    for app in ["first", "second", "third"] {
        pod(cluster, app, 1)?;
        let pod = running(&mesh, 1, app)?;
        ensure!(*address.get_or_insert(pod.v4) == pod.v4, "another address: {}", pod.v4);
        mesh.enrolled(&[&pod])?;
        let told = until_asking(&mesh, &pod, true)?;
        ensure!(source(&mesh, &told)? == pod.spiffe_id(), "{told}");
        cluster.kubectl(&["-n", SHOP, "delete", "pod", app, "--grace-period=1"])?.success()?;
    }
    Ok(())
}
