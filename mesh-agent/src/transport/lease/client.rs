//! The dialling end of a lease: one connection through it, and its way back to the pool.

use bytes::Bytes;
use tokio::net::TcpStream;

use super::frame::Frame;
use super::link::Link;
use super::relay::{Begin, Finish, run};
use crate::authorize::Cut;
use crate::transport::dialer::{Connect, Dialer};
use crate::transport::key::PoolKey;
use crate::transport::tunnel::Attempt;
use crate::transport::{End, Relayed, Target, near as socket};

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
    cut: &mut Cut,
) -> Attempt {
    let Lease { mut link, key, warm } = lease;
    let begin = Begin::Open(target.open, replay);
    let ran = run(&mut link, &near, begin, cut, dialer.unreachable(target)).await;
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
