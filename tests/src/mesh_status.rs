//! What a running mesh says of itself through `meshctl` and its metrics: its answers come out, and waiting until it serves
//! a pod.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::http;
use crate::mesh::{Mesh, READY, metrics_address};
use crate::metrics::Metrics;
use crate::world::{CONTROLLER_V4, Finished, Place, Pod, Process, binary};

impl Mesh {
    /// Waits until these pods are enrolled: their agent says that it serves them.
    pub fn enrolled(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            self.in_force(&format!("{} to be enrolled", pod.name()), || {
                // Cheaper than asking the agent, which cannot serve the pod before.
                ensure!(pod.listens(15006), "nothing listens on 15006 where the pod is");
                let status = self.meshctl(pod.spec.node, &["-o", "json", "status"])?;
                let status: Value = serde_json::from_str(&status.stdout)?;
                let reported = status["agent"]["pods"].as_array().into_iter().flatten();
                let served = reported.into_iter().any(|p| p["uid"] == *pod.uid && p["served"] == true);
                ensure!(served, "its agent says: {}", status["agent"]["pods"]);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The metrics of a node's agent.
    pub fn metrics(&self, number: u8) -> Result<Metrics> {
        let node = self.world.node(number);
        let address: std::net::SocketAddr = metrics_address(node).parse()?;
        let answer = crate::world::netns::inside(&node.netns, || http::get(address, "/metrics"))??;
        Metrics::parse(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body))
    }

    /// Where `meshctl` reaches a node's agent.
    pub fn admin_socket(&self, number: u8) -> PathBuf {
        self.world.files.join(format!("agent-n{number}.sock"))
    }

    /// Runs `meshctl` against a node's agent.
    pub fn meshctl(&self, node: u8, arguments: &[&str]) -> Result<Finished> {
        let socket = self.admin_socket(node).to_string_lossy().into_owned();
        meshctl(&self.world.node(node).place(), &["--agent-socket", &socket], arguments)
    }

    /// Runs `meshctl` against the controller, with the operator's certificate.
    pub fn operator(&self, arguments: &[&str]) -> Result<Finished> {
        let state = self.state("controller")?;
        let file = |name: &str| state.join(name).to_string_lossy().into_owned();
        let (ca, cert, key) = (file("ca/root.pem"), file("admin/cert.pem"), file("admin/key.pem"));
        let url = format!("https://{CONTROLLER_V4}:15010");
        let who = ["--controller", &url, "--ca", &ca, "--cert", &cert, "--key", &key];
        meshctl(&self.world.wire(), &who, arguments)
    }
}

fn meshctl(place: &Place, who: &[&str], arguments: &[&str]) -> Result<Finished> {
    let name = format!("meshctl-{}", arguments.first().copied().unwrap_or_default());
    // Each run has its own output.
    for end in ["out", "err"] {
        let file = place.logs.join(format!("{name}.{end}"));
        if file.exists() {
            fs::remove_file(file)?;
        }
    }
    Process::start(place, &name, &binary("meshctl")?, &[who, arguments].concat())?.wait(READY)
}
