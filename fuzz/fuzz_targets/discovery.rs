//! The discovery decoder: no message of the controller panics the agent; a delta is taken whole or refused whole.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::{decode, proto};
use mesh_core::identity::TrustDomain;
use mesh_core::snapshot::Snapshot;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = proto::ControllerMessage::decode(bytes) else { return };
    if let Ok(delta) = decode::delta(message) {
        let empty = Snapshot::empty(TrustDomain::new("fuzz.test").expect("a valid name"));
        let version = delta.version;
        assert_eq!(empty.apply(delta).version, version);
    }
});
