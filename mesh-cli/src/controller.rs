//! The controller's `Admin` service over TLS with the operator's certificate.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mesh_api::proto::admin_client::AdminClient;
use mesh_api::proto::{
    AuthorityStatus, CreateJoinTokenRequest, RotateRootRequest, StatusRequest, StatusResponse,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::ControllerArgs;

/// The DNS name in the controller's server certificate.
const CONTROLLER_NAME: &str = "ferromesh-controller.ferromesh-system.svc";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// A mesh with very many objects has a long status.
const MOST_BYTES: usize = 256 << 20;

/// The state of the whole mesh.
pub(crate) async fn status(args: &ControllerArgs) -> Result<StatusResponse> {
    let mut client = AdminClient::new(connect(args).await?).max_decoding_message_size(MOST_BYTES);
    client.status(StatusRequest {}).await.map(tonic::Response::into_inner).map_err(refused)
}

/// A join token for one node.
pub(crate) async fn create_token(args: &ControllerArgs, node: String, ttl_seconds: u32) -> Result<String> {
    let mut client = AdminClient::new(connect(args).await?);
    let answer = client.create_join_token(CreateJoinTokenRequest { node, ttl_seconds }).await;
    answer.map(|answer| answer.into_inner().token).map_err(refused)
}

/// Asks for another root.
pub(crate) async fn rotate_root(args: &ControllerArgs) -> Result<AuthorityStatus> {
    let mut client = AdminClient::new(connect(args).await?);
    client.rotate_root(RotateRootRequest {}).await.map(tonic::Response::into_inner).map_err(refused)
}

async fn connect(args: &ControllerArgs) -> Result<Channel> {
    let url = args
        .controller
        .as_deref()
        .context("give the controller's address: --controller https://HOST:15010")?;
    let ca = read("--ca", args.ca.as_deref())?;
    let (cert, key) = (read("--cert", args.cert.as_deref())?, read("--key", args.key.as_deref())?);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(cert, key))
        .domain_name(CONTROLLER_NAME);
    let endpoint = Endpoint::from_shared(url.to_owned())
        .ok()
        .filter(|endpoint| endpoint.uri().scheme_str() == Some("https"))
        .with_context(|| format!("--controller {url} is not https://HOST:PORT"))?
        .tls_config(tls)
        .context("--ca, --cert and --key have to be PEM files")?
        .connect_timeout(CONNECT_LIMIT)
        .timeout(CALL_LIMIT);
    let connected = endpoint.connect().await.map_err(|error| anyhow!(causes(&error)));
    connected.with_context(|| format!("connecting to {url}"))
}

fn read(option: &str, path: Option<&Path>) -> Result<Vec<u8>> {
    let path =
        path.with_context(|| format!("the controller asks for the operator's certificate: give {option}"))?;
    std::fs::read(path).with_context(|| format!("{option} {}", path.display()))
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("the controller refused: {:?}: {}", status.code(), status.message())
}

/// An error with its causes; tonic says only "transport error" by itself.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
