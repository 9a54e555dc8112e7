//! The controller from outside: real files, real TLS on loopback, no root.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod certificates;
mod common;
mod compile;
mod csr;
mod dir_source;
mod discovery;
mod entries;
mod kube_source;
mod rotation;
mod views;
