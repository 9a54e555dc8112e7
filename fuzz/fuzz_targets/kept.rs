//! The snapshot on disk: no content panics, and what is taken is written so that it is taken again.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::control::fuzzing::kept(bytes));
