//! Certificates of peers and of the controller: none panics, and no name is read that is not in it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::control::fuzzing::certificate(bytes));
