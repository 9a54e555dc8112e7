//! The dialling side of one worker: pooled tunnels first, else dial, handshake, and what ALPN chose. A [`Target`] comes
//! in, a [`Tunnel`] goes out.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::model::WorkloadUid;
use rustls::Connection;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::dialled::Dialled;
use super::hbone::ShardPool;
use super::key::PoolKey;
use super::lease::{Lease, LeasePool, Link};
use super::tls_io::TlsIo;
use super::{ALPN_FERROMESH, ALPN_HBONE, OpenError, Protocol, Target, near};
use crate::identify::{HandshakeFailure, ProvenPeer, Role, SvidStore, client_config};
use crate::intercept::PodNet;

/// Opens TCP connections from within a pod's network namespace.
pub trait Connect: 'static {
    /// Connects to `address`, the far agent's mutual TLS port.
    fn connect(&self, pod: &PodNet, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>>;
}

/// The real one: [`PodNet::dial`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PodConnect;

impl Connect for PodConnect {
    async fn connect(&self, pod: &PodNet, address: SocketAddr) -> io::Result<TcpStream> {
        pod.dial(address).await
    }
}

/// Which transports a dialler offers and an acceptor takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportPreference {
    /// `ferromesh/1`, and HBONE for those who do not speak it.
    #[default]
    Ferromesh,
    /// HBONE only.
    HboneOnly,
    /// `ferromesh/1` only.
    FerromeshOnly,
}

impl TransportPreference {
    /// As ALPN names, the preferred one first.
    pub(super) fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Ferromesh => &[ALPN_FERROMESH, ALPN_HBONE],
            Self::HboneOnly => &[ALPN_HBONE],
            Self::FerromeshOnly => &[ALPN_FERROMESH],
        }
    }
}

/// Limits of a [`Dialer`].
#[derive(Clone, Debug)]
pub struct DialerSettings {
    /// Which transports are offered.
    pub preference: TransportPreference,
    /// The longest that TCP may take to connect.
    pub dial_timeout: Duration,
    /// The longest that the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// An idle tunnel is closed after this time, before middleboxes forget it.
    pub idle_timeout: Duration,
    /// The most idle leases that are kept for one key.
    pub max_idle_for_key: usize,
    /// The most idle leases that are kept by one worker.
    pub max_idle: usize,
}

impl Default for DialerSettings {
    fn default() -> Self {
        Self {
            preference: TransportPreference::default(),
            dial_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            max_idle_for_key: 128,
            max_idle: 2048,
        }
    }
}

/// How long a warm tunnel may stay silent about a connection before the far agent is doubted.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// The same, where a dial is given up after `limit`.
pub(super) fn silence(limit: Duration) -> Duration {
    SILENCE.min(limit / 2)
}

/// How often idle tunnels are looked at.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);

/// Dials tunnels and keeps them warm; one for each worker thread, inside its runtime.
#[derive(Debug)]
pub struct Dialer<C = PodConnect> {
    store: Arc<SvidStore>,
    settings: DialerSettings,
    connect: C,
    leases: RefCell<LeasePool>,
    shards: ShardPool,
    trimmer: RefCell<bool>,
    this: Weak<Self>,
}

impl<C: Connect> Dialer<C> {
    /// A dialler without tunnels. `store` has the trust bundle.
    pub fn new(store: Arc<SvidStore>, settings: DialerSettings, connect: C) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            store,
            leases: RefCell::new(LeasePool::new(settings.max_idle_for_key, settings.max_idle)),
            shards: ShardPool::default(),
            settings,
            connect,
            trimmer: RefCell::new(false),
            this: Weak::clone(this),
        })
    }

    /// A warm connection to the agent of `target` when there is one, else a new one.
    pub(super) async fn warm_or_new(&self, target: &Target) -> Result<Dialled, OpenError> {
        let key = PoolKey::new(target, self.store.trust().generation);
        let warm = self.leases.borrow_mut().take(&key);
        match warm {
            Some(link) => Ok(Dialled::Lease(Lease { link, key, warm: true })),
            // Boxed, as what is rare: a handshake would make the memory of every connection larger.
            None => Box::pin(self.connect_slow(target, key)).await,
        }
    }

    /// How many leases are idle on this worker.
    pub fn idle_leases(&self) -> usize {
        self.leases.borrow().len()
    }

    /// Closes every idle tunnel.
    pub fn close_idle(&self) {
        self.leases.borrow_mut().trim(Duration::ZERO, u64::MAX);
        self.shards.trim(Duration::ZERO, u64::MAX);
    }

    /// Closes the idle tunnels of a source pod that is gone.
    pub fn close_pod(&self, pod: &WorkloadUid) {
        self.leases.borrow_mut().close_where(|key| key.source_pod == *pod);
        self.shards.close_where(|key| key.source_pod == *pod);
    }

    /// For a warm tunnel that stays silent: resolves, with the reason, when the far agent cannot be dialled within `limit`.
    /// So a node that is gone is noticed as soon as a new connection would notice.
    pub(super) async fn unreachable(&self, target: &Target, limit: Duration) -> String {
        match self.tcp(target, limit).await {
            Err(error) => error.to_string(),
            Ok(_reached) => std::future::pending().await,
        }
    }

    /// Without a warm lease. A peer that chose HBONE before is asked for a stream on a shared connection; only one
    /// caller at a time dials another one, so that a burst does not become as many handshakes.
    async fn connect_slow(&self, target: &Target, key: PoolKey) -> Result<Dialled, OpenError> {
        if let Some(shard) = self.shards.take(&key) {
            return Ok(Dialled::Hbone(shard));
        }
        let gate = self.shards.gate(&key, self.settings.preference == TransportPreference::HboneOnly);
        let _turn = match &gate {
            Some(gate) => gate.acquire().await.ok(),
            None => None,
        };
        if let Some(shard) = gate.as_ref().and_then(|_| self.shards.take(&key)) {
            return Ok(Dialled::Hbone(shard));
        }
        self.dial(target, key).await
    }

    /// A new connection to the far agent, with its handshake.
    pub(super) async fn dial(&self, target: &Target, key: PoolKey) -> Result<Dialled, OpenError> {
        let address = target.agent();
        let failed = |reason| open_error(address, reason);
        if target.svid.not_after <= SystemTime::now() {
            return Err(failed(HandshakeFailure::OwnExpired));
        }
        let tcp = self.tcp(target, target.patience).await?;
        if let Err(error) = near::tune_tunnel(&tcp) {
            tracing::debug!(%error, "a socket option of a tunnel was refused");
        }
        let (io, protocol, generation) = self.handshake(target, tcp).await.map_err(failed)?;
        let (chain, store) = (io.tls.peer_certificates(), Arc::clone(&self.store));
        let peer = ProvenPeer::new((Role::Server, address), chain, &target.svid, generation, store);
        let peer = Rc::new(peer.map_err(failed)?);
        self.start_trimmer();
        match protocol {
            Protocol::Ferromesh => Ok(Dialled::Lease(Lease { link: Link::new(io, peer), key, warm: false })),
            _ => {
                let shard = self.shards.add(key, io, peer).await;
                shard.map(Dialled::Hbone).map_err(|e| failed(HandshakeFailure::Protocol(e.to_string())))
            }
        }
    }

    async fn tcp(&self, target: &Target, limit: Duration) -> Result<TcpStream, OpenError> {
        let address = target.agent();
        let dial = self.connect.connect(&target.source_pod, address);
        match tokio::time::timeout(limit.min(self.settings.dial_timeout), dial).await {
            Ok(outcome) => outcome.map_err(|source| OpenError::Dial { address, source }),
            Err(_) => Err(OpenError::Unanswered { address }),
        }
    }

    async fn handshake(
        &self,
        target: &Target,
        tcp: TcpStream,
    ) -> Result<(TlsIo, Protocol, u64), HandshakeFailure> {
        let trust = self.store.trust();
        let alpn = self.settings.preference.alpn();
        let config = client_config(&target.svid, &trust, &target.workload.identity, alpn)?;
        // Only the verifier's expected identity counts: the name is not sent and not compared.
        let name = ServerName::IpAddress(target.open.destination.ip().into());
        let handshake = TlsConnector::from(config).connect(name, tcp);
        let stream = tokio::time::timeout(self.settings.handshake_timeout, handshake)
            .await
            .map_err(|_| HandshakeFailure::Timeout)?
            .map_err(|e| HandshakeFailure::from_io(&e))?;
        let (tcp, conn) = stream.into_inner();
        let protocol = match conn.alpn_protocol() {
            Some(ALPN_FERROMESH) => Protocol::Ferromesh,
            Some(ALPN_HBONE) => Protocol::Hbone,
            _ => return Err(HandshakeFailure::NoSharedTransport),
        };
        Ok((TlsIo::new(tcp, Connection::Client(conn)), protocol, trust.generation))
    }

    /// Takes back a lease that ended clean.
    pub(super) fn give_back(&self, key: PoolKey, link: Box<Link>) {
        self.leases.borrow_mut().give(key, link);
    }

    /// The first tunnel starts the task that closes idle, dead and outdated ones; it ends with the dialler.
    fn start_trimmer(&self) {
        if std::mem::replace(&mut *self.trimmer.borrow_mut(), true) {
            return;
        }
        let this = Weak::clone(&self.this);
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(TRIM_INTERVAL).await;
                let Some(dialer) = this.upgrade() else { return };
                // Looking costs nothing of the kernel; the budget of this task must not hide what is there.
                tokio::task::unconstrained(async {
                    let (limit, trust) = (dialer.settings.idle_timeout, dialer.store.trust().generation);
                    dialer.leases.borrow_mut().trim(limit, trust);
                    dialer.shards.trim(limit, trust);
                })
                .await;
            }
        });
    }
}

fn open_error(address: SocketAddr, reason: HandshakeFailure) -> OpenError {
    match reason {
        HandshakeFailure::Timeout => OpenError::Timeout { address },
        HandshakeFailure::WrongIdentity { expected, found } => {
            OpenError::WrongIdentity { address, expected, reason: format!("found {found}") }
        }
        reason => OpenError::Handshake { address, reason },
    }
}
