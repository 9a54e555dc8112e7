//! The demo: a small shop of real programs on two nodes, taken into the mesh while it runs.
//!
//! In: a machine with root and Debian's nginx, redis, PostgreSQL and curl. Out: for each step what was done, the
//! evidence, and whether it shows what it says; at the end a summary.

mod report;
mod security;
mod stage;
mod traffic;

use anyhow::{Result, bail};

use report::Report;
use stage::Stage;

/// Plays the demo; fails if any step did not show what it says. `keep` leaves everything running.
pub fn run(keep: bool) -> Result<()> {
    let mut report = Report::new();
    report.note("Setting the stage: two nodes, seven pods, a controller, an agent on each node");
    let stage = Stage::set(&report)?;
    traffic::plaintext_before(&mut report, &stage);
    traffic::enrol(&mut report, &stage);
    traffic::services(&mut report, &stage);
    traffic::true_client(&mut report, &stage);
    security::database_policy(&mut report, &stage);
    security::strict(&mut report, &stage);
    security::rotation(&mut report, &stage);
    traffic::golden_metrics(&mut report, &stage);
    let failed = report.summary();
    if keep {
        stage.keep();
    } else {
        report.note("Cleaning up");
        drop(stage);
    }
    if failed > 0 {
        bail!("{failed} steps did not show what they say");
    }
    Ok(())
}
