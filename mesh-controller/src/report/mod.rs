//! What became of the objects, told to the API server: compiled statuses in; conditions and events on the objects out. And
//! which nodes are ready for pods, where a taint says that they were not; and that a plugged-in intermediate is refused.
//!
//! One replica writes, the one that holds the [`Lease`]; the others only compile and serve.

mod authority;
mod conditions;
mod event;
mod lease;
mod taints;
mod turn;
mod writer;

pub use authority::AuthorityEvents;
pub use conditions::{Report, Verdict, reports};
pub use lease::{Leading, Lease};
pub use taints::Taints;
pub use writer::Writer;
