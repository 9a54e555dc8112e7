//! What the demo prints: notes with the time, steps with their evidence, a summary.

use std::time::Instant;

use anyhow::Result;

/// Collects the steps.
pub(super) struct Report {
    start: Instant,
    steps: Vec<(String, bool)>,
}

/// The evidence of one step, line by line.
#[derive(Default)]
pub(super) struct Evidence(Vec<String>);

impl Evidence {
    /// Adds a line.
    pub(super) fn line(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }
}

impl Report {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), steps: Vec::new() }
    }

    /// Says what is being done.
    pub(super) fn note(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.start.elapsed().as_secs_f64());
    }

    /// Plays a step: what it shows, what it does; the closure gathers evidence and fails if it is not shown.
    pub(super) fn step(&mut self, shows: &str, does: &str, play: impl FnOnce(&mut Evidence) -> Result<()>) {
        println!();
        self.note(&format!("Step {}: {shows}", self.steps.len() + 1));
        println!("           $ {does}");
        let mut evidence = Evidence::default();
        let result = play(&mut evidence);
        for line in &evidence.0 {
            println!("           {line}");
        }
        if let Err(error) = &result {
            println!("           {}", format!("{error:#}").replace('\n', "\n           "));
        }
        println!("           => {}", if result.is_ok() { "PASS" } else { "FAIL" });
        self.steps.push((shows.to_owned(), result.is_ok()));
    }

    /// Prints the summary; how many steps failed.
    pub(super) fn summary(&self) -> usize {
        println!("\nSummary, after {:.1} s:", self.start.elapsed().as_secs_f64());
        for (number, (shows, passed)) in self.steps.iter().enumerate() {
            println!("  {} {}. {shows}", if *passed { "PASS" } else { "FAIL" }, number + 1);
        }
        let failed = self.steps.iter().filter(|(_, passed)| !passed).count();
        println!("{} passed, {failed} failed", self.steps.len() - failed);
        failed
    }
}
