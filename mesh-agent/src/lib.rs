//! The node agent: one folder a stage, and stages only look back. `ARCHITECTURE.md` has the table.
//!
//! `outbound.rs` and `inbound.rs` read top to bottom like that table.

pub mod authorize;
pub mod control;
pub mod identify;
pub mod intercept;
pub mod observe;
pub mod sys;
pub mod transport;
