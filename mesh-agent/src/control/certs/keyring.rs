//! The private keys of the SVIDs in use, as bytes. Kept for one purpose: a successor of this agent gets them with the
//! certificates, over the handover socket, so that it can serve at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use mesh_core::identity::SpiffeId;
use parking_lot::Mutex;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::issued::{CertificateError, accept};
use crate::identify::{Svid, SvidStore};

/// Keys by identity, each with the generation of its SVID. The text form shows none of them.
#[derive(Debug, Default)]
pub(in crate::control) struct Keyring(Mutex<HashMap<SpiffeId, (u64, Arc<PrivatePkcs8KeyDer<'static>>)>>);

/// An SVID with its private key, on its way to another agent of this node.
#[derive(Debug)]
pub struct PortableSvid {
    /// Whose it is.
    pub identity: String,
    /// The private key, PKCS #8.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
}

impl Keyring {
    /// Keeps the key of an SVID that is about to be put into the store.
    pub(super) fn keep(&self, identity: SpiffeId, generation: u64, key: Arc<PrivatePkcs8KeyDer<'static>>) {
        self.0.lock().insert(identity, (generation, key));
    }

    /// Forgets the key of an identity that left the node.
    pub(super) fn forget(&self, identity: &SpiffeId) {
        self.0.lock().remove(identity);
    }

    /// Every SVID of `store` that is valid at `now`, with its key.
    pub(in crate::control) fn export(&self, store: &SvidStore, now: SystemTime) -> Vec<PortableSvid> {
        let keys = self.0.lock();
        let held = store.all();
        let portable = held.values().filter(|svid| svid.not_after > now).filter_map(|svid| {
            let (_, key) =
                keys.get(&svid.identity).filter(|(generation, _)| *generation == svid.generation)?;
            Some(PortableSvid {
                identity: svid.identity.to_string(),
                key: key.clone_key(),
                chain: svid.key.cert.iter().map(|der| der.to_vec()).collect(),
            })
        });
        portable.collect()
    }

    /// Checks an SVID of another agent as one that the controller has just signed, and puts it into `store`.
    pub(in crate::control) fn import(
        &self,
        store: &SvidStore,
        portable: PortableSvid,
        now: SystemTime,
    ) -> Result<(), CertificateError> {
        let name = portable.identity;
        let identity = SpiffeId::parse(&name)
            .map_err(|_| CertificateError::WrongName { expected: name.clone(), found: Vec::new() })?;
        let issued = accept(portable.key.secret_pkcs8_der().to_vec(), portable.chain, &name, now)?;
        // The signer of this process counts on from here.
        let generation = store.all().len() as u64 + 1;
        self.keep(identity.clone(), generation, issued.pkcs8);
        let (not_before, not_after) = (issued.not_before, issued.not_after);
        store.put(Arc::new(Svid { identity, key: issued.key, not_before, not_after, generation }));
        Ok(())
    }
}
