//! `kubectl exec` and `kubectl logs`, as people use them with pods of the mesh.

use anyhow::{Result, ensure};

use crate::stage::{ECHO, SHOP, VIP, api, cluster, open, pod_with, rolled_out, running, until_asking};

#[test]
fn kubectl_runs_commands_in_pods_of_the_mesh_and_reads_their_logs() -> Result<()> {
    let mesh = open(true)?;
    let cluster = cluster(&mesh)?;
    api(cluster, 1)?;
    pod_with(
        cluster,
        (SHOP, "web"),
        "web",
        1,
        &["sh", "-c", "echo first; echo second; exec sleep infinity"],
    )?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    mesh.enrolled(&[&web])?;
    until_asking(&mesh, &web, true)?;

    let exec = |command: &[&str]| cluster.kubectl(&[&["-n", SHOP, "exec", "web", "--"], command].concat());
    let told = exec(&["sh", "-c", "echo said; echo shouted >&2; exit 3"])?;
    ensure!(told.status.code() == Some(3), "{told:?}");
    ensure!(told.stdout == "said\n" && told.stderr.contains("shouted"), "{told:?}");
    let cgroup = exec(&["cat", "/proc/self/cgroup"])?.success()?;
    ensure!(cgroup.contains(&web.uid.replace('-', "_")), "{cgroup}");
    let peer = mesh_tests::world::binary("peer")?.to_string_lossy().into_owned();
    let to = format!("{VIP}:{ECHO}");
    let told = exec(&[&peer, "talk", "--to", &to, "--send", "hello", "--half-close"])?.json()?;
    ensure!(told["received"] == "hello", "what is run by exec is not in the mesh: {told}");

    let logs = |more: &[&str]| cluster.kubectl(&[&["-n", SHOP, "logs", "web"], more].concat())?.success();
    ensure!(logs(&[])? == "first\nsecond\n" && logs(&["--tail=1"])? == "second\n", "{}", logs(&[])?);
    let lost = cluster.kubectl(&["-n", SHOP, "exec", "nobody", "--", "true"])?;
    ensure!(!lost.ok() && lost.stderr.contains("not found"), "{lost:?}");
    Ok(())
}
