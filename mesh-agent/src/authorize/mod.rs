//! Stage 3: may it go on? Makes the [`Permit`] that later stages ask for, and checks open connections again.

mod cut;

pub use cut::{Cut, CutHandle, CutReason};
