//! Steps with names and times: what is being done is printed when it begins, how long it took when it has ended.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The steps of one task.
pub(crate) struct Steps {
    start: Instant,
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), done: Vec::new() }
    }

    /// Runs a step. A failure ends the task and names the step.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        eprintln!("\n==> {name} (at {})", seconds(self.start.elapsed()));
        if let Err(error) = work() {
            eprintln!("==> {name}: FAILED after {}", seconds(begun.elapsed()));
            self.summary();
            eprintln!("steps: {} passed, 1 failed", self.done.len());
            return Err(error.context(format!("the step `{name}` failed")));
        }
        eprintln!("==> {name}: done in {}", seconds(begun.elapsed()));
        self.done.push((name.to_owned(), begun.elapsed()));
        Ok(())
    }

    /// Prints what was done and how long it took.
    pub(crate) fn summary(&self) {
        eprintln!("\nSteps, in {} altogether:", seconds(self.start.elapsed()));
        for (name, took) in &self.done {
            eprintln!("  {:>8}  {name}", seconds(*took));
        }
    }

    /// The closing line of a task that went well.
    pub(crate) fn finish(self) {
        self.summary();
        println!("steps: {} passed, 0 failed", self.done.len());
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Runs a command to its end; its output is shown as it comes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// Runs cargo in `root`.
pub(crate) fn cargo(root: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo).args(arguments).envs(variables.iter().copied()).current_dir(root))
}
