//! What a running mesh says of itself through `meshctl`: its answers come out, and waiting until it serves a pod.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::mesh::{Mesh, READY};
use crate::world::{Finished, Pod, Process, binary};

impl Mesh {
    /// Waits until these pods are enrolled: their agent says that it serves them.
    pub fn enrolled(&self, pods: &[&Pod]) -> Result<()> {
        for pod in pods {
            self.in_force(&format!("{} to be enrolled", pod.name()), || {
                // Cheaper than asking the agent, which cannot serve the pod before.
                ensure!(pod.listens(15001), "nothing listens on 15001 in the pod");
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

    /// Runs `meshctl` against a node's agent.
    pub fn meshctl(&self, node: u8, arguments: &[&str]) -> Result<Finished> {
        let socket = self.admin_socket(node).to_string_lossy().into_owned();
        let mut all = vec!["--agent-socket", &socket];
        all.extend(arguments);
        let name = format!("meshctl-{}", arguments.first().copied().unwrap_or_default());
        let place = self.world.node(node).place();
        // Each run has its own output.
        for end in ["out", "err"] {
            let file = place.logs.join(format!("{name}.{end}"));
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        Process::start(&place, &name, &binary("meshctl")?, &all)?.wait(READY)
    }
}
