//! What the control plane gives to the agent that takes this one's place: everything that it has from the controller, so
//! that the successor serves at once and also while the controller is away.

use std::net::IpAddr;
use std::time::SystemTime;

use mesh_api::decode::{self, DecodeError};
use mesh_api::encode;
use mesh_api::proto::ControllerMessage;

use super::Control;
use super::certs::{CertificateError, PortableSvid};

/// The state of one agent's control plane. It holds private keys.
#[derive(Debug)]
pub struct ControlState {
    /// Snapshot and trust bundle as one message.
    pub snapshot: ControllerMessage,
    /// The SVIDs that are valid now.
    pub svids: Vec<PortableSvid>,
    /// Addresses that the agent asked the controller for.
    pub addresses: Vec<IpAddr>,
}

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The snapshot is none.
    #[error("the snapshot: {0}")]
    Snapshot(#[from] DecodeError),
    /// It does not stand alone, or is another mesh's.
    #[error("the snapshot is a part, or of the trust domain {0:?}")]
    NotOurs(String),
    /// No roots.
    #[error("the trust bundle: {0}")]
    TrustBundle(String),
    /// A certificate.
    #[error("the certificate of {identity}: {source}")]
    Svid {
        /// Whose.
        identity: String,
        /// What is wrong.
        source: CertificateError,
    },
}

impl Control {
    /// What a successor needs; `None` while this agent has nothing from the controller itself.
    pub fn export(&self) -> Option<ControlState> {
        let held = self.published.load();
        if held.version == 0 {
            return None;
        }
        let mut snapshot = encode::delta(&held.whole(), &held.trust_domain);
        snapshot.trust_bundle = self.bundle.held();
        let svids = self.keyring.export(&self.svids, SystemTime::now());
        Some(ControlState { snapshot, svids, addresses: self.lookup.held() })
    }

    /// Begins with what another agent of this node held. Call it before [`Control::run`].
    pub fn import(&self, state: ControlState) -> Result<(), ImportError> {
        let now = SystemTime::now();
        for svid in state.svids {
            let identity = svid.identity.clone();
            self.keyring
                .import(&self.svids, svid, now)
                .map_err(|source| ImportError::Svid { identity, source })?;
        }
        let mut message = state.snapshot;
        let before = self.published.load();
        if !message.reset || message.trust_domain != before.trust_domain.as_str() {
            return Err(ImportError::NotOurs(message.trust_domain));
        }
        let bundle = message.trust_bundle.take();
        let delta = decode::delta(message)?;
        if let Some(bundle) = bundle {
            self.bundle.adopt(bundle, &self.svids).map_err(ImportError::TrustBundle)?;
        }
        self.lookup.resume(state.addresses);
        self.published.publish(before.apply(delta));
        self.status.applied();
        Ok(())
    }
}
