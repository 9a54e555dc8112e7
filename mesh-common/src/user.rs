//! The promise to aya that the map keys and values are plain bytes; for the agent only (feature `user`).

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait; this is the one file that implements it")]

use crate::{ClientKey, Endpoint, Held, OrigKey, Pod, PortKey, Socket, SteeredKey, UdpKey};

// SAFETY: `repr(C)`, only integers, no implicit padding (the size tests), any bit pattern is a value.
unsafe impl aya::Pod for Pod {}
// SAFETY: as above.
unsafe impl aya::Pod for OrigKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ClientKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Endpoint {}
// SAFETY: as above.
unsafe impl aya::Pod for PortKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Socket {}
// SAFETY: as above.
unsafe impl aya::Pod for UdpKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Held {}
// SAFETY: as above.
unsafe impl aya::Pod for SteeredKey {}
