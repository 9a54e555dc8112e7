//! The dialling end of HBONE: CONNECT on a shared connection, 2xx, then bytes. Nothing is sent ahead of the answer.

use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::connect::{parse_refusal, request};
use super::pool::Shard;
use super::stream;
use crate::authorize::CutReason;
use crate::transport::dialer::{Connect, Dialer, silence};
use crate::transport::tunnel::{Attempt, Opening};
use crate::transport::{End, Open, Refusal, Relayed, Target, Watch, near as socket};

/// What came of the CONNECT.
enum Answer {
    Connected(SendStream<Bytes>, RecvStream),
    Refused(Refusal),
    /// The far side cannot have acted on it.
    Unread(String),
    Lost(String),
    NearReset,
    Cut(CutReason),
}

/// Carries one connection over a stream of `shard`.
pub(in crate::transport) async fn carry<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    shard: Shard,
    near: TcpStream,
    replay: Bytes,
    watch: &mut Watch,
) -> Attempt {
    let answer = tokio::select! {
        biased;
        answer = ask(&target.open, target.svid.identity.namespace(), &shard) => answer,
        reason = watch.cut.wait() => Answer::Cut(reason),
        _ = near.ready(Interest::ERROR) => Answer::NearReset,
        text = unreachable(dialer, target, Duration::MAX) => {
            shard.retire();
            Answer::Lost(text)
        }
    };
    let end = match answer {
        Answer::Connected(send, recv) => {
            let relayed = stream::run(near, (send, recv), replay, shard.peer(), watch).await;
            return Attempt::Over(relayed);
        }
        Answer::Refused(refusal) => {
            let end = End::Refused { refusal, near, replay };
            return Attempt::Over(Relayed { from_near: 0, to_near: 0, end });
        }
        Answer::Unread(text) => {
            shard.retire();
            let (warm, key) = (shard.warm, shard.key.clone());
            return Attempt::Unread { near, replay, text, key, warm };
        }
        Answer::Lost(text) => End::TunnelLost(text),
        Answer::NearReset => End::ResetByNear,
        Answer::Cut(reason) => End::Cut(reason),
    };
    socket::reset(near);
    Attempt::Over(Relayed { from_near: replay.len() as u64, to_near: 0, end })
}

/// A stream whose CONNECT was answered before there was a near socket.
#[derive(Debug)]
pub(in crate::transport) struct Asked {
    shard: Shard,
    send: SendStream<Bytes>,
    recv: RecvStream,
}

/// Sends CONNECT and waits for the answer, before there is a near socket.
pub(in crate::transport) async fn open<C: Connect>(
    dialer: &Dialer<C>,
    target: &Target,
    shard: Shard,
) -> Opening<Asked> {
    let answer = tokio::select! {
        biased;
        answer = ask(&target.open, target.svid.identity.namespace(), &shard) => answer,
        text = unreachable(dialer, target, target.patience) => {
            shard.retire();
            Answer::Lost(text)
        }
    };
    match answer {
        Answer::Connected(send, recv) => Opening::Opened(Asked { shard, send, recv }),
        Answer::Refused(refusal) => Opening::Refused(refusal),
        Answer::Unread(text) => {
            shard.retire();
            Opening::Unread { text, key: shard.key.clone(), warm: shard.warm }
        }
        Answer::Lost(text) => Opening::Lost(text),
        // `ask` knows neither.
        Answer::NearReset => Opening::Lost("the client closed".into()),
        Answer::Cut(reason) => Opening::Lost(reason.to_string()),
    }
}

/// Carries one connection over a stream whose CONNECT was answered already.
pub(in crate::transport) async fn carry_opened(asked: Asked, near: TcpStream, watch: &mut Watch) -> Attempt {
    let Asked { shard, send, recv } = asked;
    let relayed = stream::run(near, (send, recv), Bytes::new(), shard.peer(), watch).await;
    Attempt::Over(relayed)
}

/// Resolves when the far agent stayed silent and cannot be dialled within `limit`.
async fn unreachable<C: Connect>(dialer: &Dialer<C>, target: &Target, limit: Duration) -> String {
    tokio::time::sleep(silence(limit)).await;
    dialer.unreachable(target, limit).await
}

async fn ask(open: &Open, source_namespace: &str, shard: &Shard) -> Answer {
    let request = match request(open, source_namespace) {
        Ok(request) => request,
        Err(error) => return Answer::Lost(error.to_string()),
    };
    let mut send = match shard.send().ready().await {
        Ok(send) => send,
        Err(error) => return Answer::Unread(error.to_string()),
    };
    match send.send_request(request, false) {
        Ok((answer, send)) => wait(answer, send).await,
        Err(error) => Answer::Unread(error.to_string()),
    }
}

async fn wait(mut answer: ResponseFuture, mut send: SendStream<Bytes>) -> Answer {
    let outcome = std::future::poll_fn(|cx| {
        // Informational answers are not waited for.
        std::pin::Pin::new(&mut answer).poll(cx)
    });
    match outcome.await {
        Ok(response) if response.status().is_success() => Answer::Connected(send, response.into_body()),
        Ok(response) => {
            send.send_reset(Reason::NO_ERROR);
            Answer::Refused(parse_refusal(response.status(), response.headers()))
        }
        // GOAWAY names the last stream that was looked at, REFUSED_STREAM means that this one was not.
        Err(error) if error.is_go_away() && error.is_remote() => Answer::Unread(error.to_string()),
        Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) && error.is_remote() => {
            Answer::Unread(error.to_string())
        }
        Err(error) => Answer::Lost(error.to_string()),
    }
}
