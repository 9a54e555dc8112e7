//! The agent as the DaemonSet of `deploy/manifests` runs it: with those capabilities and no others, on a root file system
//! that cannot be written, replaced by a rollout, and taken off the node before an uninstall.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::kube::deploy;
use mesh_tests::mesh::{Mesh, Options};
use mesh_tests::poll;
use mesh_tests::world::{Finished, Place, Process, binary};

use crate::shop::{ECHO, NOBODY, Shop, VIP, came_to_nothing, echoed};

const END: Duration = Duration::from_secs(60);

/// The capabilities that the manifest adds.
fn capabilities() -> Result<Vec<String>> {
    let manifest = fs::read_to_string(deploy().join("manifests/04-agent.yaml"))?;
    let (_, after) = manifest.split_once("            add:\n").context("the manifest adds capabilities")?;
    let lines = after.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let names = lines.map_while(|line| line.strip_prefix("- ")).map(str::to_lowercase);
    Ok(names.collect())
}

/// A program that runs the agent with these capabilities at most, on read-only mounts as the runtime makes them; what the
/// scenario has in `files` stands for the host paths that are mounted.
fn contained(files: &Path, capabilities: &[String]) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let cgroups = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).context("cgroup2")?;
    let cgroups = cgroups.split(' ').nth(1).unwrap_or_default();
    let bounding: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private -- sh -c '\n\
         set -e\nmount --bind {files} {files}\nmount -o remount,bind,ro {cgroups}\nmount -o remount,bind,ro /\n\
         exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{bounding} -- {agent} \"$@\"' sh \"$@\"\n",
        files = files.display(),
        agent = binary("mesh-agent")?.display(),
    );
    let program = files.join(format!("contained-agent-{}", capabilities.len()));
    fs::write(&program, text)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

#[test]
fn the_manifest_s_capabilities_and_read_only_mounts_are_enough_and_none_is_too_many() -> Result<()> {
    let capabilities = capabilities()?;
    ensure!(capabilities.len() == 5, "{capabilities:?}");
    let mut shop = Shop::open()?;
    let files = shop.mesh.world.files.clone();
    let place = shop.mesh.world.node(1).place();
    for left_out in &capabilities {
        let others: Vec<String> = capabilities.iter().filter(|name| *name != left_out).cloned().collect();
        let program = contained(&files, &others)?;
        let name = format!("check-without-{left_out}");
        let told = Process::start(&place, &name, &program, &["--check"])?.wait(END)?;
        let all: serde_json::Value = serde_json::from_str(&told.stdout)?;
        let wanted = format!("CAP_{}", left_out.to_uppercase());
        let missing = all.as_array().into_iter().flatten().filter(|check| check["ok"] != true);
        let names: Vec<&str> = missing.filter_map(|check| check["name"].as_str()).collect();
        ensure!(!told.ok() && names.iter().any(|name| name.starts_with(&wanted)), "{left_out}: {names:?}");
    }
    let program = contained(&files, &capabilities)?;
    let told = Process::start(&place, "check-with-all", &program, &["--check"])?.wait(END)?;
    ensure!(told.ok(), "{told:?}");

    // From nothing: what an agent with all rights left is gone.
    for node in [1, 2] {
        ensure!(shop.mesh.stop_agent(node)?.ok(), "the agent failed");
        fs::remove_dir_all(&shop.mesh.world.node(node).pins)?;
    }
    shop.mesh.agent_program = Some(program);
    for node in [1, 2] {
        shop.mesh.start_agent(node)?;
        let status = fs::read_to_string(format!("/proc/{}/status", shop.mesh.agent(node)?.id()))?;
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
        let held = u64::from_str_radix(held.trim(), 16)?.count_ones();
        ensure!(held == 5 && status.contains("NoNewPrivs:\t1"), "{held} capabilities: {status}");
    }
    shop.mesh.enrolled(&[&shop.web, &shop.api])?;
    echoed(&shop.until_asking(&shop.web, &format!("{VIP}:{ECHO}"), true)?)?;
    let told = shop.ask_from(&shop.web, &format!("{VIP}:{NOBODY}"))?;
    ensure!(told["connect"] == "refused", "connect() is not honest: {told}");
    shop.mesh.replace_agent(1)?.wait(END)?.success()?;
    echoed(&shop.ask()?)
}

/// `mesh-agent --ready` as the kubelet runs it in the container of an agent.
fn ready(mesh: &Mesh, node: u8, cgroup: &Path, name: &str) -> Result<Finished> {
    let place = Place { cgroup: cgroup.to_owned(), ..mesh.world.node(node).place() };
    let socket = format!("--ready={}", mesh.admin_socket(node).display());
    Process::start(&place, name, &binary("mesh-agent")?, &[&socket])?.wait(END)
}

/// The cgroup of an agent that is a pod.
fn cgroup(mesh: &mut Mesh, node: u8) -> Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", mesh.agent(node)?.id()))?;
    let number = text.lines().find_map(|line| line.rsplit_once("/podagent-")).context("it is no pod")?.1;
    Ok(mesh.world.node(node).agent_cgroup(number.parse()?))
}

#[test]
fn in_a_rollout_each_container_s_readiness_is_its_own_and_the_old_agent_waits_to_be_ended() -> Result<()> {
    let agent_arguments = vec!["--after-handover", "wait"];
    let mut shop =
        Shop::open_with(Options { agents_as_pods: true, agent_arguments, ..Options::default() }, true)?;
    let before = cgroup(&mut shop.mesh, 1)?;
    let told = ready(&shop.mesh, 1, &before, "ready-alone")?;
    ensure!(told.ok(), "{told:?}");
    let mut old = shop.mesh.replace_agent(1)?;
    let after = cgroup(&mut shop.mesh, 1)?;
    let mut looks = 0;
    poll::until("the new agent to be ready", END, || {
        looks += 1;
        let told = ready(&shop.mesh, 1, &after, &format!("ready-new-{looks}"))?;
        ensure!(told.ok(), "{told:?}");
        Ok(())
    })?;
    let told = ready(&shop.mesh, 1, &before, "ready-old")?;
    ensure!(!told.ok() && told.stdout.contains("another one"), "{told:?}");
    poll::until("the old agent to have drained", END, || {
        ensure!(old.stdout().contains("drained"), "{}", old.tail());
        Ok(())
    })?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(old.running(), "a kubelet would start it again: {}", old.tail());
    echoed(&shop.ask()?)?;
    old.terminate()?;
    ensure!(old.wait(END)?.ok(), "the old agent failed");
    echoed(&shop.ask()?)
}

#[test]
fn a_node_that_leaves_has_no_program_left_and_its_pods_speak_plainly() -> Result<()> {
    let mut shop = Shop::open()?;
    for node in [1, 2] {
        ensure!(shop.mesh.stop_agent(node)?.ok(), "the agent failed");
    }
    let told = shop.ask()?;
    ensure!(came_to_nothing(&told), "without its agent a pod is closed: {told}");
    for node in [1, 2] {
        let pins = shop.mesh.world.node(node).pins.clone();
        let argument = format!("--leave={}", pins.display());
        let name = format!("leave-{node}");
        let place = shop.mesh.world.node(node).place();
        let left = || -> Result<bool> {
            let probe = format!("--left={}", pins.display());
            Ok(Process::start(&place, &format!("left-{node}"), &binary("mesh-agent")?, &[&probe])?
                .wait(END)?
                .ok())
        };
        ensure!(!left()?, "the probe says that it has left before it did");
        let mut leaving = Process::start(&place, &name, &binary("mesh-agent")?, &[&argument])?;
        poll::until("the node to have left", END, || {
            ensure!(leaving.stdout().contains("no program"), "{}", leaving.tail());
            Ok(())
        })?;
        ensure!(leaving.running() && !pins.exists() && left()?, "{}", leaving.tail());
        leaving.terminate()?;
        ensure!(leaving.wait(END)?.ok(), "it failed");
    }
    // Nobody stands for the virtual address here: the pod's own.
    let told = shop.ask_from(&shop.web, &shop.api.at(ECHO))?;
    echoed(&told)
}
