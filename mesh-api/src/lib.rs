//! The wire protocol between controller and agents, and (feature `crd`) the custom resources that users write.
//!
//! * [`encode`]: core values to messages, for the controller.
//! * [`decode`]: messages to checked core values, for the agent.
//! * [`addr`]: the wire form of addresses, in one place for both.

pub mod addr;
#[cfg(feature = "crd")]
pub mod crd;
pub mod decode;
pub mod encode;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::nursery,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto file has the comments"
)]
pub mod proto {
    tonic::include_proto!("ferromesh.v1");
}
