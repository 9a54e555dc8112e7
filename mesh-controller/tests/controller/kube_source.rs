//! The `kube` source against a server that answers what a script says: relists, forgotten places, malformed objects.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use mesh_controller::api::{Access, Client};
use mesh_controller::watch::{Batch, Change, KubeSource, Source};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

/// What the server answers to the lists and watches of one resource, in order; then lists are empty and watches silent.
#[derive(Default)]
struct Script {
    lists: Vec<(u16, Value)>,
    watches: Vec<Vec<Value>>,
}

#[derive(Clone, Default)]
struct Server {
    scripts: Arc<Mutex<HashMap<&'static str, Script>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn script(&self, resource: &'static str, lists: Vec<(u16, Value)>, watches: Vec<Vec<Value>>) {
        self.scripts.lock().unwrap().insert(resource, Script { lists, watches });
    }

    /// How often this was listed.
    fn lists(&self, what: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| asked.contains(what) && !asked.contains("watch=true")).count()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let target = request.uri().to_string();
        assert_eq!(request.headers()["authorization"], "Bearer secret");
        self.asked.lock().unwrap().push(target.clone());
        let resource = request.uri().path().rsplit('/').next().unwrap().to_owned();
        let watch = target.contains("watch=true");
        let next = {
            let mut scripts = self.scripts.lock().unwrap();
            let script = scripts.get_mut(resource.as_str());
            match (script, watch) {
                (Some(script), true) if !script.watches.is_empty() => {
                    let lines = script.watches.remove(0);
                    Some((200, lines.iter().map(|line| format!("{line}\n")).collect::<String>()))
                }
                (Some(script), false) if !script.lists.is_empty() => {
                    let (code, body) = script.lists.remove(0);
                    Some((code, body.to_string()))
                }
                (_, false) => Some((200, list("1", vec![]).to_string())),
                (_, true) => None,
            }
        };
        let Some((code, body)) = next else { return std::future::pending().await };
        Ok(Response::builder().status(code).body(Full::new(Bytes::from(body))).unwrap())
    }

    /// Starts; the client speaks to it, the folder holds its authority.
    async fn start(&self) -> (Client, tempfile::TempDir) {
        let root_key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = root.self_signed(&root_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(root, root_key);
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, acceptor) = (self.clone(), TlsAcceptor::from(Arc::new(config)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (server, acceptor) = (server.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let stream = acceptor.accept(stream).await.unwrap();
                    let service = service_fn(move |request| server.clone().answer(request));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    // A watch that nobody wants any more.
                    connection.await.ok();
                });
            }
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "current-context: a\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{address}', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{token: secret}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        (Client::new(Access::kubeconfig(&path).unwrap()), folder)
    }
}

fn list(version: &str, items: Vec<Value>) -> Value {
    json!({ "metadata": { "resourceVersion": version }, "items": items })
}

fn namespace(name: &str, version: &str) -> Value {
    json!({ "metadata": { "name": name, "uid": name, "resourceVersion": version, "managedFields": [{}] } })
}

fn told(batch: &Batch) -> Vec<String> {
    let mut all: Vec<String> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Apply(key, ..) => format!("+{key}"),
            Change::Undecodable(key, _) => format!("?{key}"),
            Change::Delete(key) => format!("-{key}"),
        })
        .collect();
    all.sort();
    all
}

/// The next batch that changes something.
async fn next(batches: &mut mpsc::Receiver<Batch>) -> Batch {
    let wait = async {
        loop {
            let batch = batches.recv().await.expect("the source ended");
            if !batch.changes.is_empty() {
                return batch;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("no batch")
}

#[tokio::test]
async fn a_forgotten_place_is_listed_again_and_what_is_gone_since_is_deleted() {
    let server = Server::default();
    let gone = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
    server.script(
        "namespaces",
        vec![
            (200, list("10", vec![namespace("a", "9"), namespace("b", "9")])),
            (200, list("20", vec![namespace("b", "9"), namespace("c", "11")])),
        ],
        vec![vec![
            json!({ "type": "ADDED", "object": namespace("c", "11") }),
            json!({ "type": "ERROR", "object": gone }),
        ]],
    );
    let (client, _folder) = server.start().await;
    let (sink, mut batches) = mpsc::channel(4);
    KubeSource::new(client).start(sink).unwrap();
    let mut all = Vec::new();
    while !all.contains(&"-Namespace a".to_owned()) {
        all.extend(told(&next(&mut batches).await));
    }
    for wanted in ["+Namespace a", "+Namespace b", "+Namespace c"] {
        assert!(all.contains(&wanted.to_owned()), "{wanted}: {all:?}");
    }
    assert!(!all.iter().any(|t| t == "-Namespace b" || t == "-Namespace c"), "{all:?}");
    assert_eq!(server.lists("/namespaces?"), 2);
}

#[tokio::test]
async fn nothing_is_told_before_every_kind_was_listed_and_an_outage_deletes_nothing() {
    let server = Server::default();
    let refusal =
        json!({ "kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd is away" });
    server.script("nodes", vec![(500, refusal.clone()), (500, refusal.clone())], vec![]);
    let gone = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
    let mut lists = vec![(200, list("10", vec![namespace("a", "9")]))];
    lists.extend(vec![(500, refusal); 100]);
    server.script("namespaces", lists, vec![vec![json!({ "type": "ERROR", "object": gone })]]);
    let (client, _folder) = server.start().await;
    let (sink, mut batches) = mpsc::channel(4);
    KubeSource::new(client).start(sink).unwrap();
    let mut batch = next(&mut batches).await;
    assert_eq!(told(&batch), ["+Namespace a"]);
    assert_eq!(server.lists("/nodes?"), 3, "the first batch came before the nodes were listed");
    let outage = async {
        loop {
            let away = |s: &mesh_controller::object::Status| {
                s.reason == "Unreachable" && s.message.contains("etcd is away")
            };
            if batch.statuses.iter().any(away) {
                return;
            }
            batch = batches.recv().await.expect("the source ended");
            assert!(batch.changes.is_empty(), "{:?}", told(&batch));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), outage).await.expect("nobody said that the server is away");
    let more = tokio::time::timeout(Duration::from_secs(2), next(&mut batches)).await;
    assert!(more.is_err(), "{:?}", more.map(|batch| told(&batch)));
}

#[tokio::test]
async fn a_malformed_object_leaves_the_others_alone_and_its_last_good_version_in_force() {
    let server = Server::default();
    let object = |name: &str, version: &str, spec: Value| {
        json!({
            "apiVersion": "ferromesh.io/v1alpha1", "kind": "MeshConfig",
            "metadata": { "namespace": "shop", "name": name, "uid": name, "resourceVersion": version }, "spec": spec,
        })
    };
    let good = json!({ "mtls": { "mode": "STRICT" } });
    let bad = json!({ "agentLostAfter": "0s" });
    server.script(
        "meshconfigs",
        vec![(200, list("5", vec![object("good", "3", good), object("bad", "4", bad.clone())]))],
        vec![vec![json!({ "type": "MODIFIED", "object": object("good", "6", bad) })]],
    );
    let (client, _folder) = server.start().await;
    let (sink, mut batches) = mpsc::channel(4);
    KubeSource::new(client).start(sink).unwrap();
    let mut batch = next(&mut batches).await;
    assert_eq!(told(&batch), ["+MeshConfig shop/good", "?MeshConfig shop/bad"]);
    while batch.statuses.len() < 2 {
        batch = batches.recv().await.unwrap();
        assert!(batch.changes.is_empty(), "{:?}", told(&batch));
    }
    let messages: Vec<_> = batch.statuses.iter().map(|s| s.message.as_str()).collect();
    assert!(messages.iter().any(|m| m.contains("shop/bad") && m.contains("not in force")), "{messages:?}");
    assert!(messages.iter().any(|m| m.contains("shop/good") && m.contains("last good")), "{messages:?}");
}

#[tokio::test]
async fn routes_are_read_where_they_are_installed_and_missed_quietly_where_not() {
    let server = Server::default();
    let absent =
        json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "no such resource" });
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "namespace": "shop", "name": "r", "uid": "r", "resourceVersion": "3" }, "spec": {},
    });
    server.script("httproutes", vec![(200, list("5", vec![route]))], vec![]);
    server.script("tcproutes", vec![(404, absent)], vec![]);
    let (client, _folder) = server.start().await;
    let (sink, mut batches) = mpsc::channel(4);
    KubeSource::new(client).start(sink).unwrap();
    let batch = next(&mut batches).await;
    assert_eq!(told(&batch), ["+HTTPRoute shop/r"]);
    assert!(batch.statuses.is_empty(), "{:?}", batch.statuses);
}

fn unit(name: &str) -> Value {
    json!({
        "apiVersion": "ferromesh.io/v1alpha1", "kind": "WorkloadEntry",
        "metadata": { "namespace": "shop", "name": name, "uid": name, "resourceVersion": "3" },
        "spec": { "node": "host-1", "unit": "db.service" },
    })
}

#[tokio::test]
async fn a_missing_definition_of_entries_holds_nothing_up_and_one_that_is_there_is_waited_for() {
    let absent =
        json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "no such resource" });
    let refusal =
        json!({ "kind": "Status", "code": 500, "reason": "InternalError", "message": "etcd is away" });
    for (answers, want) in [
        (vec![(404, absent)], &["+Namespace a"][..]),
        (
            vec![(500, refusal), (200, list("5", vec![unit("db")]))],
            &["+Namespace a", "+WorkloadEntry shop/db"],
        ),
    ] {
        let server = Server::default();
        server.script("namespaces", vec![(200, list("10", vec![namespace("a", "9")]))], vec![]);
        server.script("workloadentries", answers, vec![]);
        let (client, _folder) = server.start().await;
        let (sink, mut batches) = mpsc::channel(4);
        KubeSource::new(client).start(sink).unwrap();
        let batch = next(&mut batches).await;
        assert_eq!(told(&batch), want);
        assert!(batch.statuses.is_empty(), "{:?}", batch.statuses);
    }
}

#[tokio::test]
async fn a_definition_that_is_not_there_any_more_takes_no_entry_out_of_the_mesh_and_is_told() {
    let server = Server::default();
    let gone = json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
    let absent =
        json!({ "kind": "Status", "code": 404, "reason": "NotFound", "message": "no such resource" });
    server.script(
        "workloadentries",
        vec![(200, list("5", vec![unit("db")])), (404, absent)],
        vec![vec![json!({ "type": "ERROR", "object": gone })]],
    );
    let (client, _folder) = server.start().await;
    let (sink, mut batches) = mpsc::channel(4);
    KubeSource::new(client).start(sink).unwrap();
    let mut batch = next(&mut batches).await;
    assert_eq!(told(&batch), ["+WorkloadEntry shop/db"]);
    let missed = async {
        while !batch.statuses.iter().any(|s| s.message.contains("CustomResourceDefinition is not there")) {
            batch = batches.recv().await.expect("the source ended");
            assert!(batch.changes.is_empty(), "{:?}", told(&batch));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), missed).await.expect("nobody said that it is missing");
}
