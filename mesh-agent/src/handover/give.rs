//! The running agent's side: a socket that only root may open, and one successor at a time. Until the successor says that
//! it serves, everything here goes on; when it dies before, or is not as expected, nothing has changed.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;

use super::estate::{self, PodEstate};
use super::wire::{Conversation, Kind};
use super::{HandoverError, Place, check_peer, own_user};
use crate::control::Control;
use crate::dataplane::Lender;
use crate::intercept::{Answering, Holder};

/// How long each step may take.
const STEP: Duration = Duration::from_secs(10);
/// How long a successor may take until it serves: it loads kernel programs meanwhile. No pod is enrolled in this time.
const UNTIL_SERVING: Duration = Duration::from_secs(60);
/// How often it is asked whether the synchronisation pauses.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// The socket that successors ask at.
#[derive(Debug)]
pub struct HandoverSocket(UnixListener);

impl HandoverSocket {
    /// Binds `path` (0600), taking the place of what an earlier agent left.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Bound beside and renamed, so that at no moment anybody else may open it.
        let beside = path.with_extension("handover-new");
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&beside)?;
        fs::set_permissions(&beside, Permissions::from_mode(0o600))?;
        fs::rename(&beside, path)?;
        Ok(Self(listener))
    }

    /// The one that the agent before had.
    pub fn inherit(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }
}

/// What this agent gives to a successor, as it is when one asks.
#[derive(Debug)]
pub struct Offer {
    /// Where this agent is.
    pub place: Place,
    /// What the controller gave.
    pub control: Control,
    /// The pods' listeners.
    pub lender: Lender,
    /// Pauses the synchronisation with the kernel.
    pub holder: Holder,
    /// The map that has the listeners in its slots.
    pub listeners_map: u32,
    /// The metrics port.
    pub metrics: OwnedFd,
    /// The administration socket.
    pub admin: OwnedFd,
}

/// Waits for a successor.
#[derive(Debug)]
pub struct Giver {
    socket: HandoverSocket,
    offer: Offer,
    user: u32,
}

impl Giver {
    /// At this socket.
    pub fn new(socket: HandoverSocket, offer: Offer) -> Self {
        Self { socket, offer, user: own_user() }
    }

    /// Returns when a successor serves. It waits for `GivenUp::done`: call it once the node's sockets are left to it.
    pub async fn replaced(self) -> GivenUp {
        loop {
            let stream = match self.socket.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting on the handover socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match self.converse(stream).await {
                Ok(conversation) => return GivenUp(conversation),
                Err(error) => {
                    tracing::warn!(%error, "a successor did not take over; this agent goes on");
                    self.offer.holder.hold(false);
                }
            }
        }
    }

    async fn converse(&self, stream: tokio::net::UnixStream) -> Result<Conversation, HandoverError> {
        let stream = stream.into_std().map_err(HandoverError::io("taking the connection"))?;
        let (place, user) = (self.offer.place.clone(), self.user);
        let mut conversation = blocking(move || admit(stream, &place, user)).await?;
        let Some(control) = self.offer.control.export() else {
            return refuse(conversation, "it has nothing from the controller yet").await;
        };
        self.offer.holder.hold(true);
        let paused = async {
            while !self.offer.holder.is_held() {
                tokio::time::sleep(PAUSE_POLL).await;
            }
        };
        if tokio::time::timeout(STEP, paused).await.is_err() {
            return refuse(conversation, "it is busy with the kernel").await;
        }
        let lent = match self.offer.lender.lend().await {
            Ok(lent) => lent,
            Err(error) => return refuse(conversation, error.to_string()).await,
        };
        let pods = lent.into_iter().map(|(net, listeners)| PodEstate {
            uid: net.uid.clone(),
            netns_cookie: net.netns_cookie,
            listeners,
        });
        let (pods, map) = (pods.collect(), self.offer.listeners_map);
        let node = self.node_sockets().map_err(HandoverError::io("copying the node's listeners"))?;
        tracing::info!("a successor asked: handing over");
        blocking(move || {
            estate::send(&mut conversation, &control, (pods, map), node)?;
            // The keys are not needed here while the successor starts.
            drop(control);
            conversation.limit(UNTIL_SERVING)?;
            conversation.expect(Kind::Serving)?;
            Ok(conversation)
        })
        .await
    }

    fn node_sockets(&self) -> io::Result<[OwnedFd; 3]> {
        Ok([
            self.offer.metrics.try_clone()?,
            self.offer.admin.try_clone()?,
            self.socket.0.as_fd().try_clone_to_owned()?,
        ])
    }

    /// As if this agent ran as another user.
    #[cfg(test)]
    pub(super) fn run_by(mut self, user: u32) -> Self {
        self.user = user;
        self
    }
}

/// The successor serves.
#[derive(Debug)]
pub struct GivenUp(Conversation);

impl GivenUp {
    /// Tells it that the node's sockets are its own, and the held connections, but for those that this agent is
    /// `answering`. Call it when their events are followed no more.
    pub async fn done(self, answering: &Answering) {
        let (Self(mut conversation), answering) = (self, answering.to_bytes());
        if let Err(error) = blocking(move || conversation.send(Kind::Done, &answering)).await {
            // It serves all the same.
            tracing::debug!(%error, "the successor did not wait for the end");
        }
    }
}

/// Who asks, and for which place.
pub(super) fn admit(stream: UnixStream, place: &Place, user: u32) -> Result<Conversation, HandoverError> {
    check_peer(&stream, user)?;
    let mut conversation = Conversation::new(stream, STEP)?;
    conversation.greet()?;
    conversation.greeted()?;
    let theirs: Place = serde_json::from_slice(&conversation.expect(Kind::Hello)?)
        .map_err(|e| HandoverError::Unexpected(format!("a hello that cannot be read: {e}")))?;
    if theirs == *place {
        return Ok(conversation);
    }
    let why = format!("it is at {place:?}, not at {theirs:?}");
    conversation.send(Kind::Refuse, why.as_bytes())?;
    Err(HandoverError::Refused(why))
}

async fn refuse<T>(mut conversation: Conversation, why: impl Into<String>) -> Result<T, HandoverError> {
    let why = why.into();
    let text = why.clone();
    blocking(move || conversation.send(Kind::Refuse, text.as_bytes())).await?;
    Err(HandoverError::Refused(why))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HandoverError> + Send + 'static,
) -> Result<T, HandoverError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|e| Err(HandoverError::Unexpected(format!("nothing: {e}"))))
}
