//! Where objects come from. A [`Source`] delivers batches of changes; what one batch holds became true at once.

mod dir;
mod kube;
mod last_good;
mod manifest;
mod unknown;

pub use dir::DirSource;
pub use kube::KubeSource;
pub use manifest::{Format, Outcome, parse};

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::object::{Object, ObjectRef, Origin, Status};

/// One change of one object.
#[derive(Clone, Debug)]
pub enum Change {
    /// The object is new or differs.
    Apply(ObjectRef, Arc<Object>, Origin),
    /// The object is there but cannot be decoded, and no good version of it was ever seen.
    Undecodable(ObjectRef, Origin),
    /// The object is gone.
    Delete(ObjectRef),
}

/// Changes that became true at once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The changes.
    pub changes: Vec<Change>,
    /// Everything that the source has to say about what it read; replaces what it said before.
    pub statuses: Vec<Status>,
}

/// A source of objects.
pub trait Source {
    /// Whether nobody behind this source makes EndpointSlices, so that a Service with a selector and without a slice
    /// takes its endpoints from the pods that the selector matches.
    fn derives_endpoints(&self) -> bool;

    /// Starts to deliver. The first batch is the whole state; it ends when the receiver is dropped.
    fn start(self, sink: mpsc::Sender<Batch>) -> std::io::Result<()>;
}
