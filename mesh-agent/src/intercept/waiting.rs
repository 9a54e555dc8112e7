//! The clients that are being answered. In: what the kernel's events say of them. Out: whoever answers one sees what happens to it.

use std::collections::HashMap;

use mesh_common::OrigKey;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

/// What happened to a waiting client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// How often its SYN was sent again.
    pub(super) again: u32,
    pub(super) gone: bool,
}

/// Names a held connection: the parts of an [`OrigKey`] that mean something.
pub(super) type Name = (u64, mesh_common::Addr, u16);

pub(super) fn name(key: &OrigKey) -> Name {
    (key.netns_cookie, key.addr, key.port)
}

/// Those that are being answered, by the connection's name.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<Name, watch::Sender<State>>>);

impl Waiting {
    /// To look and to enter in one step.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Name, watch::Sender<State>>> {
        self.0.lock()
    }

    /// A client waits no longer.
    pub(super) fn gone(&self, key: &OrigKey) {
        if let Some(state) = self.lock().remove(&name(key)) {
            state.send_modify(|state| state.gone = true);
        }
    }

    /// Nobody answers it now.
    pub(super) fn forget(&self, key: &OrigKey) {
        self.lock().remove(&name(key));
    }
}
