//! The open connections of one worker: what `decide()` needs of each, and how to end it. Checked again whenever the
//! snapshot changes; ended when their pod goes or the agent drains.
//!
//! Nothing slips through between a decision and a change of policy: a connection is entered first and then compares the
//! snapshot that decided with the current one. A pass over the open connections loads its snapshot before it lists
//! them, so what is entered later was compared with that snapshot or a newer one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use mesh_core::snapshot::Snapshot;

use super::permit::{Denial, Permit, Subject};
use super::{Cut, CutHandle, CutReason};
use crate::control::Published;

/// How many connections are decided before the worker's other tasks get their turn.
const BATCH: usize = 128;

/// The open connections of one worker.
#[derive(Debug, Default)]
pub struct Live {
    open: RefCell<HashMap<u64, Open>>,
    next: Cell<u64>,
}

#[derive(Debug)]
struct Open {
    subject: Option<Subject>,
    pod: WorkloadUid,
    cut: CutHandle,
}

/// Held by an open connection; leaves the registry when dropped.
#[derive(Debug)]
pub struct Registered {
    live: Weak<Live>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(live) = self.live.upgrade() {
            live.open.borrow_mut().remove(&self.id);
        }
    }
}

impl Live {
    /// Nothing is open.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Enters a connection of `pod` that `permit` allowed. Denied when policy changed since and denies it now.
    pub fn register(
        self: &Rc<Self>,
        permit: &Permit,
        pod: &WorkloadUid,
        published: &Published,
    ) -> Result<(Registered, Cut), Denial> {
        let (handle, cut) = Cut::pair();
        let id = self.next.get();
        self.next.set(id + 1);
        let open = Open { subject: permit.subject.clone(), pod: pod.clone(), cut: handle };
        self.open.borrow_mut().insert(id, open);
        let registered = Registered { live: Rc::downgrade(self), id };
        let current = published.load();
        let is_current = std::ptr::eq(permit.decided_by.as_ptr(), Arc::as_ptr(&current));
        if let (false, Some(subject)) = (is_current, &permit.subject) {
            subject.decide_again(&current).map_err(Denial)?;
        }
        Ok((registered, cut))
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides every open connection by `snapshot` and ends those that it denies; says how many.
    pub async fn check_all(&self, snapshot: &Snapshot) -> usize {
        let ids: Vec<u64> = self.open.borrow().keys().copied().collect();
        let mut ended = 0;
        for batch in ids.chunks(BATCH) {
            ended += batch.iter().filter(|id| self.check(**id, snapshot)).count();
            tokio::task::yield_now().await;
        }
        ended
    }

    /// Checks again at each change of the snapshot, for ever.
    pub async fn follow(self: Rc<Self>, published: Published) {
        let mut changes = published.watch();
        // A publication between the first connection and this task's first turn counts as news too.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            let snapshot = published.load();
            let ended = self.check_all(&snapshot).await;
            if ended > 0 {
                tracing::info!(
                    ended,
                    version = snapshot.version,
                    "policy changed: open connections were ended"
                );
            }
        }
    }

    /// Ends the connections of a pod that is gone.
    pub fn cut_pod(&self, pod: &WorkloadUid) {
        let ids: Vec<u64> =
            self.open.borrow().iter().filter(|(_, open)| open.pod == *pod).map(|(id, _)| *id).collect();
        for id in ids {
            self.cut(id, CutReason::PodGone);
        }
    }

    /// Ends every connection.
    pub fn cut_all(&self, reason: &CutReason) {
        let ids: Vec<u64> = self.open.borrow().keys().copied().collect();
        for id in ids {
            self.cut(id, reason.clone());
        }
    }

    fn check(&self, id: u64, snapshot: &Snapshot) -> bool {
        let verdict = {
            let open = self.open.borrow();
            // It may have ended while the worker did other things.
            let Some(subject) = open.get(&id).and_then(|open| open.subject.as_ref()) else { return false };
            subject.decide_again(snapshot)
        };
        match verdict {
            Ok(()) => false,
            Err(reason) => self.cut(id, CutReason::Denied(reason)),
        }
    }

    fn cut(&self, id: u64, reason: CutReason) -> bool {
        // The borrow ends before the signal is sent.
        let open = self.open.borrow_mut().remove(&id);
        open.is_some_and(|open| open.cut.cut(reason))
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
