//! A tunnel that is ready to carry one connection, over whichever transport ALPN chose; over a fresh one when the far
//! side cannot have read what was asked.

use std::rc::Rc;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::dialer::{Connect, Dialer, PodConnect};
use super::dialled::Dialled;
use super::hbone;
use super::key::PoolKey;
use super::lease::{self, Lease};
use super::{End, OpenError, Protocol, Refusal, Relayed, Target, Watch, near as socket};

/// Fresh tunnels that are tried after one that was not read. The first may still be accepted by an agent that gives way to
/// its successor, and says DRAIN before it reads anything.
const FRESH_TRIES: u32 = 2;

/// A tunnel that is ready to carry one connection.
#[derive(Debug)]
pub struct Tunnel<C = PodConnect> {
    dialer: Rc<Dialer<C>>,
    target: Target,
    dialled: Dialled,
}

impl<C: Connect> Dialer<C> {
    /// A tunnel to `target`: a warm one when there is one, else a new one. The far agent has not been asked for the
    /// application yet: [`Tunnel::relay`] does.
    pub async fn connect(self: &Rc<Self>, target: &Target) -> Result<Tunnel<C>, OpenError> {
        let dialled = self.warm_or_new(target).await?;
        Ok(Tunnel { dialer: Rc::clone(self), target: target.clone(), dialled })
    }
}

/// What came of one try.
pub(super) enum Attempt {
    /// It is over, whatever the end.
    Over(Relayed),
    /// The tunnel was dead and the far side cannot have read OPEN or CONNECT: it may be asked again.
    Unread {
        near: TcpStream,
        replay: Bytes,
        text: String,
        key: PoolKey,
        /// The tunnel came out of a pool.
        warm: bool,
    },
}

/// What came of asking the far agent before there was a near socket.
pub(super) enum Opening<T> {
    Opened(T),
    Refused(Refusal),
    /// As in [`Attempt`].
    Unread {
        text: String,
        key: PoolKey,
        warm: bool,
    },
    Lost(String),
}

impl<T> Opening<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Opening<U> {
        match self {
            Self::Opened(opened) => Opening::Opened(change(opened)),
            Self::Refused(refusal) => Opening::Refused(refusal),
            Self::Unread { text, key, warm } => Opening::Unread { text, key, warm },
            Self::Lost(text) => Opening::Lost(text),
        }
    }
}

/// A tunnel whose far agent has connected the application.
#[derive(Debug)]
pub struct Opened<C = PodConnect> {
    dialer: Rc<Dialer<C>>,
    target: Target,
    asked: Asked,
}

#[derive(Debug)]
enum Asked {
    Lease(Lease),
    Hbone(hbone::Asked),
}

/// Why the far agent did not connect the application.
#[derive(Debug)]
pub enum NotOpened {
    /// It refused.
    Refused(Refusal),
    /// The tunnel broke.
    Lost(String),
    /// It had died before, and there is no fresh one.
    Dial(OpenError),
}

impl<C: Connect> Opened<C> {
    /// Which transport it is.
    pub fn protocol(&self) -> Protocol {
        match &self.asked {
            Asked::Lease(_) => Protocol::Ferromesh,
            Asked::Hbone(_) => Protocol::Hbone,
        }
    }

    /// Carries the connection. On every end but `Finished` the near socket is reset.
    pub async fn relay(self, near: TcpStream, mut watch: Watch) -> Relayed {
        let attempt = match self.asked {
            Asked::Lease(lease) => {
                lease::carry_opened(&self.dialer, &self.target, lease, near, &mut watch).await
            }
            Asked::Hbone(asked) => hbone::carry_opened(asked, near, &mut watch).await,
        };
        match attempt {
            Attempt::Over(relayed) => relayed,
            // Only what was not opened can be unread.
            Attempt::Unread { near, replay, text, .. } => ended(near, &replay, End::TunnelLost(text)),
        }
    }

    /// Ends it: the application sees a reset.
    pub fn abort(self) {
        match self.asked {
            Asked::Lease(lease) => lease.link.abort(true),
            // Dropping the stream resets it.
            Asked::Hbone(asked) => drop(asked),
        }
    }
}

impl<C: Connect> Tunnel<C> {
    /// Asks the far agent for the application, before there is a near socket. Dropped meanwhile, the tunnel is closed.
    pub async fn open(self) -> Result<Opened<C>, NotOpened> {
        let Self { dialer, target, mut dialled } = self;
        loop {
            let opening = match dialled {
                Dialled::Lease(lease) => lease::open(&dialer, &target, lease).await.map(Asked::Lease),
                Dialled::Hbone(shard) => hbone::open(&dialer, &target, shard).await.map(Asked::Hbone),
            };
            let key = match opening {
                Opening::Opened(asked) => return Ok(Opened { dialer, target, asked }),
                Opening::Refused(refusal) => return Err(NotOpened::Refused(refusal)),
                Opening::Lost(text) | Opening::Unread { text, warm: false, .. } => {
                    return Err(NotOpened::Lost(text));
                }
                Opening::Unread { text, key, .. } => {
                    tracing::debug!(error = %text, "a warm tunnel had died; dialling a fresh one");
                    key
                }
            };
            dialled = Box::pin(dialer.dial(&target, key)).await.map_err(NotOpened::Dial)?;
        }
    }

    /// Which transport it is.
    pub fn protocol(&self) -> Protocol {
        match &self.dialled {
            Dialled::Lease(_) => Protocol::Ferromesh,
            Dialled::Hbone(_) => Protocol::Hbone,
        }
    }

    /// Whether it was warm: no handshake was needed.
    pub fn is_warm(&self) -> bool {
        match &self.dialled {
            Dialled::Lease(lease) => lease.warm,
            Dialled::Hbone(shard) => shard.warm,
        }
    }

    /// Asks the far agent for the application and carries the connection. `near` faces an application already
    /// ([`face_application`](crate::sys::face_application)). `replay` was read from `near` already. On
    /// every end but `Finished` and `Refused` the near socket is reset.
    pub async fn relay(self, near: TcpStream, replay: Bytes, mut watch: Watch) -> Relayed {
        let (mut near, mut replay) = (near, replay);
        if replay.is_empty() {
            // What a client sends first is usually there by now, and leaves with OPEN or CONNECT in one piece.
            match socket::recv_early(&near) {
                Ok(early) => replay = early,
                Err(_) => {
                    self.release();
                    return ended(near, &replay, End::ResetByNear);
                }
            }
        }
        let Self { dialer, target, mut dialled } = self;
        let mut tries = 0;
        loop {
            let attempt = match dialled {
                Dialled::Lease(lease) => {
                    lease::carry(&dialer, &target, lease, near, replay, &mut watch).await
                }
                Dialled::Hbone(shard) => {
                    hbone::carry(&dialer, &target, shard, near, replay, &mut watch).await
                }
            };
            let (text, key) = match attempt {
                Attempt::Over(relayed) => return relayed,
                Attempt::Unread { near: same, replay: kept, text, key, warm } => {
                    (near, replay) = (same, kept);
                    tries += u32::from(!warm);
                    if tries >= FRESH_TRIES {
                        return ended(near, &replay, End::TunnelLost(text));
                    }
                    (text, key)
                }
            };
            tracing::debug!(error = %text, "a tunnel had died unread; dialling a fresh one");
            dialled = tokio::select! {
                fresh = Box::pin(dialer.dial(&target, key)) => match fresh {
                    Ok(fresh) => fresh,
                    Err(error) => return ended(near, &replay, End::TunnelLost(error.to_string())),
                },
                reason = watch.cut.wait() => return ended(near, &replay, End::Cut(reason)),
            };
        }
    }

    /// Gives the tunnel back unused.
    pub fn release(self) {
        if let Dialled::Lease(lease) = self.dialled {
            self.dialer.give_back(lease.key, lease.link);
        }
    }
}

fn ended(near: TcpStream, replay: &Bytes, end: End) -> Relayed {
    socket::reset(near);
    Relayed { from_near: replay.len() as u64, to_near: 0, end }
}
