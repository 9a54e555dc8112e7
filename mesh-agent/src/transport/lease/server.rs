//! The accepting end of a lease: OPEN -> admit (each anew) -> OPENED or REFUSED -> relay -> the next OPEN. DRAIN when
//! the agent drains or the peer's identity ended; only the dialling side closes an idle connection.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;

use super::finish::Finish;
use super::frame::{Frame, is_reset};
use super::link::{Control, Link};
use super::relay::{Begin, run};
use crate::identify::ProvenPeer;
use crate::transport::seldom::Seldom;
use crate::transport::{
    AcceptorSettings, Admit, Admitted, Drain, End, Open, Protocol, Refusal, Relayed, ServeError, near,
};

/// How long the bytes of a refused connection are thrown away before the dialler must have said RESET.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// What an idle connection wakes up for.
enum Next {
    Frame(io::Result<Option<Control>>),
    Drain,
}

/// Serves one connection to its end.
pub(in crate::transport) async fn serve<H: Admit>(
    mut link: Box<Link>,
    peer: &ProvenPeer,
    handler: &H,
    mut drain: Drain,
    settings: &AcceptorSettings,
) -> Result<(), ServeError> {
    let (mut draining, seldom) = (pin!(drain.wait()), Seldom::new());
    loop {
        let next = poll_fn(|cx| {
            if let Some(mut due) = seldom.due(cx)
                && draining.as_mut().poll(&mut due).is_ready()
            {
                return Poll::Ready(Next::Drain);
            }
            if let Poll::Ready(frame) = link.poll_frame(cx) {
                return Poll::Ready(Next::Frame(frame));
            }
            link.ended.poll(cx).map(|()| Next::Drain)
        });
        let open = match next.await {
            Next::Frame(Ok(Some(Control::Open(open)))) => open,
            Next::Frame(Ok(None)) => {
                link.close();
                return Ok(());
            }
            // An idle connection that was lost harms nobody.
            Next::Frame(Err(error)) if error.kind() != io::ErrorKind::InvalidData => return Ok(()),
            Next::Frame(Err(error)) => return Err(ServeError::tunnel(peer, error)),
            // The dialler's application was reset while REFUSED was on its way.
            Next::Frame(Ok(Some(Control::Reset))) => return Ok(()),
            Next::Frame(Ok(Some(other))) => {
                link.abort(false);
                return Err(ServeError::tunnel(peer, format!("unexpected frame {other:?}")));
            }
            Next::Drain => return leave(link, settings).await,
        };
        if let Err(error) = peer.check() {
            tracing::info!(peer = %peer.identity, %error, "a tunnel's identity ended");
            return leave(link, settings).await;
        }
        match one(link, peer, handler, open).await {
            Some(free) => link = free,
            None => return Ok(()),
        }
    }
}

/// One OPEN. The link comes back when it is free again.
async fn one<H: Admit>(mut link: Box<Link>, peer: &ProvenPeer, handler: &H, open: Open) -> Option<Box<Link>> {
    let admitted = tokio::select! {
        biased;
        admitted = handler.admit(&peer.identity, Protocol::Ferromesh, open) => Some(admitted),
        () = abandoned(&mut link) => None,
    };
    let Admitted { app, mut watch, record } = match admitted {
        None => {
            link.abort(false);
            return None;
        }
        Some(Err(refusal)) => return refuse(link, refusal).await,
        Some(Ok(admitted)) => admitted,
    };
    let ran = run(&mut link, &app, Begin::Opened, &mut watch, std::future::pending()).await;
    let (end, free) = match ran.finish {
        Finish::Clean => (End::Finished, Some(link)),
        // The dialler may have leased the connection again already.
        Finish::NearReset if ran.free => (End::ResetByNear, Some(link)),
        Finish::NearReset => (End::ResetByNear, abort(link, true)),
        Finish::FarReset => (End::ResetByFar, abort(link, false)),
        Finish::Lost(text) | Finish::Unread(text) => (End::TunnelLost(text), abort(link, false)),
        Finish::Refused(refusal) => (End::TunnelLost(refusal.message), abort(link, false)),
        Finish::Cut(reason) => (End::Cut(reason), abort(link, true)),
    };
    if free.is_none() || matches!(end, End::ResetByNear) {
        near::reset(app);
    }
    handler.ended(record, Relayed { from_near: ran.from_near, to_near: ran.to_near, end });
    free
}

fn abort(link: Box<Link>, tell: bool) -> Option<Box<Link>> {
    link.abort(tell);
    None
}

/// Resolves when the dialler gave up while the application was being dialled.
async fn abandoned(link: &mut Link) {
    let Link { tcp, tls, decoder, .. } = link;
    let boundary = decoder.at_boundary();
    let quiet = poll_fn(|cx| match tls.poll_fill(tcp, cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Ok(n)) if n > 0 => {
            if boundary && is_reset(tls.plaintext()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        }
        Poll::Ready(_) => Poll::Ready(()),
    });
    // Bytes that were sent ahead hide what is behind them, but a reset of the tunnel shows on the socket.
    tokio::select! {
        () = quiet => {}
        _ = tcp.ready(Interest::ERROR) => {}
    }
}

/// Says REFUSED and throws away what was sent ahead, until the dialler says RESET: then the connection is free again.
async fn refuse(mut link: Box<Link>, refusal: Refusal) -> Option<Box<Link>> {
    let told = async {
        link.send_frame(&Frame::Refused(refusal)).await?;
        loop {
            match poll_fn(|cx| link.poll_frame(cx)).await? {
                Some(Control::Data(_) | Control::Fin) => {}
                Some(Control::Reset) => return io::Result::Ok(()),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    };
    match tokio::time::timeout(DISCARD_TIMEOUT, told).await {
        Ok(Ok(())) => Some(link),
        Ok(Err(_)) | Err(_) => abort(link, false),
    }
}

/// Says DRAIN and waits until the dialler closes. An OPEN that crosses it is not answered: the dialler knows from DRAIN
/// that it was not read.
async fn leave(mut link: Box<Link>, settings: &AcceptorSettings) -> Result<(), ServeError> {
    let closed = async {
        link.send_frame(&Frame::Drain).await?;
        while poll_fn(|cx| link.poll_frame(cx)).await?.is_some() {}
        io::Result::Ok(())
    };
    match tokio::time::timeout(settings.drain_timeout, closed).await {
        // Whether it closed in order or not, nothing was on it.
        Ok(Ok(()) | Err(_)) => {}
        Err(_) => tracing::debug!("a drained tunnel was not closed by its dialler"),
    }
    link.close();
    Ok(())
}
