//! The signal that ends an open connection from outside: policy changed, the pod is gone, the agent drains.

use std::fmt;

use tokio::sync::oneshot;

/// Why an open connection was ended by the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// A check by newer policy denied it.
    Denied(mesh_core::authorize::DenyReason),
    /// The pod is gone.
    PodGone,
    /// The agent's drain time is over.
    Drain,
    /// The peer's or our certificate ended, or its root is no longer trusted.
    IdentityEnded,
}

impl CutReason {
    /// The reason as one word, for metrics and response flags.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied(reason) => reason.code(),
            Self::PodGone => "pod_gone",
            Self::Drain => "agent_drained",
            Self::IdentityEnded => "identity_ended",
        }
    }
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(reason) => write!(f, "policy changed: {reason}"),
            Self::PodGone => f.write_str("the pod is gone"),
            Self::Drain => f.write_str("the agent's drain time is over"),
            Self::IdentityEnded => f.write_str("a certificate ended or its root is no longer trusted"),
        }
    }
}

/// Held by the connection: resolves when it has to end, never when nobody will ask.
#[derive(Debug)]
pub struct Cut(Option<oneshot::Receiver<CutReason>>);

/// Held by whoever may end the connection.
#[derive(Debug)]
pub struct CutHandle(oneshot::Sender<CutReason>);

impl Cut {
    /// A connected pair.
    pub fn pair() -> (CutHandle, Self) {
        let (sender, receiver) = oneshot::channel();
        (CutHandle(sender), Self(Some(receiver)))
    }

    /// Waits for the signal. Cancel-safe.
    pub async fn wait(&mut self) -> CutReason {
        match &mut self.0 {
            Some(receiver) => match receiver.await {
                Ok(reason) => reason,
                Err(_) => {
                    self.0 = None;
                    std::future::pending().await
                }
            },
            None => std::future::pending().await,
        }
    }
}

impl CutHandle {
    /// Ends the connection; false when it had ended already.
    pub fn cut(self, reason: CutReason) -> bool {
        self.0.send(reason).is_ok()
    }
}
