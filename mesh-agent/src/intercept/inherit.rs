//! What the agent before this one handed over: the listeners that are open in the pods, which go on being used. In: copies
//! of them, as they came. Out: those of one pod, once it is clear that they are what they are said to be.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;

use mesh_common::{PORT_INBOUND, PORT_MTLS, PORT_OUTBOUND};
use mesh_core::model::WorkloadUid;
use socket2::SockRef;

use super::pod::PodListeners;
use crate::sys;

/// Why a socket is not the listener that it was said to be.
#[derive(Debug, thiserror::Error)]
pub enum NotAListener {
    /// It does not listen, or not for TCP.
    #[error("a socket handed over for pod {0} is not a TCP listener")]
    Kind(WorkloadUid),
    /// Another port than it was given for.
    #[error("a listener handed over for pod {pod} is on port {found}, not {expected}")]
    Port {
        /// For which pod.
        pod: WorkloadUid,
        /// The agent's port.
        expected: u16,
        /// Its own.
        found: u16,
    },
    /// It belongs to another network namespace than the pod's.
    #[error("a listener handed over for pod {0} is in another network namespace")]
    Namespace(WorkloadUid),
    /// A system call.
    #[error("looking at a listener handed over for pod {pod}: {source}")]
    Io {
        /// For which pod.
        pod: WorkloadUid,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The listeners of the agent before, by pod.
#[derive(Debug, Default)]
pub struct Inherited {
    pods: HashMap<WorkloadUid, (u64, PodListeners)>,
    /// The kernel's id of the `LISTENERS` map that has them in its slots.
    pub(crate) listeners_map: u32,
}

impl Inherited {
    /// Nothing yet; `listeners_map` is [`super::Interceptor::listeners_map`] of the agent before.
    pub fn new(listeners_map: u32) -> Self {
        Self { pods: HashMap::new(), listeners_map }
    }

    /// Adds the listeners of one pod, after looking at each.
    pub fn add(
        &mut self,
        pod: WorkloadUid,
        netns_cookie: u64,
        listeners: PodListeners,
    ) -> Result<(), NotAListener> {
        let ports = [
            (PORT_OUTBOUND, &listeners.outbound),
            (PORT_INBOUND, &listeners.inbound),
            (PORT_MTLS, &listeners.mtls),
        ];
        for (expected, listeners) in ports {
            for listener in listeners {
                check(&pod, netns_cookie, expected, listener)?;
            }
        }
        self.pods.insert(pod, (netns_cookie, listeners));
        Ok(())
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The listeners of a pod that is in this namespace.
    pub(crate) fn take(&mut self, pod: &WorkloadUid, netns_cookie: u64) -> Option<PodListeners> {
        let (cookie, listeners) = self.pods.remove(pod)?;
        (cookie == netns_cookie).then_some(listeners)
    }

    /// Closes those of pods that are no longer enrolled here.
    pub(super) fn retain(&mut self, enrolled: impl Fn(&WorkloadUid) -> bool) {
        self.pods.retain(|pod, _| enrolled(pod));
    }
}

fn check(
    pod: &WorkloadUid,
    netns_cookie: u64,
    expected: u16,
    listener: &TcpListener,
) -> Result<(), NotAListener> {
    let io = |source| NotAListener::Io { pod: pod.clone(), source };
    let socket = SockRef::from(listener);
    let tcp = socket.protocol().map_err(io)? == Some(socket2::Protocol::TCP);
    if !tcp || !socket.is_listener().map_err(io)? {
        return Err(NotAListener::Kind(pod.clone()));
    }
    let found = listener.local_addr().map_err(io)?.port();
    if found != expected {
        return Err(NotAListener::Port { pod: pod.clone(), expected, found });
    }
    if sys::netns_cookie(listener).map_err(io)? != netns_cookie {
        return Err(NotAListener::Namespace(pod.clone()));
    }
    // The flag belongs to the socket, which another process may have changed.
    listener.set_nonblocking(true).map_err(io)
}
