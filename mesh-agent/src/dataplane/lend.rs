//! Copies of the pods' listeners, for the agent that takes this one's place. This one goes on accepting meanwhile: a
//! connection is accepted by either, and by one of them only.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use mesh_core::model::WorkloadUid;
use tokio::sync::mpsc::unbounded_channel;

use super::fleet::{Fleet, Lent, Order, Port};
use crate::intercept::{PodListeners, PodNet};

/// Why the listeners could not be copied.
#[derive(Debug, thiserror::Error)]
#[error("copying the listeners of pod {pod}: {source}")]
pub struct LendError {
    pod: WorkloadUid,
    source: io::Error,
}

/// Asks the workers for copies.
#[derive(Clone, Debug)]
pub struct Lender(Arc<Fleet>);

impl Lender {
    pub(super) fn new(fleet: Arc<Fleet>) -> Self {
        Self(fleet)
    }

    /// A copy of every listener that is accepted on now, by pod.
    pub async fn lend(&self) -> Result<Vec<(Arc<PodNet>, PodListeners)>, LendError> {
        let (to, mut lent) = unbounded_channel();
        self.0.order(|| Order::Lend(to.clone()));
        // The channel ends when every worker has answered.
        drop(to);
        let mut pods: HashMap<WorkloadUid, (Arc<PodNet>, PodListeners)> = HashMap::new();
        while let Some(Lent { pod, port, listener }) = lent.recv().await {
            let listener = listener.map_err(|source| LendError { pod: pod.uid.clone(), source })?;
            let (_, listeners) =
                pods.entry(pod.uid.clone()).or_insert_with(|| (Arc::clone(&pod), PodListeners::default()));
            match port {
                Port::Outbound => listeners.outbound.push(listener),
                Port::Plain => listeners.inbound.push(listener),
                Port::Mtls => listeners.mtls.push(listener),
            }
        }
        Ok(pods.into_values().collect())
    }
}
