//! A peer that has proven its identity, and whether that still holds. A validated chain comes in; each OPEN and CONNECT
//! asks [`ProvenPeer::check`], an idle or open connection waits for [`ProvenPeer::ended`].

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::identity::SpiffeId;
use rustls::pki_types::CertificateDer;

use super::verify::{Role, verify_again};
use super::{HandshakeFailure, Svid, SvidStore, peer_certificate};

/// Timers are bounded; nothing here lives that long.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The other end of a mutual TLS connection.
#[derive(Debug)]
pub struct ProvenPeer {
    /// Who it is.
    pub identity: SpiffeId,
    /// Where its socket is.
    pub address: SocketAddr,
    /// The earlier end of the two certificates.
    not_after: SystemTime,
    /// Half of what was left of them when they were shown.
    half: SystemTime,
    role: Role,
    chain: Vec<CertificateDer<'static>>,
    /// The trust bundle under which the chain was last verified.
    generation: Cell<u64>,
    store: Arc<SvidStore>,
}

impl ProvenPeer {
    /// The peer that showed `chain` (leaf first) and was verified under the bundle of `generation`; `own` is what we
    /// showed it.
    pub fn new(
        (role, address): (Role, SocketAddr),
        chain: &[CertificateDer<'static>],
        own: &Svid,
        generation: u64,
        store: Arc<SvidStore>,
    ) -> Result<Self, HandshakeFailure> {
        let leaf = chain.first().ok_or(HandshakeFailure::NoCertificate)?;
        let shown = peer_certificate(leaf, own.identity.trust_domain())?;
        let (not_after, now) = (shown.not_after.min(own.not_after), SystemTime::now());
        Ok(Self {
            identity: shown.identity,
            address,
            not_after,
            half: now + not_after.duration_since(now).unwrap_or_default() / 2,
            role,
            chain: chain.to_vec(),
            generation: Cell::new(generation),
            store,
        })
    }

    /// Whether the certificates have not expired and, when the trust bundle changed since, the path is valid under the
    /// new one too.
    pub fn check(&self) -> Result<(), HandshakeFailure> {
        if SystemTime::now() >= self.not_after {
            return Err(HandshakeFailure::Expired);
        }
        let trust = self.store.trust();
        if trust.generation == self.generation.get() {
            return Ok(());
        }
        verify_again(self.role, Arc::clone(&trust.roots), &self.chain)?;
        self.generation.set(trust.generation);
        Ok(())
    }

    /// Whether another connection may begin here: the tunnel ends with its certificates, and the connection with it, although
    /// both sides may hold newer ones by then. In the first half of what was left there is enough left for it.
    pub fn may_carry_more(&self) -> bool {
        SystemTime::now() < self.half
    }

    /// Waits until [`ProvenPeer::check`] fails: a certificate has ended, or its root is not trusted any more.
    pub async fn ended(&self) -> HandshakeFailure {
        loop {
            let left = self.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = tokio::time::sleep(left.min(LONGEST)) => {}
                () = self.store.trust_changed(self.generation.get()) => {}
            }
            if let Err(reason) = self.check() {
                return reason;
            }
        }
    }
}
