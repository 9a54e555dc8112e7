//! What a worker has of one pod: its listeners, and the tasks that accept on them.

use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

use super::fleet::Port;
use crate::carrier::PodState;

/// What a worker accepts on for one pod; aborting the tasks and dropping this closes the listeners.
#[derive(Debug)]
pub(super) struct Accepting {
    pub(super) pod: Arc<PodState>,
    pub(super) listeners: Vec<(Port, Rc<AsyncFd<TcpListener>>, AbortHandle)>,
    /// Takes the pod's waiting clients.
    pub(super) held: Option<AbortHandle>,
}

impl Accepting {
    /// Ends the tasks.
    pub(super) fn stop(self) {
        self.listeners.iter().for_each(|(_, _, task)| task.abort());
        self.held.iter().for_each(AbortHandle::abort);
    }
}
