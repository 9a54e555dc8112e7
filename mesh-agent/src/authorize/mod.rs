//! Stage 3: may it go on? Makes the permits that later stages ask for, and checks open connections again.

mod cut;
mod live;
mod permit;

pub use cut::{Cut, CutHandle, CutReason};
pub use live::{Live, Registered};
pub use permit::{Denial, Permit, SourcePermit, UnknownSource, endpoint, inbound, source};
