//! Which endpoint of several is taken.

mod p2c;

pub use p2c::pick_two_choices;
