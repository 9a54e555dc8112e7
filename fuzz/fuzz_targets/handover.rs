//! What the other agent of a handover sends: nothing panics, and nothing but an agent's is taken.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::handover::fuzzing::handover(bytes));
