//! Shared HBONE connections of one worker: several for each key (one connection caps throughput and streams), each with
//! a bounded number of streams.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::Semaphore;

use super::*;
use crate::identify::ProvenPeer;
use crate::transport::key::PoolKey;
use crate::transport::tls_io::TlsIo;

/// Streams on each connection before another connection is dialled, up to [`MAX_SHARDS`].
const STREAMS_BEFORE_ANOTHER: usize = 16;
/// Streams on each connection before one more is dialled in any case.
const MAX_STREAMS: usize = 128;
/// Connections for one key that are dialled to spread load.
const MAX_SHARDS: usize = 4;

/// The shared connections of one worker.
#[derive(Debug, Default)]
pub(in crate::transport) struct ShardPool {
    shards: RefCell<HashMap<PoolKey, Vec<Rc<Connected>>>>,
    gates: RefCell<HashMap<PoolKey, Rc<Semaphore>>>,
}

/// One connection.
#[derive(Debug)]
struct Connected {
    send: SendRequest<Bytes>,
    streams: Cell<usize>,
    dead: Rc<Cell<bool>>,
    peer: Rc<ProvenPeer>,
    idle_since: Cell<Instant>,
}

/// The right to one stream on a shared connection.
#[derive(Debug)]
pub(in crate::transport) struct Shard {
    connected: Rc<Connected>,
    pub(in crate::transport) key: PoolKey,
    pub(in crate::transport) warm: bool,
}

impl Shard {
    fn new(connected: &Rc<Connected>, key: PoolKey, warm: bool) -> Self {
        connected.streams.set(connected.streams.get() + 1);
        Self { connected: Rc::clone(connected), key, warm }
    }

    /// Sends requests on the connection.
    pub(super) fn send(&self) -> SendRequest<Bytes> {
        self.connected.send.clone()
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> &ProvenPeer {
        &self.connected.peer
    }

    /// The connection takes no further streams.
    pub(super) fn retire(&self) {
        self.connected.dead.set(true);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.connected.streams.set(self.connected.streams.get().saturating_sub(1));
        self.connected.idle_since.set(Instant::now());
    }
}

impl ShardPool {
    /// A stream on the least loaded connection, unless another connection should be dialled.
    pub(in crate::transport) fn take(&self, key: &PoolKey) -> Option<Shard> {
        let shards = self.shards.borrow();
        let usable = |shard: &&Rc<Connected>| {
            !shard.dead.get() && shard.peer.may_carry_more() && shard.peer.check().is_ok()
        };
        let usable = shards.get(key)?.iter().filter(usable);
        let (count, least) = usable.fold((0, None::<&Rc<Connected>>), |(count, least), shard| {
            let better = least.is_none_or(|least| shard.streams.get() < least.streams.get());
            (count + 1, if better { Some(shard) } else { least })
        });
        let least = least?;
        let limit = if count < MAX_SHARDS { STREAMS_BEFORE_ANOTHER } else { MAX_STREAMS };
        let limit = limit.min(least.send.current_max_send_streams());
        (least.streams.get() < limit).then(|| Shard::new(least, key.clone(), true))
    }

    /// Lets one caller at a time dial for `key`, if the peer is known (or `forced`) to speak HBONE.
    pub(in crate::transport) fn gate(&self, key: &PoolKey, forced: bool) -> Option<Rc<Semaphore>> {
        let mut gates = self.gates.borrow_mut();
        if forced && !gates.contains_key(key) {
            gates.insert(key.clone(), Rc::new(Semaphore::new(1)));
        }
        gates.get(key).cloned()
    }

    /// Begins HTTP/2 on a connection whose handshake is over.
    pub(in crate::transport) async fn add(
        &self,
        key: PoolKey,
        io: TlsIo,
        peer: Rc<ProvenPeer>,
    ) -> Result<Shard, h2::Error> {
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .reset_stream_duration(RESET_MEMORY)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(Some(LOCAL_ERRORS))
            .data_frame_budget(SMALL_FRAME_BUDGET)
            .initial_max_send_streams(MAX_STREAMS)
            .enable_push(false)
            .handshake::<_, Bytes>(io)
            .await?;
        let dead = Rc::new(Cell::new(false));
        let connected = Rc::new(Connected {
            send,
            streams: Cell::new(0),
            dead: Rc::clone(&dead),
            peer,
            idle_since: Cell::new(Instant::now()),
        });
        tokio::task::spawn_local(async move {
            // Each stream learns of the loss by itself.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HBONE connection ended");
            }
            dead.set(true);
        });
        let shard = Shard::new(&connected, key.clone(), false);
        self.gates.borrow_mut().entry(key.clone()).or_insert_with(|| Rc::new(Semaphore::new(1)));
        self.shards.borrow_mut().entry(key).or_default().push(connected);
        Ok(shard)
    }

    /// Lets go of the connections under the keys that `gone` names; one with streams closes behind the last of them.
    pub(in crate::transport) fn close_where(&self, gone: impl Fn(&PoolKey) -> bool) {
        self.shards.borrow_mut().retain(|key, _| !gone(key));
    }

    /// Lets go of connections that are dead, expired, idle for `idle_limit`, or of another trust bundle. One with
    /// streams closes behind the last of them.
    pub(in crate::transport) fn trim(&self, idle_limit: Duration, trust_generation: u64) {
        let now = Instant::now();
        let mut shards = self.shards.borrow_mut();
        for (key, list) in shards.iter_mut() {
            list.retain(|shard| {
                let idle =
                    shard.streams.get() == 0 && now.duration_since(shard.idle_since.get()) >= idle_limit;
                !idle
                    && !shard.dead.get()
                    && key.trust_generation == trust_generation
                    && shard.peer.check().is_ok()
            });
        }
        shards.retain(|_, list| !list.is_empty());
        self.gates.borrow_mut().retain(|key, gate| shards.contains_key(key) || Rc::strong_count(gate) > 1);
    }
}
