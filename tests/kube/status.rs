//! What the controller says of the objects on the API server: conditions, events, and who may write them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use mesh_tests::kube::{Cluster, User, deploy};
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{CONTROLLER_V4, Process, binary};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

const SYSTEM: &str = "ferromesh-system";
/// How long a condition may take; a replica takes a lost Lease after fifteen seconds.
const SAID: Duration = Duration::from_secs(20);
const TAKEN_OVER: Duration = Duration::from_secs(45);

/// A controller and an API server; no nodes.
fn open() -> Result<Mesh> {
    let mut mesh = Mesh::prepare(Options { kube: true, transports: Vec::new(), ..Options::default() })?;
    mesh.start_controller()?;
    Ok(mesh)
}

fn cluster(mesh: &Mesh) -> Result<&Cluster> {
    mesh.cluster.as_ref().ok_or_else(|| anyhow!("the mesh has no API server"))
}

fn policy(rules: Value) -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": { "namespace": "default", "name": "p" }, "spec": { "rules": rules },
    })
}

/// Waits until a condition of the policy `p` has this status and reason, for this generation; its message.
fn condition(mesh: &Mesh, about: &str, wanted: (&str, &str, i64), limit: Duration) -> Result<String> {
    poll::until(&format!("{about} to be {wanted:?}"), limit, || {
        let held = cluster(mesh)?.get("fap", "default", "p")?;
        let all = held["status"]["conditions"].as_array().into_iter().flatten();
        let found = all.into_iter().find(|c| c["type"] == about).ok_or_else(|| anyhow!("none: {held}"))?;
        let (status, reason, generation) = wanted;
        ensure!(
            found["status"] == status
                && found["reason"] == reason
                && found["observedGeneration"] == generation,
            "{found}"
        );
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    })
    .map_err(|error| error.context(mesh.logs()))
}

#[test]
fn conditions_say_what_became_of_each_generation_and_a_refusal_is_an_event_as_well() -> Result<()> {
    let mesh = open()?;
    let cluster = cluster(&mesh)?;
    cluster.apply(&policy(json!([{ "to": [{ "operation": { "ports": [80] } }] }])))?.success()?;
    condition(&mesh, "Accepted", ("True", "Accepted", 1), SAID)?;
    condition(&mesh, "Enforced", ("False", "SelectsNothing", 1), SAID)?;

    cluster.apply(&policy(json!([{ "to": [{ "operation": { "methods": ["GET"] } }] }])))?.success()?;
    let message = condition(&mesh, "Enforced", ("False", "HttpNotEnforced", 2), SAID)?;
    ensure!(message.contains("spec.rules[0].to[0].operation.methods"), "{message}");

    // Right by its form, so the API server takes it, and no block of addresses all the same.
    let blocks = json!([{ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }]);
    cluster.apply(&policy(blocks))?.success()?;
    let message = condition(&mesh, "Accepted", ("False", "Malformed", 3), SAID)?;
    ensure!(message.contains("ipBlocks[0]") && message.contains("last good version is kept"), "{message}");
    poll::until("an event", SAID, || {
        let events =
            cluster.kubectl(&["-n", "default", "events", "--for", "authorizationpolicy/p"])?.success()?;
        ensure!(events.contains("Warning") && events.contains("Malformed"), "{events}");
        Ok(())
    })?;

    cluster.kubectl(&["label", "namespace", "kube-public", "ferromesh.io/enrolled=maybe"])?.success()?;
    poll::until("an event", SAID, || {
        let events = cluster.kubectl(&["events", "--for", "namespace/kube-public"])?.success()?;
        ensure!(events.contains("UnknownLabelValue"), "{events}");
        Ok(())
    })
}

#[test]
fn one_replica_writes_and_another_takes_over_when_it_is_gone() -> Result<()> {
    let mut mesh = open()?;
    cluster(&mesh)?.apply(&policy(json!([{ "to": [{ "operation": { "ports": [80] } }] }])))?.success()?;
    condition(&mesh, "Enforced", ("False", "SelectsNothing", 1), SAID)?;
    let holder = |mesh: &Mesh| -> Result<String> {
        let lease = cluster(mesh)?.get("lease", "ferromesh-system", "ferromesh-controller")?;
        Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
    };
    let first = holder(&mesh)?;
    let second = second_controller(&mesh)?;
    poll::until("the second controller to serve", SAID, || {
        ensure!(second.stderr().contains("serving"), "{}", second.tail());
        Ok(())
    })?;
    let root = |of: &str| std::fs::read_to_string(mesh.world.files.join(of).join("ca/root.pem"));
    ensure!(root("controller")? == root("second")?, "two replicas have two roots");
    ensure!(holder(&mesh)? == first, "the Lease changed hands while its holder was there");
    ensure!(!second.stderr().contains("\"leading\":true"), "{}", second.tail());

    mesh.kill_controller();
    cluster(&mesh)?
        .apply(&policy(json!([{ "to": [{ "operation": { "methods": ["GET"] } }] }])))?
        .success()?;
    condition(&mesh, "Enforced", ("False", "HttpNotEnforced", 2), TAKEN_OVER)?;
    ensure!(holder(&mesh)? != first, "nobody took the Lease over");
    Ok(())
}

fn second_controller(mesh: &Mesh) -> Result<Process> {
    let kubeconfig = cluster(mesh)?.kubeconfig(User::Controller);
    let state = mesh.world.files.join("second");
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let arguments = [
        "--source=kube".to_owned(),
        format!("--kubeconfig={}", path(&kubeconfig)),
        format!("--state-dir={}", path(&state)),
        format!("--listen={CONTROLLER_V4}:25010"),
        format!("--metrics-addr={CONTROLLER_V4}:25014"),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Process::start(&mesh.world.wire(), "controller-second", &binary("mesh-controller")?, &arguments)
}

/// An intermediate in the layout of cert-manager's Secrets, as a kubelet mounts them. Gives its key.
fn plug(folder: &Path) -> Result<String> {
    let params = |name: &str, below: u8| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params
    };
    let root = CertifiedIssuer::self_signed(params("corporate", 1), KeyPair::generate()?)?;
    let issuer = CertifiedIssuer::signed_by(params("issuer", 0), KeyPair::generate()?, &root)?;
    fs::create_dir_all(folder)?;
    let key = issuer.key().serialize_pem();
    for (name, text) in [("tls.crt", issuer.pem()), ("tls.key", key.clone()), ("ca.crt", root.pem())] {
        fs::write(folder.join(name), text)?;
    }
    Ok(key)
}

/// The messages of the events on the controller's Deployment, as `kubectl describe` finds them: by its uid.
fn refusals(mesh: &Mesh) -> Result<Vec<String>> {
    let uid = cluster(mesh)?.get("deployment", SYSTEM, "ferromesh-controller")?["metadata"]["uid"].clone();
    let of = format!("reason=IntermediateRefused,involvedObject.uid={}", uid.as_str().unwrap_or_default());
    let events = ["-n", SYSTEM, "get", "events", "--field-selector", &of, "-o", "json"];
    let events = cluster(mesh)?.kubectl(&events)?.json()?;
    let events = events["items"].as_array().into_iter().flatten();
    Ok(events.filter_map(|event| event["message"].as_str().map(str::to_owned)).collect())
}

#[test]
fn a_refused_intermediate_is_one_event_a_refusal_on_the_controllers_deployment() -> Result<()> {
    let mut mesh = Mesh::prepare(Options { kube: true, transports: Vec::new(), ..Options::default() })?;
    let folder = mesh.world.files.join("issuer");
    let good = plug(&folder)?;
    mesh.controller_argument(format!("--issuer-dir={}", folder.display()));
    mesh.start_controller()?;
    cluster(&mesh)?.apply_path(&deploy().join("manifests/03-controller.yaml"))?;
    let told = |number: usize, wanted: &str| {
        poll::until(&format!("event {number} of a refusal"), TAKEN_OVER, || {
            let found = refusals(&mesh)?;
            ensure!(found.len() == number && found.iter().any(|text| text.contains(wanted)), "{found:?}");
            Ok(())
        })
        .map_err(|error| error.context(mesh.logs()))
    };
    let other = KeyPair::generate()?.serialize_pem();
    fs::write(folder.join("tls.key"), &other)?;
    told(1, "the last good one signs on: tls.key is not the key of the first certificate")?;
    let described = ["-n", SYSTEM, "describe", "deployment", "ferromesh-controller"];
    let described = cluster(&mesh)?.kubectl(&described)?.success()?;
    ensure!(described.contains("IntermediateRefused"), "{described}");
    // Not at each look: there are three in this time.
    std::thread::sleep(Duration::from_secs(16));
    told(1, "tls.key is not the key")?;
    // One that is mended and refused again is another.
    fs::write(folder.join("tls.key"), good)?;
    poll::until("the good one to be taken again", TAKEN_OVER, || {
        let log = mesh.controller()?.stderr();
        ensure!(log.contains("the intermediate can be taken again"), "{log}");
        Ok(())
    })?;
    fs::write(folder.join("tls.key"), other)?;
    told(2, "tls.key is not the key")
}
