//! The API server: how it is found and spoken to. Requests are made by kube's core, which does no I/O; this adds a TLS
//! connection for each (ADR 0011).

mod access;
mod client;
mod resources;

pub use access::{Access, AccessError};
pub use client::{ApiError, Client, Lines};
pub use resources::{optional, required, resource, routes};

/// Who owns what the controller writes.
pub(crate) const MANAGER: &str = "ferromesh-controller";
