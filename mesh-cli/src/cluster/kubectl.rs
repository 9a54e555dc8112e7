//! kubectl, as the user has it: its kubeconfig, its context, and its ways to prove who the user is. Arguments and text in,
//! what it prints out.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

/// The namespace of everything that is installed.
pub(super) const SYSTEM: &str = "ferromesh-system";

/// How a cluster is reached.
#[derive(Debug, Args)]
pub(crate) struct Kubectl {
    /// The kubectl to run
    #[arg(long, env = "KUBECTL", default_value = "kubectl")]
    kubectl: PathBuf,
    /// Its kubeconfig
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The context in it
    #[arg(long)]
    context: Option<String>,
}

impl Kubectl {
    /// What a command prints.
    pub(super) fn run(&self, arguments: &[&str]) -> Result<String> {
        self.feed(arguments, "")
    }

    /// [`Kubectl::run`], with text on its standard input.
    pub(super) fn feed(&self, arguments: &[&str], text: &str) -> Result<String> {
        let output = self.output(arguments, text)?;
        if !output.status.success() {
            bail!("{}", said(arguments, &output));
        }
        String::from_utf8(output.stdout).with_context(|| shown(arguments))
    }

    /// What a program in a container prints as JSON, whatever its exit code.
    pub(super) fn exec(&self, pod: &str, command: &[&str]) -> Result<Value> {
        let arguments = [&["-n", SYSTEM, "exec", pod, "--"], command].concat();
        let output = self.output(&arguments, "")?;
        serde_json::from_slice(&output.stdout).with_context(|| said(&arguments, &output))
    }

    fn output(&self, arguments: &[&str], text: &str) -> Result<Output> {
        let mut command = Command::new(&self.kubectl);
        if let Some(path) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(path);
        }
        if let Some(context) = &self.context {
            command.arg("--context").arg(context);
        }
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| {
            format!("run {}: install kubectl, or name it with --kubectl", self.kubectl.display())
        })?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(text.as_bytes()).with_context(|| shown(arguments))?;
        }
        child.wait_with_output().with_context(|| shown(arguments))
    }

    /// An answer as JSON.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| shown(arguments))
    }

    /// An object, if it is there.
    pub(super) fn find(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let arguments = ["-n", SYSTEM, "get", kind, name, "--ignore-not-found", "-o", "json"];
        let text = self.run(&arguments)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("{kind} {name}"))
    }

    /// Applies manifests as their owner.
    pub(super) fn apply(&self, text: &str) -> Result<()> {
        let arguments = ["apply", "--server-side", "--validate=strict", "--force-conflicts"];
        self.feed(&[&arguments[..], &["--field-manager=meshctl", "-f", "-"]].concat(), text).map(drop)
    }

    /// Waits until an object of the system is rolled out.
    pub(super) fn rolled_out(&self, object: &str, seconds: u32) -> Result<()> {
        let timeout = format!("--timeout={seconds}s");
        self.run(&["-n", SYSTEM, "rollout", "status", object, &timeout]).map(drop)
    }
}

fn shown(arguments: &[&str]) -> String {
    format!("kubectl {}", arguments.join(" "))
}

/// What it said when it failed.
fn said(arguments: &[&str], output: &Output) -> String {
    format!("{}: {}", shown(arguments), String::from_utf8_lossy(&output.stderr).trim())
}
