//! The accepting end of HBONE: one HTTP/2 connection, each CONNECT admitted anew and relayed by a task of its own on
//! this worker.

use std::rc::Rc;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};

use super::connect::{parse, refusal_response};
use super::*;
use crate::identify::ProvenPeer;
use crate::transport::tls_io::TlsIo;
use crate::transport::{
    AcceptorSettings, Admit, Admitted, Drain, Protocol, Refusal, RefusalCode, ServeError, near,
};

/// Serves one connection to its end.
pub(in crate::transport) async fn serve<H: Admit + 'static>(
    io: TlsIo,
    peer: Rc<ProvenPeer>,
    handler: Rc<H>,
    mut drain: Drain,
    settings: &AcceptorSettings,
) -> Result<(), ServeError> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES)
        .max_concurrent_streams(SERVER_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESET_STREAMS)
        .reset_stream_duration(RESET_MEMORY)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(LOCAL_ERRORS))
        .data_frame_budget(SMALL_FRAME_BUDGET)
        .handshake::<_, Bytes>(io);
    let mut connection = match tokio::time::timeout(settings.handshake_timeout, handshake).await {
        Ok(outcome) => outcome.map_err(|e| ServeError::tunnel(&peer, e))?,
        Err(_) => return Err(ServeError::tunnel(&peer, "no HTTP/2 preface in time")),
    };
    let mut ended = std::pin::pin!(peer.ended());
    let mut leaving = false;
    loop {
        let next = tokio::select! {
            biased;
            () = drain.wait(), if !leaving => None,
            _ = ended.as_mut(), if !leaving => None,
            next = connection.accept() => Some(next),
        };
        match next {
            // GOAWAY: open streams go on, no new ones are taken.
            None => {
                leaving = true;
                connection.graceful_shutdown();
            }
            Some(None) => return Ok(()),
            Some(Some(Ok((request, respond)))) => {
                tokio::task::spawn_local(one(request, respond, Rc::clone(&peer), Rc::clone(&handler)));
            }
            // A lost connection: each of its streams says so.
            Some(Some(Err(error))) if error.is_io() || error.is_go_away() && error.is_remote() => {
                return Ok(());
            }
            Some(Some(Err(error))) => return Err(ServeError::tunnel(&peer, error)),
        }
    }
}

/// One CONNECT.
async fn one<H: Admit>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: Rc<ProvenPeer>,
    handler: Rc<H>,
) {
    if let Err(error) = peer.check() {
        tracing::info!(peer = %peer.identity, %error, "a tunnel's identity ended");
        return refuse(respond, RefusalCode::Denied, &error);
    }
    let asked = match parse(&request, peer.address) {
        Ok(asked) => asked,
        Err(error) => {
            handler.unreadable(&peer.identity, Protocol::Hbone, &error.to_string());
            return refuse(respond, RefusalCode::BadDestination, &error);
        }
    };
    tracing::trace!(baggage = ?asked.baggage, traceparent = ?asked.traceparent, "CONNECT");
    let admitted = tokio::select! {
        biased;
        admitted = handler.admit(&peer.identity, Protocol::Hbone, asked.open) => admitted,
        // The dialler gave up.
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let Admitted { app, mut watch, record } = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(respond, refusal.code, &refusal.message),
    };
    let relayed = match respond.send_response(Response::new(()), false) {
        Ok(send) => stream::run(app, (send, request.into_body()), Bytes::new(), &peer, &mut watch).await,
        Err(error) => {
            near::reset(app);
            let end = crate::transport::End::TunnelLost(error.to_string());
            crate::transport::Relayed { from_near: 0, to_near: 0, end }
        }
    };
    handler.ended(record, relayed);
}

fn refuse(mut respond: SendResponse<Bytes>, code: RefusalCode, message: &impl ToString) {
    let refusal = Refusal { code, message: message.to_string() };
    if respond.send_response(refusal_response(&refusal), true).is_err() {
        respond.send_reset(Reason::CANCEL);
    }
}
