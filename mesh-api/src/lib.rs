//! The wire protocol between controller and agents, and (feature `crd`) the custom resources that users write.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated code; the .proto file has the comments"
)]
pub mod proto {
    tonic::include_proto!("ferromesh.v1");
}
