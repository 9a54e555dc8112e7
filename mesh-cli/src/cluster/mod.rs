//! `meshctl install`, `upgrade`, `uninstall` and `check --cluster`: the plain manifests of this build on a cluster, with
//! what has to hold before and after, each failing point with its mend. In: kubectl. Out: a list of checks.

mod kubectl;
mod look;
mod plaintext;
mod pod;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::Answer;
use crate::check::told;

pub(crate) use kubectl::Kubectl;
use kubectl::SYSTEM;

const DEFINITIONS: &str = include_str!("../../../deploy/manifests/00-crds.yaml");
const NAMESPACE: &str = include_str!("../../../deploy/manifests/01-namespace.yaml");
const RIGHTS: &str = include_str!("../../../deploy/manifests/02-controller-rbac.yaml");
const CONTROLLER: &str = include_str!("../../../deploy/manifests/03-controller.yaml");
const AGENT: &str = include_str!("../../../deploy/manifests/04-agent.yaml");
const LEAVE: &str = include_str!("../../../deploy/leave/agent.yaml");
/// What `DEFINITIONS` defines.
const DEFINED: [&str; 3] =
    ["authorizationpolicies.ferromesh.io", "meshconfigs.ferromesh.io", "workloadentries.ferromesh.io"];
/// The image that the manifests name.
const IMAGE: &str = concat!("localhost/ferromesh:", env!("CARGO_PKG_VERSION"));
/// What the controller makes by itself.
const MADE: [&str; 3] = ["secret/ferromesh-ca", "configmap/ferromesh-root", "lease/ferromesh-controller"];

/// What is installed, and how long it may take.
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// The image with the three programs; none is published (deploy/image/Containerfile builds it)
    #[arg(long)]
    image: String,
    /// How long the controller and the agents may take until they are ready, in seconds; 0: nothing is waited for
    #[arg(long, default_value_t = 300)]
    wait: u32,
    #[command(flatten)]
    kubectl: Kubectl,
}

/// What is removed.
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    /// Take the enrolment label off the namespaces that have it, first
    #[arg(long)]
    unenrol: bool,
    /// Remove the custom resources too, with everything that was written for the mesh
    #[arg(long)]
    crds: bool,
    /// Go on when nodes have not left the mesh in time: their enrolled pods stay closed
    #[arg(long)]
    abandon_nodes: bool,
    /// How long the nodes may take to leave the mesh, in seconds
    #[arg(long, default_value_t = 300)]
    wait: u32,
    #[command(flatten)]
    kubectl: Kubectl,
}

/// Installs, or (`again`) upgrades what is installed.
pub(crate) fn install(args: &Install, again: bool) -> Result<Answer> {
    let kubectl = &args.kubectl;
    let image = image(&args.image)?;
    let before = look::before(kubectl)?;
    if before.iter().any(|check| !check.ok) {
        return Ok(told(&before, "nothing was changed\n"));
    }
    match held(kubectl)? {
        None if again => bail!("nothing is installed: meshctl install"),
        Some(_) if !again => bail!("the mesh is installed already: meshctl upgrade"),
        _ => {}
    }
    kubectl.apply(&[DEFINITIONS, NAMESPACE].concat())?;
    let names = DEFINED.map(|name| format!("crd/{name}"));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    kubectl.run(&[&["wait", "--for=condition=Established", "--timeout=60s"][..], &names].concat())?;
    kubectl.apply(&[RIGHTS, CONTROLLER, AGENT].concat().replace(IMAGE, image))?;
    if args.wait == 0 {
        return Ok(told(&before, "applied; `meshctl check --cluster` says when it runs\n"));
    }
    let mut late = Vec::new();
    for object in ["deployment/ferromesh-controller", "daemonset/ferromesh-agent"] {
        if let Err(error) = kubectl.rolled_out(object, args.wait) {
            late.push(format!("{error:#}\n"));
        }
    }
    Ok(told(&[before, look::after(kubectl)?].concat(), &late.concat()))
}

/// Takes every node out of the mesh, then removes what was installed.
pub(crate) fn uninstall(args: &Uninstall) -> Result<Answer> {
    let kubectl = &args.kubectl;
    let agent = held(kubectl)?;
    unenrol(kubectl, args.unenrol)?;
    let mut said = String::new();
    if let Some(agent) = agent {
        let image = agent.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
        kubectl.apply(&LEAVE.replace(IMAGE, image.context("the DaemonSet names no image")?))?;
        if let Err(error) = kubectl.rolled_out("daemonset/ferromesh-agent", args.wait) {
            let agents = look::after(kubectl)?.into_iter().find(|check| check.name == "agents");
            said = format!(
                "not every node has left: {}; {error:#}\n",
                agents.map_or_else(String::new, |c| c.found)
            );
            ensure!(
                args.abandon_nodes,
                "{said}run it again, or give --abandon-nodes: pods there stay closed"
            );
        }
    }
    let delete = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
    kubectl.feed(&delete, &[AGENT, CONTROLLER, RIGHTS].concat())?;
    kubectl.run(&[&["-n", SYSTEM, "delete", "--ignore-not-found"][..], &MADE].concat())?;
    kubectl.feed(&delete, NAMESPACE)?;
    if args.crds {
        kubectl.feed(&delete, DEFINITIONS)?;
    }
    said.push_str(if args.crds { "removed\n" } else { "removed, but for the custom resources (--crds)\n" });
    Ok(Answer { json: json!({ "removed": true, "crds": args.crds, "said": said }), table: said, ok: true })
}

/// `meshctl check --cluster`.
pub(crate) fn check(kubectl: &Kubectl) -> Result<Answer> {
    Ok(told(&[look::before(kubectl)?, look::after(kubectl)?].concat(), ""))
}

/// The agents' DaemonSet, if meshctl or kubectl installed it.
fn held(kubectl: &Kubectl) -> Result<Option<Value>> {
    let agent = kubectl.find("daemonset", "ferromesh-agent")?;
    let manager = |agent: &Value| agent["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm";
    ensure!(
        !agent.as_ref().is_some_and(manager),
        "helm installed this mesh: use `helm upgrade` and `helm uninstall` (README.md, On Kubernetes)"
    );
    Ok(agent)
}

fn unenrol(kubectl: &Kubectl, really: bool) -> Result<()> {
    let label = ["get", "namespaces", "-l", "ferromesh.io/enrolled=true", "-o", "name"];
    let enrolled = kubectl.run(&label)?;
    let enrolled: Vec<&str> = enrolled.split_whitespace().collect();
    if enrolled.is_empty() {
        return Ok(());
    }
    ensure!(
        really,
        "still enrolled: {}; take the label ferromesh.io/enrolled off, or give --unenrol",
        enrolled.join(", ")
    );
    kubectl.run(&[&["label"][..], &enrolled, &["ferromesh.io/enrolled-"]].concat()).map(drop)
}

/// An image's name, as it goes into the manifests' quotes.
fn image(name: &str) -> Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    ensure!(!name.is_empty() && name.chars().all(plain), "--image {name:?} is no image's name");
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_the_one_that_is_asked_for_wherever_the_manifests_name_one() {
        for text in [CONTROLLER, AGENT, LEAVE] {
            assert_eq!(text.matches(IMAGE).count(), 1);
            assert_eq!(text.matches("image: ").count(), 1);
        }
        assert!(image("registry.example:5000/a/ferromesh@sha256:0f").is_ok());
        assert!(image("a\" # b").is_err() && image("").is_err());
    }
}
