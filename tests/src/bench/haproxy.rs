//! The references: haproxy on each node, in plain TCP or with mutual TLS for each connection.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::path::{ECHO, HTTP, ONCE, SINK};
use crate::poll;
use crate::world::{Node, Pod, Process, World, netns};

/// Starts both, from node 1 to node 2 to the server.
pub(super) fn start(world: &World, server: &Pod, mtls: bool) -> Result<Vec<Process>> {
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
    Ok(vec![
        one(world, second, &far, &server.v4.to_string(), "")?,
        one(world, first, "", &second.v4.to_string(), &near)?,
    ])
}

fn one(world: &World, node: &Node, bind: &str, to: &str, server: &str) -> Result<Process> {
    let mut text =
        "global\n  maxconn 8192\n  tune.ssl.cachesize 0\n  log stdout format raw local0\ndefaults\n  mode tcp\n  log global\n  timeout connect 5s\n  \
                    timeout client 60s\n  timeout server 60s\n"
            .to_owned();
    for port in [SINK, ECHO, ONCE, HTTP] {
        text.push_str(&format!(
            "listen port{port}\n  bind {}:{port} {bind}\n  server far {to}:{port} {server}\n",
            node.v4
        ));
    }
    let file = world.files.join(format!("haproxy/{}.cfg", node.name));
    fs::write(&file, text)?;
    let name = format!("haproxy-{}", node.name);
    let process =
        Process::start(&node.place(), &name, Path::new("haproxy"), &["-db", "-f", &file.to_string_lossy()])?;
    let address = std::net::SocketAddr::new(node.v4.into(), ECHO);
    poll::until("haproxy to listen", Duration::from_secs(10), || {
        netns::inside(&node.netns, || std::net::TcpStream::connect(address).map(drop))??;
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
