//! The world itself, without a mesh: what the other scenarios stand on.

use anyhow::{Context, Result, ensure};
use mesh_tests::apps::{self, Nginx};
use mesh_tests::capture::Capture;
use mesh_tests::world::{PodSpec, World, netns};

const PAGE: &str = "the page that a capture looks for";

#[test]
fn without_a_mesh_a_pod_reaches_another_node_s_nginx_in_plaintext() -> Result<()> {
    let world = World::new()?;
    let web = world.pod(&PodSpec::new("shop", "web", 1))?;
    let front = world.pod(&PodSpec::new("shop", "front", 2))?;
    let nginx = Nginx::start(&front, PAGE)?;
    let capture = Capture::start(&world, 2, "plain")?;
    for url in [format!("http://{}/", front.at(80)), format!("http://{}/", front.at6(80))] {
        let page = web.run("curl", &["-sS", "--max-time", "5", &url])?.success().context(url)?;
        ensure!(page == PAGE, "{page}");
    }
    let captured = capture.stop()?;
    ensure!(
        captured.contains(PAGE.as_bytes()),
        "the capture must see plaintext: {} segments",
        captured.segments.len()
    );
    ensure!(captured.with_port(80) > 8);
    let log = nginx.access_log();
    ensure!(log.lines().count() == 2 && log.starts_with(&web.v4.to_string()), "{log}");
    Ok(())
}

#[test]
fn a_second_world_finds_nothing_of_one_that_was_killed() -> Result<()> {
    let mut first = World::new()?;
    let pod = first.pod(&PodSpec::new("shop", "web", 1))?;
    let mut server = apps::peer_server(&pod, "echo", 7000, &[])?;
    let (files, cgroup) = (first.files.clone(), first.cgroup().to_owned());
    ensure!(server.running() && files.exists() && cgroup.exists());
    first.keep();
    drop(first);
    let second = World::new()?;
    ensure!(!server.running() && !files.exists() && !cgroup.exists());
    let left: Vec<String> =
        netns::leftovers()?.into_iter().filter(|name| !name.contains(&second.run)).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn the_helper_tells_plain_tcp_as_it_is() -> Result<()> {
    let world = World::new()?;
    let (web, api) =
        (world.pod(&PodSpec::new("shop", "web", 1))?, world.pod(&PodSpec::new("shop", "api", 2))?);
    let _names = apps::peer_server(&api, "names", 7001, &[])?;
    let _exact = apps::peer_server(&api, "exact-server", 7002, &[])?;
    let told = web.peer(&["talk", "--to", &api.at(7001)])?;
    ensure!(told["getpeername"] == api.at(7001) && told["end"] == "eof", "{told}");
    let refused = web.peer(&["talk", "--to", &api.at(9)])?;
    ensure!(refused["connect"] == "refused", "{refused}");
    let exact = web.peer(&["exact", "--to", &api.at6(7002), "--bytes", "1000003"])?;
    ensure!(exact["exact"] == true, "{exact}");
    Ok(())
}

#[test]
fn postgresql_and_redis_run_in_pods() -> Result<()> {
    let world = World::new()?;
    let (web, db) = (world.pod(&PodSpec::new("shop", "web", 1))?, world.pod(&PodSpec::new("shop", "db", 2))?);
    let (_postgres, _redis) = (apps::postgres(&db)?, apps::redis(&db)?);
    for host in [db.v4.to_string(), db.v6.to_string()] {
        let one = web.run("psql", &["-h", &host, "-U", "postgres", "-Atc", "select 1"])?.success()?;
        let pong = web.run("redis-cli", &["-h", &host, "ping"])?.success()?;
        ensure!(one.trim() == "1" && pong.trim() == "PONG", "{host}: {one} {pong}");
    }
    Ok(())
}

#[test]
fn over_plain_tcp_each_ending_is_seen_as_the_kernel_has_it() -> Result<()> {
    let world = World::new()?;
    let (client, server) =
        (world.pod(&PodSpec::new("shop", "c", 1))?, world.pod(&PodSpec::new("shop", "s", 2))?);
    for (port, (scene, told)) in (7200..).zip([
        ("client-reset", r#"{"answer":"broken-pipe","end":"reset","got":1000}"#),
        ("server-reset", r#""reset""#),
        ("close-unread", r#""closed with unread bytes""#),
        ("out-of-band", r#"{"end":"eof","got":"a!b"}"#),
    ]) {
        let (server, _) = crate::endings::play(&client, &server, scene, port, false)?;
        let seen = server.to_string();
        ensure!(seen == told, "{scene}: {seen}");
    }
    Ok(())
}
