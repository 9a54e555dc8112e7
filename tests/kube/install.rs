//! The charts and the plain manifests on a real API server: what is taken, what is refused, what is left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::{Cluster, deploy};
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::world::{Finished, World, binary};

const SYSTEM: &str = "ferromesh-system";
/// Every value that changes what is rendered, away from its default.
const OTHERWISE: &str = "image.digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,\
    image.pullPolicy=Always,imagePullSecrets[0].name=registry,trustDomain=mesh.example,namespace.create=true,\
    nodeTaint=mesh.example/wait,\
    controller.replicas=3,controller.svidTtl=90m,controller.nodeTtl=7d,controller.issuerSecret=corporate,controller.rootSettle=5m,\
    controller.rootWait=2h,controller.logLevel=debug,\
    controller.resources.limits.memory=1Gi,controller.nodeSelector.pool=infra,\
    controller.tolerations[0].operator=Exists,\
    controller.networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.metrics=yes,\
    agent.leaveSeconds=60,agent.podsCgroup=/sys/fs/cgroup/kubepods,agent.drainSeconds=0,agent.connect=eager,agent.transport=hbone,\
    agent.otherSockets=allow,agent.unclassified=pass,agent.neverHold={a,b},\
    agent.kubeletCgroups={a.slice/k.service,b/k},agent.logLevel=info\\,mesh_agent=debug,\
    agent.resources.limits.memory=1Gi,agent.nodeSelector.pool=apps,agent.selinuxType=,agent.appArmor=RuntimeDefault";

fn chart(name: &str) -> String {
    deploy().join("helm").join(name).to_string_lossy().into_owned()
}

fn otherwise() -> String {
    OTHERWISE.split_whitespace().collect()
}

/// `helm` with the mesh's chart in its namespace.
fn helm(cluster: &Cluster, command: &str, more: &[&str]) -> Result<Finished> {
    let chart = chart("ferromesh");
    let arguments = [command, "ferromesh", &chart, "--namespace", SYSTEM];
    cluster.helm(&[&arguments, more].concat())
}

/// Applies text as strictly as the server can.
fn apply(cluster: &Cluster, world: &World, text: &str, more: &[&str]) -> Result<()> {
    let file = world.files.join("rendered.yaml");
    fs::write(&file, text)?;
    let file = file.to_string_lossy();
    let arguments = ["apply", "--server-side", "--validate=strict", "-f", &file];
    let said = cluster.kubectl(&[&arguments, more].concat())?;
    ensure!(!said.stderr.contains("unknown field"), "{}", said.stderr);
    said.success().map(drop)
}

/// Everything of every kind that carries the mesh's label.
fn ours(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let kinds = cluster.kubectl(&["api-resources", "--verbs=list", "-o", "name"])?.success()?;
    let kinds = kinds.split_whitespace().collect::<Vec<_>>().join(",");
    let label = "app.kubernetes.io/part-of=ferromesh";
    let found = cluster.kubectl(&["get", &kinds, "-A", "-l", label, "-o", "name"])?.success()?;
    Ok(found.lines().map(str::to_owned).collect())
}

#[test]
fn helm_installs_upgrades_and_removes_the_mesh_and_leaves_only_the_custom_resources() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    let resources = chart("ferromesh-crds");
    let install = ["install", "ferromesh-crds", &resources, "--namespace", SYSTEM, "--create-namespace"];
    cluster.helm(&install)?.success()?;
    let definitions = ours(&cluster)?;
    ensure!(definitions.len() == 3, "{definitions:?}");

    let told = helm(&cluster, "install", &[])?.success()?;
    ensure!(told.contains("kubectl label namespace NAME ferromesh.io/enrolled=true"), "{told}");
    let made = ours(&cluster)?;
    for object in [
        "clusterrole.rbac.authorization.k8s.io/ferromesh-controller",
        "daemonset.apps/ferromesh-agent",
        "deployment.apps/ferromesh-controller",
        "networkpolicy.networking.k8s.io/ferromesh-controller",
        "poddisruptionbudget.policy/ferromesh-controller",
        "service/ferromesh-controller",
        "serviceaccount/ferromesh-agent",
    ] {
        ensure!(made.contains(object), "no {object} in {made:?}");
    }
    let template = "{.spec.template.spec.containers[0].image} {.spec.updateStrategy.rollingUpdate.maxSurge}";
    let agent = |cluster: &Cluster| {
        let arguments = ["-n", SYSTEM, "get", "ds", "ferromesh-agent", "-o", &format!("jsonpath={template}")];
        cluster.kubectl(&arguments)?.success()
    };
    ensure!(agent(&cluster)? == "localhost/ferromesh:0.1.0 1", "{}", agent(&cluster)?);
    let told = helm(&cluster, "upgrade", &["--set", "image.tag=0.1.1,agent.leave=true"])?.success()?;
    ensure!(agent(&cluster)? == "localhost/ferromesh:0.1.1 0" && told.contains("helm uninstall"), "{told}");

    // No kubelet runs the hook's Job here.
    cluster.helm(&["uninstall", "ferromesh", "--no-hooks", "--namespace", SYSTEM])?.success()?;
    ensure!(ours(&cluster)? == definitions, "{:?}", ours(&cluster)?);
    cluster.helm(&["uninstall", "ferromesh-crds", "--namespace", SYSTEM])?.success()?;
    ensure!(ours(&cluster)? == definitions, "what users wrote went with the chart: {:?}", ours(&cluster)?);
    Ok(())
}

#[test]
fn everything_that_is_rendered_passes_strict_validation_and_the_plain_manifests_apply_twice() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    let manifests = deploy().join("manifests").to_string_lossy().into_owned();
    for _ in 0..2 {
        // In the order of their names, as a user does.
        let arguments = ["apply", "--server-side", "--validate=strict", "-f", &manifests];
        cluster.kubectl(&arguments)?.success()?;
    }
    let unhooked = "agent.leaveOnUninstall=false";
    for values in [&*otherwise(), "agent.leave=true", "controller.networkPolicy.enabled=false", unhooked] {
        let text = helm(&cluster, "template", &["--set", values])?.success()?;
        ensure!(text.contains("helm.sh/hook: pre-delete") == (values != unhooked), "{text}");
        apply(&cluster, &world, &text, &["--dry-run=server", "--force-conflicts"])
            .with_context(|| values.to_owned())?;
    }
    Ok(())
}

#[test]
fn the_monitors_are_what_the_prometheus_operator_takes_and_no_agent_is_read_twice() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube/monitors.yaml");
    apply(&cluster, &world, &fs::read_to_string(definitions)?, &[])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])?.success()?;
    cluster.namespace(SYSTEM)?;
    for (values, services, pods) in [
        ("monitoring.podMonitor=true", 0, 0),
        ("monitoring.enabled=true", 2, 0),
        (
            "monitoring.enabled=true,monitoring.podMonitor=true,monitoring.interval=1m,monitoring.labels.a=b",
            1,
            1,
        ),
    ] {
        let text = helm(&cluster, "template", &["--no-hooks", "--set", values])?.success()?;
        let count = |kind: &str| text.matches(&format!("kind: {kind}\n")).count();
        ensure!((count("ServiceMonitor"), count("PodMonitor")) == (services, pods), "{text}");
        // The controller has its Service anyway; the agents' is there for their monitor alone.
        ensure!(count("Service") == 1 + services.saturating_sub(1), "{text}");
        apply(&cluster, &world, &text, &["--dry-run=server", "--force-conflicts"]).with_context(|| values)?;
    }
    let said = helm(&cluster, "template", &["--set", "monitoring.podMonitor=maybe"])?;
    ensure!(!said.ok() && said.stderr.contains("/monitoring/podMonitor"), "{said:?}");
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    for (value, wanted) in [
        ("controller.replica=3", "additional properties 'replica' not allowed"),
        ("controller.replicas=0", "minimum"),
        ("controller.svidTtl=soon", "/controller/svidTtl"),
        ("agent.connect=maybe", "/agent/connect"),
        ("agent.drainSeconds=-1", "/agent/drainSeconds"),
        ("agent.leaveSeconds=0", "/agent/leaveSeconds"),
        ("agent.podsCgroup=kubepods", "/agent/podsCgroup"),
        ("agent.neverHold=null", "neverHold"),
        ("agent.privileged=true", "additional properties 'privileged' not allowed"),
        ("trustDomain=Cluster Local", "/trustDomain"),
        ("image.digest=latest", "/image/digest"),
    ] {
        let said = helm(&cluster, "template", &["--set", value])?;
        ensure!(!said.ok() && said.stderr.contains(wanted), "{value}: {said:?}");
    }
    let arguments = ["template", "ferromesh", &chart("ferromesh"), "--namespace", "other"];
    let said = cluster.helm(&arguments)?;
    ensure!(!said.ok() && said.stderr.contains("the namespace must be ferromesh-system"), "{said:?}");
    Ok(())
}

#[test]
fn meshctl_installs_upgrades_checks_and_removes_the_mesh_and_says_what_is_to_be_mended() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    let install = |command: &str, tag: &str| {
        let image = format!("registry.example:5000/ferromesh:{tag}");
        cluster.meshctl(&[command, "--image", &image, "--wait", "0"])
    };
    let said = install("upgrade", "1")?;
    ensure!(!said.ok() && said.stderr.contains("nothing is installed: meshctl install"), "{said:?}");
    install("install", "1")?.success()?;
    let said = install("install", "2")?;
    ensure!(!said.ok() && said.stderr.contains("meshctl upgrade"), "{said:?}");
    install("upgrade", "2")?.success()?;
    let agent = cluster.get("daemonset", SYSTEM, "ferromesh-agent")?;
    let container = &agent["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == "registry.example:5000/ferromesh:2", "{container}");

    // No controller-manager and no kubelet here: nothing runs, and the check says so.
    cluster.namespace("shop")?;
    cluster.kubectl(&["label", "namespace", "shop", "ferromesh.io/enrolled=true"])?.success()?;
    let policy = serde_json::json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": "shop", "name": "web" },
        "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] },
    });
    cluster.apply(&policy)?.success()?;
    let said = cluster.meshctl(&["check", "--cluster"])?;
    ensure!(!said.ok(), "{said:?}");
    let table = said.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in [
        "meshconfigs.ferromesh.io cluster yes there -",
        "workloadentries.ferromesh.io cluster yes there -",
        "controller cluster no 0 of 2 ready kubectl -n ferromesh-system describe pods",
        "NetworkPolicy shop/web cluster weak its ingress has no port 15008 add TCP 15008",
    ] {
        ensure!(table.contains(line), "no {line:?} in {}", said.stdout);
    }

    let said = cluster.meshctl(&["uninstall", "--wait", "1"])?;
    ensure!(!said.ok() && said.stderr.contains("still enrolled: namespace/shop"), "{said:?}");
    let said = cluster.meshctl(&["uninstall", "--wait", "1", "--unenrol"])?;
    ensure!(!said.ok() && said.stderr.contains("not every node has left"), "{said:?}");
    let agent = cluster.get("daemonset", SYSTEM, "ferromesh-agent")?;
    let container = &agent["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["args"] == serde_json::json!(["--leave=/sys/fs/bpf/ferromesh"]), "{container}");
    ensure!(container["image"] == "registry.example:5000/ferromesh:2", "{container}");
    let probe = &container["readinessProbe"]["exec"]["command"][1];
    ensure!(probe == "--left=/sys/fs/bpf/ferromesh", "the way out keeps the agent's probe: {container}");
    cluster.meshctl(&["uninstall", "--wait", "1", "--abandon-nodes"])?.success()?;
    let mut left = ours(&cluster)?;
    // Its end is the controller-manager's work.
    left.remove("namespace/ferromesh-system");
    ensure!(left.len() == 3 && left.iter().all(|name| name.starts_with("customresource")), "{left:?}");
    cluster.meshctl(&["uninstall", "--wait", "1", "--crds"])?.success()?;
    Ok(())
}

#[test]
fn meshctl_leaves_what_helm_installed_to_helm() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    helm(&cluster, "install", &["--create-namespace"])?.success()?;
    for arguments in [&["upgrade", "--image", "x:1"][..], &["uninstall"]] {
        let said = cluster.meshctl(arguments)?;
        ensure!(!said.ok() && said.stderr.contains("helm installed this mesh"), "{said:?}");
    }
    Ok(())
}

/// The program and arguments of each container and probe in rendered text.
fn command_lines(text: &str) -> Vec<(String, Vec<String>)> {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(command) = line.strip_prefix("command: [").and_then(|rest| rest.strip_suffix(']')) {
            let mut words = command.split(", ").map(str::to_owned);
            lines.push((words.next().unwrap_or_default(), words.collect()));
        } else if let (Some(argument), Some((_, arguments))) = (line.strip_prefix("- --"), lines.last_mut()) {
            arguments.push(format!("--{argument}"));
        }
    }
    lines
}

#[test]
fn every_command_line_that_the_chart_renders_is_one_that_the_programs_of_the_image_take() -> Result<()> {
    let world = World::with_nodes(0)?;
    let cluster = Cluster::bare(&world)?;
    let containerfile = fs::read_to_string(deploy().join("image/Containerfile"))?;
    let copied = containerfile.lines().find(|line| line.starts_with("COPY --from=build")).context("COPY")?;
    for values in ["agent.leave=false", "agent.leave=true", &otherwise()] {
        let text = helm(&cluster, "template", &["--set", values])?.success()?;
        let lines = command_lines(&text);
        ensure!(lines.len() >= 2, "{text}");
        for (program, arguments) in lines {
            let path = PathBuf::from(&program);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            ensure!(path.parent().is_some_and(|folder| folder == "/usr/local/bin"), "{program}");
            ensure!(copied.split(' ').any(|word| word == format!("/src/target/dist/{name}")), "{copied}");
            // Help is printed only where everything before it was understood.
            let output = Command::new(binary(&name)?).args(&arguments).arg("--help").output()?;
            ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
        }
    }
    Ok(())
}

#[test]
fn the_controller_shows_agents_the_root_s_certificate_and_never_its_key() -> Result<()> {
    let mut mesh = Mesh::prepare(Options { kube: true, transports: Vec::new(), ..Options::default() })?;
    mesh.start_controller()?;
    let cluster = mesh.cluster.as_ref().context("the mesh has no API server")?;
    let shown = cluster.get("configmap", SYSTEM, "ferromesh-root")?;
    let root = fs::read_to_string(mesh.world.files.join("controller/ca/root.pem"))?;
    ensure!(shown["data"] == serde_json::json!({ "root.pem": root }), "{shown}");
    ensure!(!shown.to_string().contains("PRIVATE"), "{shown}");
    Ok(())
}
