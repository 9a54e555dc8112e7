//! The discovery decoder: no message of the controller panics the agent; a delta is taken whole or refused
//! whole, and what was taken can be written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::{addr, decode, encode, proto};
use mesh_core::identity::TrustDomain;
use mesh_core::snapshot::Snapshot;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(proto::AgentMessage { kind: Some(proto::agent_message::Kind::Hello(hello)) }) =
        proto::AgentMessage::decode(bytes)
    {
        for address in hello.addresses.iter().filter_map(|bytes| addr::from_bytes(bytes)) {
            assert_eq!(addr::from_bytes(&addr::to_bytes(address)), Some(address));
        }
    }
    let Ok(message) = proto::ControllerMessage::decode(bytes) else { return };
    if let Ok(delta) = decode::delta(message) {
        let domain = TrustDomain::new("fuzz.test").expect("a valid name");
        let version = delta.version;
        let next = Snapshot::empty(domain.clone()).apply(delta);
        assert_eq!(next.version, version);
        // This is how it is kept on disk and handed over.
        let whole = next.whole();
        assert_eq!(decode::delta(encode::delta(&whole, &domain)), Ok(whole));
    }
});
