//! The start as a successor: what the running agent gives is taken, and it is told when all of it is in use. Without a
//! running agent, or when anything is not as expected, the start is like any other.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::Parts;
use crate::config::AgentArgs;
use crate::handover::{self, Claim, NodeSockets, Place};
use crate::intercept::{Answering, Holder, Inherited, InterceptError};

/// How long the pods that were handed over may take until they are served.
const SETTLE: Duration = Duration::from_secs(40);
const SETTLE_POLL: Duration = Duration::from_millis(5);

/// The agent before, which waits; and what is left to be used of its estate.
pub(super) struct Predecessor {
    claim: Claim,
    pub(super) pods: Inherited,
    pub(super) node: NodeSockets,
}

/// Takes over what runs here, if anything does. The parts hold its state then.
pub(super) async fn begin(args: &AgentArgs) -> Result<(Parts, Option<Predecessor>)> {
    let (socket, place) = (handover::socket_path(&args.admin_socket), Place::of(args));
    let claimed = tokio::task::spawn_blocking(move || handover::claim(&socket, &place)).await;
    let parts = Parts::new(args)?;
    let (claim, estate) = match claimed {
        Ok(Ok(Some(claimed))) => claimed,
        Ok(Ok(None)) => return Ok((parts, None)),
        Ok(Err(error)) => {
            tracing::warn!(%error, "no handover from the running agent; starting as if there were none");
            return Ok((parts, None));
        }
        Err(error) => {
            tracing::error!(%error, "asking for a handover failed; starting as if there were no other agent");
            return Ok((parts, None));
        }
    };
    match parts.control.import(estate.control) {
        Ok(()) => Ok((parts, Some(Predecessor { claim, pods: estate.pods, node: estate.node }))),
        Err(error) => {
            tracing::warn!(%error, "what was handed over cannot be used; starting as if there were no other agent");
            Ok((Parts::new(args)?, None))
        }
    }
}

/// Tells the agent before that this one serves, once it does; the held connections that are left to it.
pub(super) async fn finish(claim: Claim, kernel: &Holder) -> Result<Answering> {
    let end = Instant::now() + SETTLE;
    while !kernel.is_settled() {
        ensure!(Instant::now() < end, "the pods that were handed over are not served after {SETTLE:?}");
        tokio::time::sleep(SETTLE_POLL).await;
    }
    Ok(match tokio::task::spawn_blocking(move || claim.serving()).await? {
        Ok(answering) => {
            tracing::info!("took over from the running agent");
            answering
        }
        Err(error) => {
            // It has gone by itself: this one serves in any case.
            tracing::warn!(%error, "the agent before did not say that it has stopped accepting");
            Answering::default()
        }
    })
}

/// Whether the pins of an earlier agent are the reason.
pub(super) fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<InterceptError>(), Some(InterceptError::OtherLayout(_)))
}

impl Predecessor {
    /// The parts that go different ways.
    pub(super) fn split(self) -> (Claim, Inherited, NodeSockets) {
        (self.claim, self.pods, self.node)
    }
}
