//! Questions to the administration socket: no text panics, and what was escaped is read as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh_agent::control::fuzzing::query(text));
