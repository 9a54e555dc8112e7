//! The trust bundle as the controller sent it last: DER in, roots for the data plane out. The DER is kept, because the
//! snapshot on disk carries it too, and so that the same bundle sent again is no change.

use std::sync::Arc;

use mesh_api::proto::TrustBundle;
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

use crate::identify::SvidStore;

/// The bundle in use. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bundle(Arc<Mutex<Vec<Vec<u8>>>>);

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
        let mut held = self.0.lock();
        if bundle.roots_der != *held {
            svids.set_roots(Arc::new(roots));
            *held = bundle.roots_der;
        }
        Ok(())
    }

    /// The bundle in use; `None` before the first.
    pub(super) fn held(&self) -> Option<TrustBundle> {
        let roots_der = self.0.lock().clone();
        (!roots_der.is_empty()).then_some(TrustBundle { roots_der })
    }
}
