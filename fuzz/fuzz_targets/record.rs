//! The kernel's records of held connections: none panics, and what answers them is a whole packet.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::intercept::fuzzing::record(bytes));
