//! What one worker carries connections with: what all workers share, its warm tunnels, its side of 15008, and a list of what
//! is open. In: a connection that is about to carry bytes. Out: its place in the list, by which a change of policy or the end
//! of its pod ends it. Never leaves the worker's thread.

mod neighbours;
mod pod;

use std::rc::Rc;
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use tokio::task::spawn_local;

use crate::authorize::{Cut, CutReason, Live, Permit, Registered};
use crate::context::Context;
use crate::observe::Outcome;
use crate::transport::{Acceptor, Dialer, PodConnect};

pub(crate) use neighbours::Neighbours;
pub(crate) use pod::{Caps, Handshaking, PodSlot, PodState};

/// One worker's share of the data plane.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// What all workers share.
    pub(crate) ctx: Arc<Context>,
    /// Warm tunnels to other pods.
    pub(crate) dialer: Rc<Dialer>,
    /// Serves 15008.
    pub(crate) acceptor: Rc<Acceptor>,
    /// The units of this host, where the workloads are units.
    pub(crate) neighbours: Arc<Neighbours>,
    live: Rc<Live>,
}

impl Carrier {
    pub(crate) fn new(ctx: Arc<Context>, neighbours: Arc<Neighbours>) -> Rc<Self> {
        let dialer = Dialer::new(Arc::clone(&ctx.svids), ctx.config.dialer.clone(), PodConnect);
        let acceptor = Acceptor::new(Arc::clone(&ctx.svids), ctx.config.acceptor.clone());
        Rc::new(Self { ctx, dialer, acceptor, neighbours, live: Live::new() })
    }

    /// Decides about open connections again whenever policy changes, for as long as the worker's runtime runs.
    pub(crate) fn follow_policy(&self) {
        spawn_local(Rc::clone(&self.live).follow(self.ctx.published.clone()));
    }

    /// Enters a connection that is about to carry bytes: from here on a change of policy, or the end of its pod, ends
    /// it.
    pub(crate) fn register(&self, pod: &PodState, permit: &Permit) -> Result<(Registered, Cut), Outcome> {
        let entered = self
            .live
            .register(permit, &pod.net.uid, &self.ctx.published)
            .map_err(|denial| Outcome::from(&denial))?;
        // Looked at after it was entered: an order to cut the pod either finds it or was given before this.
        if pod.is_gone() {
            return Err(Outcome::from(&CutReason::PodGone));
        }
        Ok(entered)
    }

    /// Ends the connections of a pod that is gone, and closes its idle tunnels.
    pub(crate) fn cut_pod(&self, uid: &WorkloadUid) {
        self.live.cut_pod(uid);
        self.dialer.close_pod(uid);
    }

    /// Ends every connection, and closes all idle tunnels.
    pub(crate) fn cut_all(&self) {
        self.live.cut_all(&CutReason::Drain);
        self.dialer.close_idle();
    }
}
