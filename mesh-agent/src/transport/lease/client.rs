//! The dialling end of a lease: one connection through it, and its way back to the pool.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::finish::{Finish, lost};
use super::frame::Frame;
use super::link::{Control, Link};
use super::relay::{Begin, run};
use crate::sys;
use crate::transport::dialer::{Connect, Dialer, silence};
use crate::transport::key::PoolKey;
use crate::transport::tunnel::{Attempt, Opening};
use crate::transport::{End, Open, Relayed, Target, Watch, near as socket};

/// A leased connection on its way to be used.
#[derive(Debug)]
pub(in crate::transport) struct Lease {
    pub(in crate::transport) link: Box<Link>,
    pub(in crate::transport) key: PoolKey,
    /// It came out of the pool: it may have died there unseen.
    pub(in crate::transport) warm: bool,
}

/// Carries one connection over `lease`.
pub(in crate::transport) async fn carry<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    lease: Lease,
    near: TcpStream,
    replay: Bytes,
    watch: &mut Watch,
) -> Attempt {
    go(dialer, target, lease, (near, Begin::Open(target.open, replay)), watch).await
}

/// Carries one connection over a lease whose far side said OPENED already.
pub(in crate::transport) async fn carry_opened<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    lease: Lease,
    near: TcpStream,
    watch: &mut Watch,
) -> Attempt {
    go(dialer, target, lease, (near, Begin::Answered), watch).await
}

/// Says OPEN and waits for the answer, before there is a near socket.
pub(in crate::transport) async fn open<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    lease: Lease,
) -> Opening<Lease> {
    let Lease { mut link, key, warm } = lease;
    let before = link.tls.sent();
    let answer = tokio::select! {
        biased;
        answer = ask(&mut link, target.open) => answer,
        text = silent(dialer, target) => {
            link.abort(false);
            return Opening::Lost(text);
        }
    };
    let text = match answer {
        Ok(Some(Control::Opened)) => return Opening::Opened(Lease { link, key, warm }),
        Ok(Some(Control::Refused(refusal))) => {
            give_back_refused(dialer, key, link);
            return Opening::Refused(refusal);
        }
        Ok(Some(Control::Drain)) => {
            link.abort(false);
            return Opening::Unread { text: "the far agent drains".into(), key, warm };
        }
        Ok(Some(frame)) => format!("unexpected frame {frame:?}"),
        Ok(None) => "the far agent closed the tunnel".into(),
        Err(error) => lost(&error),
    };
    let unread = link.tls.sent() == before || sys::ended_unread(&link.tcp, before).unwrap_or(false);
    link.abort(false);
    if unread { Opening::Unread { text, key, warm } } else { Opening::Lost(text) }
}

async fn ask(link: &mut Link, open: Open) -> io::Result<Option<Control>> {
    link.send_frame(&Frame::Open(open)).await?;
    loop {
        match std::future::poll_fn(|cx| link.poll_frame(cx)).await? {
            // Of the connection before.
            Some(Control::Reset) => {}
            frame => return Ok(frame),
        }
    }
}

/// Resolves when the far agent stayed silent and cannot be dialled any more.
async fn silent<C: Connect>(dialer: &Dialer<C>, target: &Target) -> String {
    tokio::time::sleep(silence(target.patience)).await;
    Box::pin(dialer.unreachable(target, target.patience)).await
}

async fn go<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    lease: Lease,
    (near, begin): (TcpStream, Begin),
    watch: &mut Watch,
) -> Attempt {
    let Lease { mut link, key, warm } = lease;
    let doubt = async { Box::pin(dialer.unreachable(target, Duration::MAX)).await };
    let ran = run(&mut link, &near, begin, watch, doubt).await;
    let (from_near, to_near) = (ran.from_near, ran.to_near);
    let end = match ran.finish {
        Finish::Clean => {
            link.awaiting_done = !ran.free;
            dialer.give_back(key, link);
            return Attempt::Over(Relayed { from_near, to_near, end: End::Finished });
        }
        Finish::Refused(refusal) => {
            give_back_refused(dialer, key, link);
            let end = End::Refused { refusal, near, replay: ran.replay };
            return Attempt::Over(Relayed { from_near: 0, to_near: 0, end });
        }
        Finish::Unread(text) => {
            link.abort(false);
            return Attempt::Unread { near, replay: ran.replay, text, key, warm };
        }
        Finish::Lost(text) => {
            link.abort(false);
            End::TunnelLost(text)
        }
        Finish::NearReset => {
            link.abort(true);
            End::ResetByNear
        }
        Finish::FarReset => {
            link.abort(false);
            End::ResetByFar
        }
        Finish::Cut(reason) => {
            link.abort(true);
            End::Cut(reason)
        }
    };
    socket::reset(near);
    Attempt::Over(Relayed { from_near, to_near, end })
}

/// RESET tells the far side that nothing of the refused connection follows any more; then the lease is idle at both ends.
fn give_back_refused<C: Connect>(dialer: &Dialer<C>, key: PoolKey, mut link: Box<Link>) {
    if link.tls.wants_write() || link.put_frame(&Frame::Reset).is_err() {
        return link.abort(false);
    }
    link.flush_now();
    if link.tls.wants_write() { link.abort(false) } else { dialer.give_back(key, link) }
}
