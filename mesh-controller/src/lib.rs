//! The controller: Kubernetes objects in, snapshots and certificates for the agents out.
//!
//! [`watch`] -> [`index`] -> [`compile`] -> [`serve`], with [`ca`] beside it.

pub mod ca;
pub mod compile;
pub mod index;
pub mod metrics;
pub mod object;
pub mod run;
pub mod serve;
pub mod watch;
