//! What agents and operators talk to: discovery, certificates and administration, over gRPC and TLS on one port.

mod admin;
mod agents;
mod caller;
mod certificates;
mod discovery;
mod limit;
mod listen;
mod reviews;
mod tls;
mod view;

pub use admin::{AuthorityHandle, RotateRequest};
pub use agents::Agents;
pub use caller::{Caller, Callers};
pub use listen::{Server, ServerParts};
pub use reviews::{AUDIENCE, ReviewError, Reviewer};
pub use tls::{Credentials, TlsError, TlsState};
pub use view::View;

use std::sync::Arc;

use tokio::sync::watch;

use crate::compile::Compiled;

/// The last compiled state; `None` until the source has delivered.
pub type CompiledFeed = watch::Receiver<Option<Arc<Compiled>>>;
