//! The SPIFFE ID parser: no text panics, and what was accepted is written as it was read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_core::identity::SpiffeId;

fuzz_target!(|text: &str| {
    if let Ok(identity) = SpiffeId::parse(text) {
        assert_eq!(identity.to_string(), text);
    }
});
