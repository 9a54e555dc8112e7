//! The trust bundle as the controller sent it last: DER in, roots for the data plane out. The DER is kept, because the
//! snapshot on disk carries it too, and so that the same bundle sent again is no change. It also says under which
//! certificate the authority signs now: what was signed under another one is due for renewal.

use std::sync::Arc;

use mesh_api::proto::TrustBundle;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::identify::{SvidStore, is_signed_under};

/// The bundle in use. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bundle(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<TrustBundle>,
    /// What the authority signs with.
    issuer: watch::Sender<Option<CertificateDer<'static>>>,
}

impl Bundle {
    /// Trusts the roots of `bundle` from now on, or says why none of it is taken.
    pub(super) fn adopt(&self, bundle: TrustBundle, svids: &SvidStore) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for der in &bundle.roots_der {
            roots
                .add(CertificateDer::from(der.clone()))
                .map_err(|e| format!("a root is not a certificate: {e}"))?;
        }
        if roots.is_empty() {
            return Err("it holds no root".to_owned());
        }
        let issuer = (!bundle.issuer_der.is_empty()).then(|| bundle.issuer_der.clone().into());
        {
            let mut held = self.0.held.lock();
            if bundle.roots_der != held.roots_der {
                svids.set_roots(Arc::new(roots));
            }
            *held = bundle;
        }
        self.0.issuer.send_if_modified(|held| {
            let changed = *held != issuer;
            *held = issuer;
            changed
        });
        Ok(())
    }

    /// The bundle in use; `None` before the first.
    pub(super) fn held(&self) -> Option<TrustBundle> {
        let held = self.0.held.lock().clone();
        (!held.roots_der.is_empty()).then_some(held)
    }

    /// What the controller calls the bundle in use.
    pub(super) fn id(&self) -> Vec<u8> {
        self.0.held.lock().id.clone()
    }

    /// Changes whenever the authority begins to sign under another certificate.
    pub(super) fn issuers(&self) -> watch::Receiver<Option<CertificateDer<'static>>> {
        self.0.issuer.subscribe()
    }

    /// Whether the authority would sign `chain` (leaf first) under the same certificate again. Before it has said what it
    /// signs under, everything is.
    pub(super) fn is_current(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some(issuer) = self.0.issuer.borrow().clone() else { return true };
        let is_root = self.0.held.lock().roots_der.iter().any(|root| **root == *issuer);
        // A renewed intermediate may have the key and name of the one before: it must be the very certificate.
        chain.iter().skip(1).any(|held| *held == issuer) || (is_root && is_signed_under(chain, &issuer))
    }
}
