//! Readiness that does not flicker: a pod that has just come has no certificate for a moment, which is no reason to call
//! the node unready. Before the first success, and after a while of failure, the truth is told at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a node that was ready may lack something before it says so.
const GRACE: Duration = Duration::from_secs(10);

/// Remembers whether the node was ready, and since when it is not.
#[derive(Debug, Default)]
pub(super) struct Steady(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    was_ready: bool,
    since: Option<Instant>,
}

impl Steady {
    /// What is to be told at `now`, given what is missing.
    pub(super) fn tell(&self, missing: Option<String>, now: Instant) -> Option<String> {
        let mut state = self.0.lock();
        let Some(missing) = missing else {
            *state = State { was_ready: true, since: None };
            return None;
        };
        let since = *state.since.get_or_insert(now);
        let short = state.was_ready && now.saturating_duration_since(since) < GRACE;
        (!short).then_some(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_lack_is_not_told_but_the_first_and_a_long_one_are() {
        let (steady, start) = (Steady::default(), Instant::now());
        let lack = || Some("no certificate".to_owned());
        assert_eq!(steady.tell(lack(), start), lack(), "never ready yet");
        assert_eq!(steady.tell(None, start), None);
        assert_eq!(steady.tell(lack(), start), None);
        assert_eq!(steady.tell(lack(), start + GRACE), lack());
        assert_eq!(steady.tell(None, start + GRACE), None);
        assert_eq!(steady.tell(lack(), start + GRACE), None);
    }
}
