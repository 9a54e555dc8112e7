//! The units of this host that are served. In: units as they are enrolled and leave. Out: the one with a uid, for a connection
//! that comes to its port and not by a listener of its own.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use parking_lot::Mutex;

use super::PodState;

/// Units by uid; all workers share them.
#[derive(Debug, Default)]
pub(crate) struct Neighbours(Mutex<HashMap<WorkloadUid, Arc<PodState>>>);

impl Neighbours {
    /// A unit is served.
    pub(crate) fn enter(&self, unit: &Arc<PodState>) {
        self.0.lock().insert(unit.net.uid.clone(), Arc::clone(unit));
    }

    /// It is not served any more.
    pub(crate) fn leave(&self, uid: &WorkloadUid) {
        self.0.lock().remove(uid);
    }

    /// The unit with this uid.
    pub(crate) fn get(&self, uid: &WorkloadUid) -> Option<Arc<PodState>> {
        self.0.lock().get(uid).cloned()
    }
}
