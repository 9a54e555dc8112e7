//! What stands between pods in a cluster: kube-proxy for those that are not enrolled, and NetworkPolicies that lack the
//! tunnel's port.

use std::process::Command;

use anyhow::{Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::capture::Capture;
use mesh_tests::kube::User;
use mesh_tests::mesh::Mesh;
use mesh_tests::world::{Pod, Process};
use serde_json::{Value, json};

use crate::stage::{
    ECHO, SHOP, api, ask, cluster, is_echo, namespace, open, pod, pod_with, pods_of, rolled_out, running,
    running_in, source, until_asking,
};

/// Starts kube-proxy on a node, as a cluster's own DaemonSet does.
pub(crate) fn kube_proxy(mesh: &Mesh, node: u8) -> Result<Process> {
    let config = cluster(mesh)?.kubeconfig(User::Admin);
    let node = mesh.world.node(node);
    let arguments = [
        format!("--kubeconfig={}", config.display()),
        format!("--hostname-override={}", node.name),
        "--proxy-mode=nftables".to_owned(),
        "--cluster-cidr=10.88.0.0/14".to_owned(),
        "--conntrack-max-per-core=0".to_owned(),
        "--conntrack-tcp-timeout-established=0s".to_owned(),
        "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
        format!("--healthz-bind-address={}:10256", node.v4),
        format!("--metrics-bind-address={}:10249", node.v4),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = format!("kube-proxy-{}", node.name);
    Process::start(&node.place(), &name, &mesh_tests::kube::program("kube-proxy")?, &arguments)
}

#[test]
fn kube_proxy_serves_those_who_are_not_enrolled_at_the_service_that_the_mesh_serves_for_its_own() -> Result<()>
{
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod(cluster, "web", 1)?;
    namespace(&mesh, "plain", false)?;
    pod_with(cluster, ("plain", "outsider"), "outsider", 1, &[])?;
    rolled_out(&mesh)?;
    let (web, outsider) = (running(&mesh, 1, "web")?, running_in(&mesh, 1, "plain", "outsider")?);
    mesh.enrolled(&[&web])?;
    until_asking(&mesh, &web, true)?;
    ensure!(!is_echo(&ask(&outsider)?), "who served the outsider?");

    let proxy = kube_proxy(&mesh, 1)?;
    let told = mesh.in_force("kube-proxy to serve the outsider", || {
        let told = ask(&outsider)?;
        ensure!(is_echo(&told), "{told}\n{}", proxy.tail());
        Ok(told)
    })?;
    ensure!(source(&mesh, &told)? == names::NOBODY, "{told}");
    let told = ask(&web)?;
    ensure!(is_echo(&told) && source(&mesh, &told)? == web.spiffe_id(), "{told}");
    // Neither way is lost when the service has another pod.
    cluster.kubectl(&["-n", SHOP, "rollout", "restart", "deployment/api"])?.success()?;
    rolled_out(&mesh)?;
    for (pod, id) in [(&outsider, names::NOBODY.to_owned()), (&web, web.spiffe_id())] {
        let told = until_asking(&mesh, pod, true)?;
        ensure!(source(&mesh, &told)? == id, "{told}");
    }
    Ok(())
}

/// What a network plugin makes of a NetworkPolicy that opens one port of a pod: everything else is dropped before it.
fn only(mesh: &Mesh, node: u8, pod: &Pod, ports: &str) -> Result<()> {
    let rules = format!(
        "table inet plugin {{}}\ndelete table inet plugin\ntable inet plugin {{ chain forward {{ type filter hook forward \
         priority 0; ip daddr {} ct state new tcp dport != {{ {ports} }} drop; }}; }}",
        pod.v4
    );
    let netns = &mesh.world.node(node).netns;
    let said = Command::new("ip").args(["netns", "exec", netns, "nft", &rules]).output()?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

#[test]
fn a_network_policy_without_the_tunnels_port_fails_connections_with_a_reason_and_never_opens_plaintext()
-> Result<()> {
    const SECRET: &str = "secret-that-must-not-be-plain";
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod(cluster, "web", 1)?;
    namespace(&mesh, "plain", false)?;
    pod_with(cluster, ("plain", "outsider"), "outsider", 1, &[])?;
    rolled_out(&mesh)?;
    let (web, outsider) = (running(&mesh, 1, "web")?, running_in(&mesh, 1, "plain", "outsider")?);
    let server = running(&mesh, 2, &pods_of(cluster, "api")?[0])?;
    let policy = |ports: &[u16]| {
        let ports: Vec<Value> = ports.iter().map(|port| json!({ "protocol": "TCP", "port": port })).collect();
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": SHOP, "name": "api" },
            "spec": { "podSelector": { "matchLabels": { "app": "api" } }, "ingress": [{ "ports": ports }] },
        })
    };
    cluster.apply(&policy(&[ECHO]))?.success()?;
    only(&mesh, 2, &server, &ECHO.to_string())?;
    mesh.enrolled(&[&web, &server])?;
    let talk = |from: &Pod, text: &str, limit: &str| {
        let to = server.at(ECHO);
        from.peer(&["talk", "--to", &to, "--send", text, "--half-close", "--timeout-ms", limit])
    };
    // The policy leaves the application's own port open.
    mesh.in_force("plaintext to be let through", || {
        let told = talk(&outsider, "hello", "2000")?;
        ensure!(is_echo(&told), "{told}");
        Ok(())
    })?;
    let capture = Capture::start(&mesh.world, 2, "policy")?;
    let told = talk(&web, SECRET, "12000")?;
    ensure!(told["connect"] != "ok", "{told}");
    let record = mesh.record(1, &[(names::FLAGS, "tunnel_unanswered")])?;
    let reason = format!("{}:15008 does not answer", server.v4);
    ensure!(record.to_string().contains(&reason) && record.to_string().contains("NetworkPolicy"), "{record}");
    let checked = cluster.meshctl(&["check", "--cluster"])?;
    let table = checked.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let named = format!("NetworkPolicy {SHOP}/api cluster weak its ingress has no port 15008");
    ensure!(table.contains(&named), "{}", checked.stdout);

    cluster.apply(&policy(&[ECHO, 15008]))?.success()?;
    only(&mesh, 2, &server, &format!("{ECHO}, 15008"))?;
    mesh.in_force("the tunnel to be let through", || {
        let told = talk(&web, SECRET, "4000")?;
        ensure!(told["received"] == SECRET, "{told}");
        Ok(())
    })?;
    let captured = capture.stop()?;
    ensure!(
        captured.with_port(15008) > 0 && !captured.contains(SECRET.as_bytes()),
        "plaintext to an enrolled pod"
    );
    let checked = cluster.meshctl(&["check", "--cluster"])?;
    ensure!(!checked.stdout.contains("NetworkPolicy"), "{}", checked.stdout);
    Ok(())
}
