//! Waiting times between attempts: they double up to a limit, each with jitter, so that agents that lost one controller
//! do not all come back in the same moment.

use std::time::Duration;

use rand::Rng;

/// Doubling waiting times.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Begins with about `first` and does not pass `limit`.
    pub fn new(first: Duration, limit: Duration) -> Self {
        Self { first, limit, next: first }
    }

    /// The next waiting time: between half of it and all of it.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.limit);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Begins again: the last attempt succeeded.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_again() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 5 * second);
        for full in [1, 2, 4, 5, 5] {
            let wait = backoff.wait();
            assert!(wait >= second * full / 2 && wait <= second * full, "{wait:?} of {full} s");
        }
        backoff.reset();
        assert!(backoff.wait() <= second);
    }
}
