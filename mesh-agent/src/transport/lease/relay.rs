//! One application connection on one leased tunnel connection: a single future that drives both directions, at either
//! end of the tunnel. A [`Link`] and the near socket come in, [`Ran`] goes out; the caller decides what becomes of both.
//!
//! Bytes that wait are bounded: one read's worth towards the tunnel, one buffer towards the near socket, and the replay
//! window until the far side said OPENED.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::finish::Finish;
use super::flow::{Flow, Role};
use super::link::Link;
use crate::authorize::CutReason;
use crate::transport::dialer::SILENCE;
use crate::transport::seldom::Seldom;
use crate::transport::{Open, Watch};

/// Which end of the tunnel this is, and what the connection begins with.
#[derive(Debug)]
pub(super) enum Begin {
    /// The dialling end: send OPEN, and behind it these bytes, which were read from the near socket already.
    Open(Open, Bytes),
    /// The dialling end, and the far side said OPENED already.
    Answered,
    /// The accepting end: the application is connected.
    Opened,
}

/// How a relay went.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) finish: Finish,
    /// What was read from the near socket before OPENED came.
    pub(super) replay: Bytes,
    pub(super) from_near: u64,
    pub(super) to_near: u64,
    /// Nothing of this connection follows in either direction, and everything is delivered.
    pub(super) free: bool,
}

/// Carries one connection. `doubt` is asked when the far side's kernel stays silent about OPEN; it resolves when the
/// node cannot be reached any more, with the reason.
pub(super) async fn run(
    link: &mut Link,
    near: &TcpStream,
    begin: Begin,
    Watch { cut, meter }: &mut Watch,
    doubt: impl Future<Output = String>,
) -> Ran {
    let Link { tcp, tls, decoder, draining, ended, .. } = link;
    let (role, replay) = match begin {
        Begin::Open(open, replay) => (Role::Dialler(Some(open)), BytesMut::from(replay)),
        Begin::Answered => (Role::Dialler(None), BytesMut::new()),
        Begin::Opened => (Role::Acceptor, BytesMut::new()),
    };
    let mut flow = Flow::new(tcp, tls, decoder, near, role, replay);
    let finish = {
        let mut cut = pin!(cut.wait());
        let mut near_alarm = pin!(near.ready(Interest::ERROR));
        let mut tunnel_alarm = pin!(tcp.ready(Interest::ERROR));
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        let mut doubt = pin!(doubt);
        // Only an OPEN that is under way can be doubted.
        let mut doubted = (!flow.opening).then_some(false);
        let seldom = Seldom::new();
        poll_fn(|cx| {
            if let Some(mut due) = seldom.due(cx) {
                if let Poll::Ready(reason) = cut.as_mut().poll(&mut due) {
                    return Poll::Ready(Finish::Cut(reason));
                }
                // A finished future is not polled again.
                flow.near_failed = flow.near_failed || near_alarm.as_mut().poll(&mut due).is_ready();
                flow.tunnel_failed = flow.tunnel_failed || tunnel_alarm.as_mut().poll(&mut due).is_ready();
                if doubted.is_none() && silence.as_mut().poll(&mut due).is_ready() {
                    doubted = Some(flow.is_unanswered());
                }
                if doubted == Some(true)
                    && let Poll::Ready(text) = doubt.as_mut().poll(&mut due)
                {
                    // The answer may have come meanwhile.
                    doubted = Some(false);
                    if flow.is_unanswered() {
                        return Poll::Ready(Finish::Lost(text));
                    }
                }
            }
            if ended.poll(cx).is_ready() {
                return Poll::Ready(Finish::Cut(CutReason::IdentityEnded));
            }
            let polled = flow.poll(cx);
            if !flow.opening {
                meter.note(flow.from_near, flow.to_near);
            }
            polled
        })
        .await
    };
    *draining |= flow.drain_seen;
    flow.end();
    Ran {
        finish,
        from_near: flow.from_near,
        to_near: flow.to_near,
        free: flow.is_free(),
        replay: std::mem::take(&mut flow.replay).freeze(),
    }
}
