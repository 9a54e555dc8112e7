//! Requests for certificates, as agents send them to the controller: none panics, and the key that is taken is one in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_controller::ca::request_key;
use rcgen::PublicKeyData;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(key) = request_key(bytes) {
        let key = key.der_bytes();
        assert!(bytes.windows(key.len()).any(|part| part == key));
    }
});
