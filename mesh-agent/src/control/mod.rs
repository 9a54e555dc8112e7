//! The control plane's side of the agent: discovery, certificates, administration. On a runtime of its own.

mod lookup;

pub use lookup::{Lookup, LookupError};
