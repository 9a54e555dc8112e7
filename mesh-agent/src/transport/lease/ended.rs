//! The end of the identity behind a tunnel connection, waited for as long as the connection lives, whoever has it: its
//! timers are set once, not anew for each application connection that it carries.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::identify::ProvenPeer;
use crate::transport::seldom::Seldom;

/// Waits until a peer's certificate, or ours, has ended, or its root is not trusted any more.
pub(super) struct Ended {
    /// `None`: it has ended.
    waiting: Option<Pin<Box<dyn Future<Output = ()>>>>,
    seldom: Seldom,
}

impl Ended {
    /// Waits for the end of `peer`.
    pub(super) fn of(peer: Rc<ProvenPeer>) -> Self {
        let waiting = async move {
            // Why, is asked again by whoever closes the connection.
            let _reason = peer.ended().await;
        };
        Self { waiting: Some(Box::pin(waiting)), seldom: Seldom::new() }
    }

    /// Ready when it has ended, and from then on.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            let Some(mut due) = self.seldom.due(cx) else { return Poll::Pending };
            ready!(waiting.as_mut().poll(&mut due));
            self.waiting = None;
        }
        Poll::Ready(())
    }

    /// The connection is idle: nobody waits.
    pub(super) fn rest(&self) {
        self.seldom.rest();
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ended").field("ended", &self.waiting.is_none()).finish_non_exhaustive()
    }
}
