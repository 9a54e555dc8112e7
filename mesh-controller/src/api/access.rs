//! Where the API server is and how one proves oneself to it: a kubeconfig or what a pod is given in, [`Access`] out.
//!
//! Tokens and token files, client certificates and several authorities are understood; programs that make tokens
//! (`exec`) are not, and are refused by name. Server certificates are always verified.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

/// Where a pod finds its service account.
const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why there is no access.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something is missing, malformed or not supported.
    #[error("{0}")]
    Content(String),
    /// rustls refused the certificates.
    #[error("TLS towards the API server: {0}")]
    Tls(#[from] rustls::Error),
}

/// How one proves oneself, besides a client certificate.
#[derive(Clone)]
pub(super) enum Bearer {
    None,
    Token(String),
    /// Read again for each request: such tokens are replaced every hour.
    File(PathBuf),
}

/// Where the API server is, and how one proves oneself to it.
#[derive(Clone)]
pub struct Access {
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins every path; empty for most servers.
    pub(super) prefix: String,
    pub(super) name: ServerName<'static>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) bearer: Bearer,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Access {
    /// From `kubeconfig` if it is given, then from the environment's `KUBECONFIG`, then as a pod of the cluster.
    pub fn find(kubeconfig: Option<&Path>) -> Result<Self, AccessError> {
        let named = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        match kubeconfig.map(Path::to_path_buf).or(named) {
            Some(path) => Self::kubeconfig(&path),
            None => Self::in_cluster(),
        }
    }

    /// What a pod is given by its kubelet.
    fn in_cluster() -> Result<Self, AccessError> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| {
                AccessError::Content(format!(
                    "{name} is not set, so this is no pod: name the API server with --kubeconfig"
                ))
            })
        };
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let folder = Path::new(IN_CLUSTER);
        let authority = read(&folder.join("ca.crt"))?;
        Self::new(&format!("https://{host}:{port}"), &authority, None, Bearer::File(folder.join("token")))
    }

    /// The current context of a kubeconfig.
    pub fn kubeconfig(path: &Path) -> Result<Self, AccessError> {
        let content = |message: String| AccessError::Content(format!("{}: {message}", path.display()));
        let text = String::from_utf8(read(path)?).map_err(|e| content(e.to_string()))?;
        let config: Kubeconfig =
            serde_saphyr::from_str(&text).map_err(|e| content(e.without_snippet().to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let context = find(&config.contexts, &config.current_context).ok_or_else(|| {
            content(format!("the current context {:?} is not there", config.current_context))
        })?;
        let cluster = find(&config.clusters, &context.context.cluster)
            .ok_or_else(|| content(format!("the cluster {:?} is not there", context.context.cluster)))?;
        let user = find(&config.users, &context.context.user)
            .ok_or_else(|| content(format!("the user {:?} is not there", context.context.user)))?;
        let (cluster, user) = (&cluster.cluster, &user.user);
        if user.exec.is_some() || user.auth_provider.is_some() {
            let message = "programs that make tokens (exec, auth-provider) are not supported: use a token, a tokenFile or a client certificate";
            return Err(content(message.into()));
        }
        if cluster.insecure {
            return Err(content("insecure-skip-tls-verify is not supported: name the authority".into()));
        }
        let authority = data(folder, &cluster.authority_data, &cluster.authority)?
            .ok_or_else(|| content("the cluster names no certificate authority".into()))?;
        let certificate = data(folder, &user.certificate_data, &user.certificate)?;
        let key = data(folder, &user.key_data, &user.key)?;
        let bearer = match (&user.token, &user.token_file) {
            (Some(token), _) if !token.is_empty() => Bearer::Token(token.clone()),
            (_, Some(file)) => Bearer::File(folder.join(file)),
            _ => Bearer::None,
        };
        Self::new(&cluster.server, &authority, certificate.zip(key), bearer)
            .map_err(|e| content(e.to_string()))
    }

    fn new(
        server: &str,
        authority: &[u8],
        client: Option<(Vec<u8>, Vec<u8>)>,
        bearer: Bearer,
    ) -> Result<Self, AccessError> {
        let wrong = |message: &str| AccessError::Content(format!("the server {server:?} {message}"));
        let uri: Uri = server.parse().map_err(|_| wrong("is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("must be https"));
        }
        let host = uri.host().ok_or_else(|| wrong("names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong("has no valid host name"))?;
        Ok(Self {
            port: uri.port_u16().unwrap_or(443),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            name,
            host,
            tls: Arc::new(tls(authority, client)?),
            bearer,
        })
    }
}

fn tls(authority: &[u8], client: Option<(Vec<u8>, Vec<u8>)>) -> Result<ClientConfig, AccessError> {
    let malformed = |e: rustls::pki_types::pem::Error| AccessError::Content(e.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate.map_err(malformed)?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((chain, key)) = client else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().map_err(malformed)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(malformed)?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

/// The content of a field that holds it as base64, or else of the file that another names.
fn data(
    folder: &Path,
    inline: &Option<String>,
    file: &Option<PathBuf>,
) -> Result<Option<Vec<u8>>, AccessError> {
    match (inline, file) {
        (Some(text), _) => {
            let text = format!("-----BEGIN DATA-----\n{}\n-----END DATA-----\n", text.trim());
            let block = pem::parse(text).map_err(|e| AccessError::Content(format!("base64: {e}")))?;
            Ok(Some(block.into_contents()))
        }
        (None, Some(path)) => read(&folder.join(path)).map(Some),
        (None, None) => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, AccessError> {
    std::fs::read(path).map_err(|source| AccessError::File { path: path.into(), source })
}

trait Named {
    fn name(&self) -> &str;
}

fn find<'a, T: Named>(all: &'a [T], name: &str) -> Option<&'a T> {
    all.iter().find(|one| one.name() == name)
}

macro_rules! named {
    ($($type:ident { $field:ident: $content:ident })*) => { $(
        #[derive(Deserialize)]
        struct $type {
            name: String,
            $field: $content,
        }

        impl Named for $type {
            fn name(&self) -> &str {
                &self.name
            }
        }
    )* };
}

named! {
    NamedContext { context: Context }
    NamedCluster { cluster: Cluster }
    NamedUser { user: User }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(rename = "certificate-authority")]
    authority: Option<PathBuf>,
    #[serde(rename = "certificate-authority-data")]
    authority_data: Option<String>,
    #[serde(default, rename = "insecure-skip-tls-verify")]
    insecure: bool,
}

#[derive(Deserialize)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    #[serde(rename = "client-certificate")]
    certificate: Option<PathBuf>,
    #[serde(rename = "client-certificate-data")]
    certificate_data: Option<String>,
    #[serde(rename = "client-key")]
    key: Option<PathBuf>,
    #[serde(rename = "client-key-data")]
    key_data: Option<String>,
    exec: Option<serde_json::Value>,
    #[serde(rename = "auth-provider")]
    auth_provider: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kubeconfig with this user, written beside its authority.
    fn access(user: &str, cluster: &str) -> Result<Access, AccessError> {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), root.pem()).unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        Access::kubeconfig(&path)
    }

    #[test]
    fn a_kubeconfig_says_where_the_server_is_and_how_to_prove_oneself() {
        let cluster = "{server: 'https://[fd00::1]:6443/k8s/', certificate-authority: ca.pem}";
        let access = access("{token: secret}", cluster).unwrap();
        assert_eq!((access.host.as_str(), access.port, access.prefix.as_str()), ("fd00::1", 6443, "/k8s"));
        assert!(matches!(&access.bearer, Bearer::Token(token) if token == "secret"));
        assert!(!format!("{access:?}").contains("secret"));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cluster = "{server: 'https://c', certificate-authority: ca.pem}";
        let cases = [
            ("{exec: {command: aws}}", cluster, "exec"),
            ("{}", "{server: 'http://c', certificate-authority: ca.pem}", "https"),
            ("{}", "{server: 'https://c'}", "authority"),
            ("{}", "{server: 'https://c', insecure-skip-tls-verify: true}", "insecure"),
        ];
        for (user, cluster, want) in cases {
            let error = access(user, cluster).unwrap_err().to_string();
            assert!(error.contains(want), "{user} {cluster}: {error}");
        }
    }
}
