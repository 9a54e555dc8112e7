//! The controller: Kubernetes objects in, snapshots and certificates for the agents out.
//!
//! [`watch`] -> [`index`] -> [`compile`] -> [`serve`], with [`ca`] and [`api`] (the API server) beside it; [`report`] tells
//! the API server what became of its objects, [`rotation`] looks after the authority. [`leave`] is the way out of the mesh.

pub mod api;
pub mod ca;
pub mod compile;
pub mod index;
pub mod leave;
pub mod metrics;
pub mod object;
pub mod report;
pub mod rotation;
pub mod run;
pub mod serve;
pub mod watch;
