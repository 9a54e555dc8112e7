//! The references: two haproxy between client and server, in plain TCP or with mutual TLS for each connection. On the nodes, as
//! a gateway runs; or in the two pods, where a sidecar runs and where the mesh's sockets are.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::path::{ECHO, HTTP, ONCE, SINK};
use crate::poll;
use crate::world::{Place, Pod, Process, World, netns};

/// What the second one in a pod adds to the ports of the servers beside it.
const BESIDE: u16 = 20_000;

/// One of the two.
struct Hop<'a> {
    name: &'a str,
    place: &'a Place,
    bind: Ipv4Addr,
    /// What it adds to the ports that it listens on.
    shift: u16,
    /// Options of what it accepts.
    accepts: &'a str,
    to: Ipv4Addr,
    /// What is added to the ports that it dials.
    dials: u16,
    /// Options of what it dials.
    server: &'a str,
}

/// Starts both in the pods; the client dials what is given back.
pub(super) fn start_in_pods(world: &World, client: &Pod, server: &Pod) -> Result<(Ipv4Addr, Vec<Process>)> {
    fs::create_dir_all(world.files.join("haproxy"))?;
    let plain = Hop {
        name: "server",
        place: server.place(),
        bind: server.v4,
        shift: BESIDE,
        accepts: "",
        to: Ipv4Addr::LOCALHOST,
        dials: 0,
        server: "",
    };
    let second = one(world, &plain)?;
    let near = Hop {
        name: "client",
        place: client.place(),
        bind: Ipv4Addr::LOCALHOST,
        shift: 0,
        to: server.v4,
        dials: BESIDE,
        ..plain
    };
    Ok((Ipv4Addr::LOCALHOST, vec![second, one(world, &near)?]))
}

/// Starts both on the nodes, from node 1 to node 2 to the server; the client dials what is given back.
pub(super) fn start(world: &World, server: &Pod, mtls: bool) -> Result<(Ipv4Addr, Vec<Process>)> {
    let folder = world.files.join("haproxy");
    fs::create_dir_all(&folder)?;
    if mtls {
        certificates(&folder)?;
    }
    let at = folder.display();
    let tls = format!("ssl crt {at}/node.pem ca-file {at}/ca.pem verify required");
    let (near, far) = if mtls {
        (format!("{tls} no-ssl-reuse no-tls-tickets"), format!("{tls} no-tls-tickets ssl-min-ver TLSv1.3"))
    } else {
        (String::new(), String::new())
    };
    let (second, first) = (world.node(2), world.node(1));
    let far = Hop {
        name: "n2",
        place: &second.place(),
        bind: second.v4,
        shift: 0,
        accepts: &far,
        to: server.v4,
        dials: 0,
        server: "",
    };
    let near = Hop {
        name: "n1",
        place: &first.place(),
        bind: first.v4,
        accepts: "",
        to: second.v4,
        server: &near,
        ..far
    };
    Ok((first.v4, vec![one(world, &far)?, one(world, &near)?]))
}

fn one(world: &World, hop: &Hop<'_>) -> Result<Process> {
    let mut text =
        "global\n  maxconn 8192\n  tune.ssl.cachesize 0\n  log stdout format raw local0\ndefaults\n  mode tcp\n  log global\n  timeout connect 5s\n  \
                    timeout client 60s\n  timeout server 60s\n"
            .to_owned();
    let Hop { name, place, bind, shift, accepts, to, dials, server } = hop;
    for port in [SINK, ECHO, ONCE, HTTP] {
        let (listen, dial) = (port + shift, port + dials);
        text.push_str(&format!(
            "listen port{port}\n  bind {bind}:{listen} {accepts}\n  server far {to}:{dial} {server}\n",
        ));
    }
    let file = world.files.join(format!("haproxy/{name}.cfg"));
    fs::write(&file, text)?;
    let title = format!("haproxy-{name}");
    let process =
        Process::start(place, &title, Path::new("haproxy"), &["-db", "-f", &file.to_string_lossy()])?;
    let address = SocketAddr::new((*bind).into(), ECHO + shift);
    poll::until("haproxy to listen", Duration::from_secs(10), || {
        netns::inside(&place.netns, || std::net::TcpStream::connect(address).map(drop))??;
        Ok(())
    })
    .with_context(|| process.tail())?;
    Ok(process)
}

/// One authority, one certificate for both nodes (ECDSA P-256, as the mesh's).
fn certificates(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A leaf with its issuer's name would be taken for a self-signed one.
    params.distinguished_name.push(DnType::CommonName, "bench authority");
    let key = KeyPair::generate()?;
    let authority = params.self_signed(&key)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let node = CertificateParams::new(vec!["node.invalid".to_owned()])?.signed_by(&key, &issuer)?;
    fs::write(folder.join("node.pem"), format!("{}{}", node.pem(), key.serialize_pem()))?;
    Ok(())
}
