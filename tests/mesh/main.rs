//! Scenarios: real programs, real kernel, two nodes of namespaces and cgroups. Test names read as sentences.
//!
//! Each test makes a world of its own (one at a time: a lock sees to that) and removes it.

mod backstop;
mod container;
mod corners;
mod devices;
mod endings;
mod golden;
mod ground;
mod honest;
mod identity;
mod interception;
mod languages;
mod leases;
mod lifecycle;
mod membership;
mod neighbours;
mod older;
mod policy;
mod proxy;
mod replacement;
mod robustness;
mod rogue;
mod rotation;
mod semantics;
mod services;
mod shop;
mod stranger;
mod transport;
mod udp;
mod unit_life;
mod units;
