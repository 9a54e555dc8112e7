//! What a cluster has and lacks for the mesh. In: kubectl. Out: checks, each with its mend.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::kubectl::{Kubectl, SYSTEM};
use super::pod::{is_ready, node};
use super::{DEFINED, plaintext};
use crate::check::Check;

/// appArmorProfile in a securityContext came with it.
const LEAST_KUBERNETES: (u32, u32) = (1, 30);
const LEAST_LINUX: (u32, u32) = (6, 1);
const TUNNEL: u64 = 15008;

/// What has to hold before anything is installed.
pub(super) fn before(kubectl: &Kubectl) -> Result<Vec<Check>> {
    let version = kubectl.json(&["version"])?;
    let mut checks = vec![version_check(&version["serverVersion"])];
    // Its exit code is the answer too.
    let may = kubectl.run(&["auth", "can-i", "*", "*", "--all-namespaces"]).is_ok();
    let mend = "use credentials that may do everything (the ClusterRole cluster-admin)";
    checks.push(Check::of_cluster("rights", may, if may { "everything" } else { "not everything" }, mend));
    checks.extend(items(&kubectl.json(&["get", "nodes"])?).iter().filter_map(kernel_check));
    Ok(checks)
}

/// What has to hold once it is.
pub(super) fn after(kubectl: &Kubectl) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for name in DEFINED {
        let held = kubectl.find("crd", name)?;
        let found = if held.is_some() { "there" } else { "missing" };
        checks.push(Check::of_cluster(name, held.is_some(), found, "meshctl install"));
    }
    let controller = kubectl.find("deployment", "ferromesh-controller")?;
    checks.push(counted("controller", controller.as_ref(), ("/spec/replicas", "/status/readyReplicas")));
    let agent = kubectl.find("daemonset", "ferromesh-agent")?;
    let paths = ("/status/desiredNumberScheduled", "/status/numberReady");
    let mut agents = counted("agents", agent.as_ref(), paths);
    let pods =
        kubectl.json(&["-n", SYSTEM, "get", "pods", "-l", "app.kubernetes.io/name=ferromesh-agent"])?;
    let missing: Vec<&str> = items(&pods).iter().filter(|pod| !is_ready(pod)).map(node).collect();
    if !missing.is_empty() {
        agents.found = format!("{}; not on {}", agents.found, missing.join(", "));
    }
    checks.push(agents);
    let label = ["get", "namespaces", "-l", "ferromesh.io/enrolled=true"];
    let enrolled = kubectl.json(&label)?;
    let names = items(&enrolled).iter().filter_map(|namespace| namespace["metadata"]["name"].as_str());
    let enrolled: BTreeSet<&str> = names.collect();
    if !items(&pods).is_empty() {
        checks.extend(plaintext::checks(kubectl, items(&pods), &enrolled));
    }
    for name in enrolled {
        let policies = kubectl.json(&["-n", name, "get", "networkpolicies.networking.k8s.io"])?;
        checks.extend(items(&policies).iter().filter_map(|policy| tunnel_check(name, policy)));
    }
    Ok(checks)
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// The first two numbers of a version; what follows them (`30+`, `1-amd64`) does not count.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let mut next = || {
        let part = parts.next()?;
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    };
    Some((next()?, next()?))
}

fn version_check(server: &Value) -> Check {
    let found = server["gitVersion"].as_str().unwrap_or("unknown");
    let ok = numbers(found).is_some_and(|held| held >= LEAST_KUBERNETES);
    Check::of_cluster("Kubernetes version", ok, found, "upgrade the cluster to 1.30 or newer")
}

fn kernel_check(node: &Value) -> Option<Check> {
    let info = &node["status"]["nodeInfo"];
    // A node that has not reported yet, or is not Linux, gets no agent that could fail.
    let kernel = info["kernelVersion"].as_str().filter(|_| info["operatingSystem"] == "linux")?;
    let name = format!("kernel of node {}", node["metadata"]["name"].as_str().unwrap_or_default());
    let ok = numbers(kernel).is_some_and(|held| held >= LEAST_LINUX);
    Some(Check::of_cluster(&name, ok, kernel, "run Linux 6.1 or newer on it"))
}

fn counted(name: &str, object: Option<&Value>, (wanted, ready): (&str, &str)) -> Check {
    let Some(object) = object else {
        return Check::of_cluster(name, false, "missing", "meshctl install");
    };
    let number = |path: &str| object.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (wanted, ready) = (number(wanted), number(ready));
    let mend = "kubectl -n ferromesh-system describe pods, and their logs, say why";
    Check::of_cluster(name, ready >= wanted && wanted > 0, &format!("{ready} of {wanted} ready"), mend)
}

/// A NetworkPolicy of an enrolled namespace that opens ports, and not the tunnel's. One that opens nothing is left alone:
/// another one says then what is open.
fn tunnel_check(namespace: &str, policy: &Value) -> Option<Check> {
    let blocked: Vec<&str> = ["ingress", "egress"]
        .into_iter()
        .filter(|direction| {
            let rules = policy["spec"][direction].as_array().map_or(&[][..], Vec::as_slice);
            !rules.is_empty() && !rules.iter().any(admits_tunnel)
        })
        .collect();
    if blocked.is_empty() {
        return None;
    }
    let name = policy["metadata"]["name"].as_str().unwrap_or_default();
    let name = format!("NetworkPolicy {namespace}/{name}");
    let found = format!("its {} has no port {TUNNEL}", blocked.join(" and "));
    let mend = "add TCP 15008 to its ports: between enrolled pods everything goes there";
    Some(Check::weak_of_cluster(&name, &found, mend))
}

fn admits_tunnel(rule: &Value) -> bool {
    let Some(ports) = rule["ports"].as_array().filter(|ports| !ports.is_empty()) else { return true };
    ports.iter().any(|port| {
        let tcp = port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP");
        let first = port["port"].as_u64();
        let last = port["endPort"].as_u64().or(first);
        tcp && (port["port"].is_null()
            || first.zip(last).is_some_and(|(first, last)| (first..=last).contains(&TUNNEL)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn versions_are_read_as_clusters_and_kernels_write_them() {
        assert_eq!(numbers("v1.30.2-gke.100"), Some((1, 30)));
        assert_eq!(numbers("6.1.0-18-amd64"), Some((6, 1)));
        assert!(!version_check(&json!({ "gitVersion": "v1.29.9" })).ok);
        let node = |kernel: &str, os: &str| json!({ "metadata": { "name": "n1" }, "status": { "nodeInfo": { "kernelVersion": kernel, "operatingSystem": os } } });
        let check = kernel_check(&node("5.15.0-91-generic", "linux")).unwrap();
        assert!(!check.ok && check.mend.contains("6.1") && check.name.contains("n1"));
        assert!(kernel_check(&node("6.12.1", "linux")).unwrap().ok);
        assert!(kernel_check(&node("10.0.20348", "windows")).is_none());
    }

    #[test]
    fn a_network_policy_that_opens_ports_without_the_tunnel_s_is_named() {
        let policy = |ingress: Value| json!({ "metadata": { "name": "p" }, "spec": { "ingress": ingress } });
        let named = |ingress: Value| tunnel_check("shop", &policy(ingress)).map(|check| check.found);
        let port = |port: Value| json!([{ "ports": [port] }]);
        assert_eq!(named(port(json!({ "port": 80 }))).unwrap(), "its ingress has no port 15008");
        assert!(named(port(json!({ "port": 15008, "protocol": "UDP" }))).is_some());
        assert!(named(port(json!({ "port": "http" }))).is_some());
        for open in [json!({ "port": 15008 }), json!({ "port": 15000, "endPort": 15010 }), json!({})] {
            assert_eq!(named(port(open)), None);
        }
        assert_eq!(named(json!([{ "from": [] }])), None);
        assert_eq!(named(json!([])), None);
    }
}
