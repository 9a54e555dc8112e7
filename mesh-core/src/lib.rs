//! The decisions of the mesh, as pure functions over immutable data.
//!
//! Nothing here does I/O, reads a clock or draws a random number: callers pass `now` and the random source in, so that
//! the agent, the controller, `meshctl explain`, the fuzzers and the benches all run the same code.
//!
//! * [`identity`]: trust domains and SPIFFE IDs.
//! * [`model`]: workloads, services, policies, as the controller compiles them.
//! * [`snapshot`]: one immutable view of the mesh; deltas make the next one.
//! * [`authorize`]: may this peer open a connection to that workload?
//! * [`udp`]: which datagrams may a workload not send?
//! * [`route`]: what does a dialled address mean, and which endpoints can serve it?
//! * [`balance`]: which of those endpoints is taken.

pub mod authorize;
pub mod balance;
pub mod identity;
pub mod model;
pub mod route;
pub mod snapshot;
pub mod udp;
