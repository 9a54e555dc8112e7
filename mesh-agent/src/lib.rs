//! The node agent: one folder a stage, and stages only look back. `ARCHITECTURE.md` has the table.
//!
//! `outbound.rs` and `inbound.rs` read top to bottom like that table.

pub mod accept;
pub mod authorize;
pub mod balance;
mod carrier;
pub mod config;
pub mod context;
pub mod control;
pub mod dataplane;
#[cfg(test)]
mod fixture;
pub mod handover;
pub mod identify;
mod inbound;
pub mod intercept;
pub mod observe;
mod outbound;
pub mod route;
pub mod run;
pub mod sys;
pub mod transport;
