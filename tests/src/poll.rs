//! Waiting for something that another program does: a closure and a deadline in, its value or the last reason out.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A reason that waiting will not change: [`until`] gives up at once.
#[derive(Debug)]
pub struct Hopeless(pub &'static str);

impl std::fmt::Display for Hopeless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Hopeless {}

/// Calls `look` until it answers `Ok`, at most for `limit`; then fails with its last reason.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit || error.is::<Hopeless>() => {
                return Err(error.context(format!("waited {limit:?} for: {what}")));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// [`until`] for a plain condition.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || if look() { Ok(()) } else { Err(anyhow!("it did not happen")) })
}
