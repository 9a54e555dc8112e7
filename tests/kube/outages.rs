//! What fails while pods come and go: the controller in the middle of a rollout.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::poll;

use crate::stage::{
    ECHO, MADE, SHOP, VIP, api, cluster, failed, open, pod, pods_of, rolled_out, running, until_asking,
};

/// Longer than a pod takes to end once it has been told to.
const GONE: Duration = Duration::from_secs(7);

#[test]
fn a_controller_that_is_killed_in_a_rollout_costs_no_request_and_the_next_one_serves_what_came_of_it()
-> Result<()> {
    let mut mesh = open(true)?;
    api(cluster(&mesh)?, 2)?;
    pod(cluster(&mesh)?, "web", 1)?;
    rolled_out(&mesh)?;
    let web = running(&mesh, 1, "web")?;
    mesh.enrolled(&[&web])?;
    until_asking(&mesh, &web, true)?;
    let before = pods_of(cluster(&mesh)?, "api")?;
    let to = format!("{VIP}:{ECHO}");
    let ticker = web.spawn_peer(&["ticker", "--to", &to, "--text", "tick", "--every-ms", "20"])?;

    cluster(&mesh)?.kubectl(&["-n", SHOP, "rollout", "restart", "deployment/api"])?.success()?;
    // The first of the old ones ends, the second of the new ones begins.
    poll::until("one of two to be replaced", MADE, || {
        let live = pods_of(cluster(&mesh)?, "api")?;
        let left = before.iter().filter(|name| live.contains(name)).count();
        ensure!(left == 1, "{live:?}");
        Ok(())
    })?;
    mesh.kill_controller();
    let killed = Instant::now();
    std::thread::sleep(GONE);
    ensure!(failed(&ticker).is_empty(), "without a controller: {:?}\n{}", failed(&ticker), mesh.logs());
    mesh.start_controller()?;
    eprintln!("the controller was away for {} ms", killed.elapsed().as_millis());
    rolled_out(&mesh)?;
    let after: BTreeSet<String> = pods_of(cluster(&mesh)?, "api")?.into_iter().collect();
    ensure!(after.len() == 2 && before.iter().all(|name| !after.contains(name)), "{before:?} {after:?}");

    let addresses: Vec<String> =
        after.iter().map(|name| Ok(running(&mesh, 2, name)?.at(ECHO))).collect::<Result<_>>()?;
    mesh.in_force("both new pods to be asked", || {
        let log = mesh.access_log(1);
        let asked =
            |address: &&String| log.find(&[("endpoint", address.as_str()), ("result", "ok")]).is_some();
        let missing: Vec<&String> = addresses.iter().filter(|address| !asked(address)).collect();
        ensure!(missing.is_empty(), "{missing:?}: {:?}", log.0.last());
        Ok(())
    })?;
    ensure!(failed(&ticker).is_empty(), "{:?}\n{}", failed(&ticker), mesh.logs());
    Ok(())
}
