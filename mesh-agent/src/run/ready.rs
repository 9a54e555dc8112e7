//! `mesh-agent --ready`: the readiness of one container. In: the administration socket. Out: whether the agent behind it
//! is ready and is this process's own, by the cgroup that both are in: while one agent takes over from another, the
//! running one still answers on the node's ports, and a rollout must not take its answer for the new one's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

const LIMIT: Duration = Duration::from_secs(3);
const MOST_BYTES: u64 = 1 << 20;

/// The agent's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    process: u32,
    missing: Vec<String>,
}

/// Prints why not, if so.
pub fn ready(socket: &Path) -> Result<bool> {
    let answer = ask(socket).with_context(|| format!("the agent at {}", socket.display()))?;
    let (own, theirs) = (cgroup("self")?, cgroup(&answer.process.to_string())?);
    if own != theirs {
        println!("the agent that serves is another one: {theirs} is not {own}");
        return Ok(false);
    }
    answer.missing.iter().for_each(|line| println!("{line}"));
    Ok(answer.missing.is_empty())
}

fn ask(socket: &Path) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.take(MOST_BYTES).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{}", head.lines().next().unwrap_or_default());
    Ok(serde_json::from_str(body)?)
}

/// The cgroup of a process, as this one sees it.
fn cgroup(process: &str) -> Result<String> {
    let path = format!("/proc/{process}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    own.map(str::to_owned).with_context(|| format!("{path} names no cgroup of version 2"))
}
