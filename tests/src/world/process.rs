//! A program that runs in a namespace and a cgroup: started, looked at, signalled, waited for.
//!
//! The program is run by the helper `peer run`, which joins the cgroup, then the namespace, and then becomes it; so the
//! process id is the program's own. Its output goes to files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Where a program runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// The network namespace's name.
    pub netns: String,
    /// The cgroup directory.
    pub cgroup: PathBuf,
    /// Where its output is kept.
    pub logs: PathBuf,
}

/// A running program; it is killed when this goes.
pub struct Process {
    /// A name for people; the output files are named after it.
    pub name: String,
    child: Option<Child>,
    out: PathBuf,
    err: PathBuf,
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it was waited for.
    pub took: Duration,
}

impl Finished {
    /// The exit status, as a bool.
    pub fn ok(&self) -> bool {
        self.status.success()
    }

    /// Standard output, if the program ended well.
    pub fn success(self) -> Result<String> {
        if self.ok() {
            return Ok(self.stdout);
        }
        bail!("it ended with {}; stdout: {:?}; stderr: {:?}", self.status, self.stdout, self.stderr)
    }

    /// Standard output as JSON, if the program ended well.
    pub fn json(self) -> Result<serde_json::Value> {
        let text = self.success()?;
        serde_json::from_str(text.trim()).with_context(|| format!("not JSON: {text:?}"))
    }
}

/// The workspace's binary `name`: beside the running program, or one folder up (test programs live in `deps`).
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    for folder in own.ancestors().skip(1).take(2) {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!("no binary {name} beside {}: build it with `cargo build --release --workspace`", own.display())
}

impl Process {
    /// Starts `program` at `place`. `name` must be new for each running process of a world.
    pub fn start(place: &Place, name: &str, program: &Path, arguments: &[&str]) -> Result<Self> {
        let (out, err) = (place.logs.join(format!("{name}.out")), place.logs.join(format!("{name}.err")));
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        let child = Command::new(binary("peer")?)
            .arg("run")
            .arg("--netns")
            .arg(&place.netns)
            .arg("--cgroup")
            .arg(&place.cgroup)
            .arg("--")
            .arg(program)
            .args(arguments)
            .env("NO_COLOR", "1")
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(append(&out).with_context(|| format!("open {}", out.display()))?)
            .stderr(append(&err)?)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child: Some(child), out, err })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The file of its standard output.
    pub fn output(&self) -> &Path {
        &self.out
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.out)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.err)
    }

    /// The end of both outputs, for a failure's message.
    pub fn tail(&self) -> String {
        format!("--- {} stdout\n{}\n--- stderr\n{}", self.name, last(&self.stdout()), last(&self.stderr()))
    }

    /// True until it has ended.
    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end, at most for `limit`; then kills it and fails.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let child = self.child.as_mut().ok_or_else(|| anyhow!("already waited for"))?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                let (stdout, stderr) = (self.stdout(), self.stderr());
                return Ok(Finished { status, stdout, stderr, took: start.elapsed() });
            }
            if start.elapsed() > limit {
                let tail = self.tail();
                self.kill();
                bail!("{} still ran after {limit:?}\n{tail}", self.name);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            i32::try_from(self.id()).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow!("it has ended"))?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way it is gone after this.
            if child.kill().is_ok() {
                drop(child.wait());
            }
        }
    }

    /// Lets it run on after this is dropped.
    pub fn leave_running(mut self) {
        self.child = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn last(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
