//! Names of pods' cgroups and of pins, lines of `/proc`: no text panics, and no name stands for another.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| mesh_agent::intercept::fuzzing::names(text));
