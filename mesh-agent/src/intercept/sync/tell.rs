//! What the synchronisation tells others. In: problems and events. Out: the status' list, and events in the data plane's queue.

use std::sync::atomic::Ordering;
use std::thread;

use tokio::sync::mpsc::error::TrySendError;

use super::{EnrolError, PodEvent, PodProblem, Sync, TICK};

impl Sync {
    /// Shows what is wrong now, and logs what is new of it.
    pub(super) fn publish(&self, problems: Vec<PodProblem>) {
        let mut held = self.problems.lock();
        for problem in problems.iter().filter(|problem| !held.contains(problem)) {
            tracing::warn!(pod = %problem.uid, name = problem.name, reason = problem.reason, "pod is not served");
        }
        *held = problems;
    }

    /// Gives an event to the data plane, waiting for room unless the agent stops.
    pub(super) fn send(&self, mut event: PodEvent) -> Result<(), EnrolError> {
        loop {
            match self.events.try_send(event) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(_)) => return Err(EnrolError::Stopping),
                Err(TrySendError::Full(_)) if self.stop.load(Ordering::Relaxed) => {
                    return Err(EnrolError::Stopping);
                }
                Err(TrySendError::Full(back)) => event = back,
            }
            thread::sleep(TICK);
        }
    }
}
