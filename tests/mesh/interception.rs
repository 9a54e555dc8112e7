//! What applications see of the mesh: nothing. Addresses are true on both sides, in every family and kind of socket.

use anyhow::{Result, ensure};
use mesh_tests::access_log::names;
use mesh_tests::apps;
use mesh_tests::world::Pod;
use serde_json::Value;

use crate::shop::{BANNER, ECHO, NAMES, Shop, VIP, VIP6, echoed, text};

/// What a client told, and what the `names` server answered to it.
fn ask_names(pod: &Pod, arguments: &[&str]) -> Result<(Value, Value)> {
    let mut all = vec!["talk"];
    all.extend(arguments);
    let told = pod.peer(&all)?;
    let server = serde_json::from_str(text(&told["received"])).unwrap_or(Value::Null);
    Ok((told, server))
}

/// Checks that both sides see the truth: `to` is what the client dialled, `at` what the server is.
fn check(pod: &Pod, arguments: &[&str], dialled: &str, at: &str) -> Result<()> {
    let (client, server) = ask_names(pod, arguments)?;
    ensure!(client["getpeername"] == dialled, "getpeername of the client: {client}");
    let own = text(&client["getsockname"]).replace("::ffff:", "").replace("[10.", "10.").replace(']', "");
    let own = if own.starts_with("10.") { own } else { text(&client["getsockname"]).to_owned() };
    let seen = |name: &str| unmapped(text(&server[name]));
    ensure!(
        seen("accept") == own && seen("getpeername") == own,
        "the server sees {server}, the client is {client}"
    );
    ensure!(seen("getsockname") == at, "the server's own address: {server}, not {at}");
    Ok(())
}

pub(crate) fn unmapped(address: &str) -> String {
    match address.strip_prefix("[::ffff:") {
        Some(rest) => rest.replace(']', ""),
        None => address.to_owned(),
    }
}

#[test]
fn both_sides_see_true_addresses_over_ipv4_and_ipv6() -> Result<()> {
    let shop = Shop::open()?;
    let (api, web) = (&shop.api, &shop.web);
    for (dialled, at) in [
        (format!("{VIP}:{NAMES}"), api.at(NAMES)),
        (format!("[{VIP6}]:{NAMES}"), api.at6(NAMES)),
        (api.at(NAMES), api.at(NAMES)),
        (api.at6(NAMES), api.at6(NAMES)),
    ] {
        check(web, &["--to", &dialled], &dialled, &at)?;
        check(web, &["--to", &dialled, "--nonblocking"], &dialled, &at)?;
    }
    Ok(())
}

#[test]
fn a_dual_stack_socket_with_a_v4_mapped_address_is_captured() -> Result<()> {
    let shop = Shop::open()?;
    let dialled = format!("{VIP}:{NAMES}");
    check(
        &shop.web,
        &["--to", &dialled, "--mapped"],
        &format!("[::ffff:{VIP}]:{NAMES}"),
        &shop.api.at(NAMES),
    )?;
    shop.mesh.record(2, &[(names::SOURCE_ID, &shop.web.spiffe_id())])?;
    Ok(())
}

#[test]
fn a_socket_bound_before_connect_keeps_its_address() -> Result<()> {
    let shop = Shop::open()?;
    let (web, dialled) = (&shop.web, format!("{VIP}:{NAMES}"));
    for bind in [format!("{}:0", web.v4), format!("{}:40123", web.v4), "0.0.0.0:40124".to_owned()] {
        check(web, &["--to", &dialled, "--bind", &bind], &dialled, &shop.api.at(NAMES))?;
        let (client, _) = ask_names(web, &["--to", &dialled, "--bind", &bind.replace("4012", "4013")])?;
        ensure!(text(&client["getsockname"]).starts_with(&web.v4.to_string()), "{client}");
    }
    let dialled = format!("[{VIP6}]:{NAMES}");
    for bind in [format!("[{}]:0", web.v6), format!("[{}]:40125", web.v6)] {
        check(web, &["--to", &dialled, "--bind", &bind], &dialled, &shop.api.at6(NAMES))?;
    }
    Ok(())
}

#[test]
fn loopback_and_the_pod_s_own_address_are_left_alone() -> Result<()> {
    let shop = Shop::open()?;
    let api = &shop.api;
    for to in [format!("127.0.0.1:{NAMES}"), format!("[::1]:{NAMES}"), api.at(NAMES), api.at6(NAMES)] {
        let (client, server) = ask_names(api, &["--to", &to])?;
        ensure!(client["getpeername"] == to, "{to}: {client}");
        ensure!(unmapped(text(&server["accept"])) == text(&client["getsockname"]), "{to}: {client} {server}");
    }
    for node in [1, 2] {
        ensure!(
            shop.mesh.access_log(node).0.is_empty(),
            "node {node} wrote records of a pod's own connections"
        );
    }
    Ok(())
}

#[test]
fn an_address_outside_of_the_mesh_passes_and_is_reached() -> Result<()> {
    let shop = Shop::open()?;
    let outsider = shop.mesh.pod("plain", "outsider", 2)?;
    let _names = apps::peer_server(&outsider, "names", NAMES, &[])?;
    for (dialled, own) in
        [(outsider.at(NAMES), shop.web.v4.to_string()), (outsider.at6(NAMES), format!("[{}]", shop.web.v6))]
    {
        let (client, server) = ask_names(&shop.web, &["--to", &dialled])?;
        ensure!(client["getpeername"] == dialled, "{client}");
        ensure!(text(&client["getsockname"]).starts_with(&own), "{client}");
        // The agent dials on, in the pod's namespace: the address is the pod's, the port another.
        let seen = text(&server["accept"]).replace("[::ffff:10.", "10.").replacen("]:", ":", 1);
        ensure!(seen.starts_with(&own.replace(']', "")), "{server}");
    }
    Ok(())
}

#[test]
fn a_server_that_speaks_first_is_heard_without_delay() -> Result<()> {
    let shop = Shop::open()?;
    // The first connection pays for handshakes.
    echoed(&shop.ask()?)?;
    for to in [format!("{VIP}:{BANNER}"), shop.api.at6(BANNER)] {
        let told = shop.web.peer(&["talk", "--to", &to, "--limit", "4"])?;
        ensure!(text(&told["received"]).starts_with("220 "), "{told}");
        ensure!(told["end_ms"].as_f64().is_some_and(|ms| ms < 250.0), "too late: {told}");
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_short_connections_find_an_address_each_and_accept_never_sees_a_loopback_peer()
-> Result<()> {
    let shop = Shop::open()?;
    let (api, web) = (&shop.api, &shop.web);
    for (port, to, own) in
        [(7100, api.at(7100), format!("::ffff:{}", web.v4)), (7101, api.at6(7101), web.v6.to_string())]
    {
        let count = if port == 7100 { "100000" } else { "10000" };
        let server = apps::peer_server(api, "accept-loop", port, &["--count", count, "--threads", "2"])?;
        let storm = ["storm", "--to", &to, "--count", count, "--threads", "16"];
        let told = web.spawn_peer(&storm)?.wait(std::time::Duration::from_secs(240))?.json()?;
        ensure!(told["ok"].as_u64() == count.parse().ok(), "{told}");
        let seen = server.wait(std::time::Duration::from_secs(10))?.json()?;
        let peers = seen["peers"].as_object().cloned().unwrap_or_default();
        ensure!(peers.len() == 1 && peers.contains_key(&own), "{seen}");
        eprintln!("{count} connections from one pod in {} s: {seen}", told["seconds"]);
    }
    Ok(())
}

#[test]
fn udp_and_what_the_mesh_does_not_carry_still_pass() -> Result<()> {
    let shop = Shop::open()?;
    let server = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.bind(('0.0.0.0',5353))\n\
                  print('ready',flush=True)\nd,a=s.recvfrom(100)\ns.sendto(d+b' back',a)\n";
    let python = shop.api.spawn("udp-server", "python3", &["-c", server])?;
    mesh_tests::poll::until_true("the server", std::time::Duration::from_secs(10), || {
        python.stdout().contains("ready")
    })?;
    let client = format!(
        "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ns.settimeout(5)\n\
         s.connect(('{}',5353))\ns.send(b'there and')\nprint(s.recv(100).decode())\n",
        shop.api.v4
    );
    let told = shop.web.run("python3", &["-c", &client])?.success()?;
    ensure!(told.trim() == "there and back", "{told}");
    // The agents took no part in it.
    ensure!(shop.ask_from(&shop.web, &format!("{VIP}:{ECHO}"))?["end"] == "eof");
    Ok(())
}
