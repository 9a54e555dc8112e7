//! What the kernel answers when it is asked for sockets: no answer panics, none is read beyond its end.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| mesh_agent::intercept::fuzzing::diag(bytes));
