//! A real control plane in the world's wire namespace, and pods of the world that are Pod objects in it.
//!
//! In: a world, and the programs that `cargo xtask test` builds from their Go modules (`tests/kube/go.mod`). Out:
//! [`Cluster`]: etcd and kube-apiserver, spoken to by kubectl as a user does. They live in the world's cgroup, so that
//! whatever ends the world, or cleans up after a killed one, ends them.

mod certificates;
pub mod kubelet;
mod objects;
mod proxy;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::poll;
use crate::world::{CONTROLLER_V4, Finished, Node, Place, Process, World, binary};
use kubelet::{Driver, Kubelet};
use proxy::Proxy;

/// How long etcd and the API server may take until they are ready, on a busy machine.
const READY: Duration = Duration::from_secs(90);
/// How long one kubectl, helm or meshctl may take, with what it waits for.
const COMMAND: Duration = Duration::from_secs(150);
/// The ports of the kubelets' proxies come after this one.
const PROXY: u16 = 8000;
/// The port of the API server, on every address of the wire namespace.
pub(crate) const PORT: u16 = 6443;

/// Who a token of the API server stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything.
    Admin,
    /// The controller's service account, with the rights that `deploy/` gives it.
    Controller,
    /// The kubelet of node 1, 2, ..
    Kubelet(u8),
}

impl User {
    /// All that a world of three nodes has.
    const ALL: [Self; 5] =
        [Self::Admin, Self::Controller, Self::Kubelet(1), Self::Kubelet(2), Self::Kubelet(3)];
}

/// A control plane.
pub struct Cluster {
    place: Place,
    files: PathBuf,
    etcd: Option<Process>,
    api: Option<Process>,
    controllers: Option<Process>,
    scheduler: Option<Process>,
    starts: u32,
}

/// A program of the control plane: in `target/kube`, beside the profile's folder.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = target()?.join("kube").join(name);
    ensure!(path.is_file(), "no {}: build it with `cargo run -p xtask -- kube`", path.display());
    Ok(path)
}

fn target() -> Result<PathBuf> {
    let peer = binary("peer")?;
    peer.parent().and_then(Path::parent).map(Path::to_path_buf).context("the target folder")
}

/// The folder `deploy` of the workspace.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

impl Cluster {
    /// Starts etcd and the API server on the world's wire, and installs the custom resources and the controller's rights.
    pub fn start(world: &World) -> Result<Self> {
        let cluster = Self::bare(world)?;
        cluster.install()?;
        Ok(cluster)
    }

    /// [`Cluster::start`], with nothing of the mesh.
    pub fn bare(world: &World) -> Result<Self> {
        let files = world.files.join("kube");
        fs::create_dir_all(&files)?;
        certificates::write(&files)?;
        let tokens: String = User::ALL.iter().map(|user| user.line()).collect();
        fs::write(files.join("tokens.csv"), tokens)?;
        for user in User::ALL {
            fs::write(files.join(format!("{}.kubeconfig", user.name())), kubeconfig(&files, user)?)?;
        }
        let mut cluster = Self {
            place: world.wire(),
            files,
            etcd: None,
            api: None,
            controllers: None,
            scheduler: None,
            starts: 0,
        };
        cluster.start_etcd()?;
        cluster.start_api()?;
        Ok(cluster)
    }

    fn start_etcd(&mut self) -> Result<()> {
        let data = self.files.join("etcd").to_string_lossy().into_owned();
        let arguments = [
            "--data-dir",
            &data,
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ];
        self.etcd = Some(Process::start(&self.place, "etcd", &program("etcd")?, &arguments)?);
        Ok(())
    }

    /// Starts the API server (again) and waits until it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        self.starts += 1;
        let file = |name: &str| self.files.join(name).to_string_lossy().into_owned();
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={CONTROLLER_V4}"),
            format!("--tls-cert-file={}", file("api.pem")),
            format!("--tls-private-key-file={}", file("api.key")),
            format!("--cert-dir={}", file("api")),
            format!("--service-account-key-file={}", file("accounts.pub")),
            format!("--service-account-signing-key-file={}", file("accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--service-cluster-ip-range=10.99.0.0/16,fd99::/108".to_owned(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--kubelet-certificate-authority={}", file("ca.pem")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = format!("kube-apiserver-{}", self.starts);
        let mut api = Process::start(&self.place, &name, &program("kube-apiserver")?, &arguments)?;
        poll::until("the API server to be ready", READY, || {
            if !api.running() {
                bail!(poll::Hopeless("it has ended"));
            }
            self.kubectl(&["get", "--raw", "/readyz", "--request-timeout=5s"])?.success().map(drop)
        })
        .with_context(|| api.tail())?;
        self.api = Some(api);
        Ok(())
    }

    /// Kills the API server; etcd keeps what it knew.
    pub fn kill_api(&mut self) {
        self.api = None;
    }

    /// Has etcd forget its history: nobody can watch from a place before now.
    pub fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: &Value| -> Result<Value> {
            let (url, body) = (format!("http://127.0.0.1:2379/v3/kv/{path}"), body.to_string());
            let arguments = ["--silent", "--show-error", "--fail", "--data", &body, &url];
            self.run("curl".as_ref(), &arguments, &[path])?.json()
        };
        let held = ask("range", &json!({ "key": "AA==", "limit": 1 }))?;
        ask("compaction", &json!({ "revision": held["header"]["revision"], "physical": true })).map(drop)
    }

    /// Starts the controllers that make Pods of Deployments and Jobs, and slices of Services.
    pub fn start_controllers(&mut self) -> Result<()> {
        let config = self.kubeconfig(User::Admin);
        let arguments = [
            format!("--kubeconfig={}", config.display()),
            "--leader-elect=false".to_owned(),
            "--secure-port=0".to_owned(),
            "--controllers=deployment-controller,replicaset-controller,daemonset-controller,job-controller,\
             endpointslice-controller,serviceaccount-controller,garbage-collector-controller,namespace-controller,\
             root-ca-certificate-publisher-controller"
                .to_owned(),
            format!("--root-ca-file={}", self.files.join("ca.pem").display()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let program = program("kube-controller-manager")?;
        self.controllers =
            Some(Process::start(&self.place, "kube-controller-manager", &program, &arguments)?);
        Ok(())
    }

    /// Starts what binds Pods that name no node, as a DaemonSet's do not.
    pub fn start_scheduler(&mut self) -> Result<()> {
        let config = format!("--kubeconfig={}", self.kubeconfig(User::Admin).display());
        let arguments = [&config, "--leader-elect=false", "--secure-port=0"];
        let program = program("kube-scheduler")?;
        self.scheduler = Some(Process::start(&self.place, "kube-scheduler", &program, &arguments)?);
        Ok(())
    }

    /// Starts the kubelet of a node; its driver's root is where the node's pods are from now on.
    pub fn start_kubelet(&self, world: &mut World, number: u8, driver: Driver) -> Result<Kubelet> {
        let root = driver.root(&world.node(number).cgroup);
        world.set_pods_root(number, root);
        let proxy = self.proxy(User::Kubelet(number), PROXY + u16::from(number))?;
        let server = self.start_kubelet_server(world.node(number))?;
        Kubelet::start(world.node(number), driver, proxy, server)
    }

    /// The API server in plain HTTP, with the rights of `user`.
    fn proxy(&self, user: User, port: u16) -> Result<Proxy> {
        let config = self.kubeconfig(user);
        let arguments = [format!("--kubeconfig={}", config.display()), format!("--port={port}")];
        let [config, port_argument] = arguments.each_ref().map(String::as_str);
        let name = format!("proxy-{}", user.name());
        let arguments = ["proxy", config, port_argument, "--address=127.0.0.1"];
        let process = Process::start(&self.place, &name, &program("kubectl")?, &arguments)?;
        Ok(Proxy { process, port, netns: self.place.netns.clone() })
    }

    /// Makes many objects of one kind, as fast as the API server takes them.
    pub fn make_many(&self, path: &str, objects: &[Value]) -> Result<()> {
        let proxy = self.proxy(User::Admin, PROXY)?;
        proxy.ready()?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                proxy.ask("POST", path, Some(object))?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("it panicked"))?)
        })
    }

    /// What the API server asks of a node's kubelet: `pods/exec` and logs.
    fn start_kubelet_server(&self, node: &Node) -> Result<Process> {
        let folder = kubelet::said(node);
        fs::create_dir_all(&folder)?;
        let file = |name: &str| self.files.join(name).to_string_lossy().into_owned();
        let arguments = [
            format!("--listen={}:{}", node.v4, kubelet::PORT),
            format!("--certificate={}", file("api.pem")),
            format!("--key={}", file("api.key")),
            format!("--pods={}", folder.display()),
            format!("--run={}", binary("peer")?.display()),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = format!("kubelet-server-{}", node.name);
        Process::start(&node.place(), &name, &program("kubelet-server")?, &arguments)
    }

    fn install(&self) -> Result<()> {
        for file in ["00-crds.yaml", "01-namespace.yaml", "02-controller-rbac.yaml"] {
            self.apply_path(&deploy().join("manifests").join(file))?;
        }
        let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
        self.kubectl(&established)?.success().map(drop)
    }

    /// A kubeconfig for `user`.
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.files.join(format!("{}.kubeconfig", user.name()))
    }

    /// Runs kubectl as an administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<Finished> {
        self.kubectl_as(User::Admin, arguments)
    }

    /// Runs kubectl as `user`.
    pub fn kubectl_as(&self, user: User, arguments: &[&str]) -> Result<Finished> {
        let config = self.kubeconfig(user).to_string_lossy().into_owned();
        let cache = self.files.join("cache").to_string_lossy().into_owned();
        let mut all = vec!["--kubeconfig", &config, "--cache-dir", &cache];
        all.extend(arguments);
        self.run(&program("kubectl")?, &all, arguments)
    }

    /// Runs helm as an administrator.
    pub fn helm(&self, arguments: &[&str]) -> Result<Finished> {
        let helm = target()?.join("helm/helm");
        ensure!(helm.is_file(), "no {}: build it with `cargo run -p xtask -- gen`", helm.display());
        let config = self.kubeconfig(User::Admin).to_string_lossy().into_owned();
        let mut all = vec!["--kubeconfig", &config];
        all.extend(arguments);
        self.run(&helm, &all, arguments)
    }

    /// Runs meshctl as an administrator.
    pub fn meshctl(&self, arguments: &[&str]) -> Result<Finished> {
        let config = self.kubeconfig(User::Admin).to_string_lossy().into_owned();
        let kubectl = program("kubectl")?.to_string_lossy().into_owned();
        let access = ["--kubeconfig", &config, "--kubectl", &kubectl];
        self.run(&binary("meshctl")?, &[arguments, &access].concat(), arguments)
    }

    fn run(&self, program: &Path, all: &[&str], shown: &[&str]) -> Result<Finished> {
        let tool = program.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{tool}-{}", shown.first().copied().unwrap_or_default());
        // Each run has its own output.
        for end in ["out", "err"] {
            let file = self.place.logs.join(format!("{name}.{end}"));
            if file.exists() {
                fs::remove_file(file)?;
            }
        }
        Process::start(&self.place, &name, program, all)?.wait(COMMAND)
    }

    /// `kubectl get` of one object, as JSON.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Value> {
        self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"])?.json()
    }

    /// `kubectl apply` of an object, as the server took it.
    pub fn apply(&self, object: &Value) -> Result<Finished> {
        let file = self.files.join("object.json");
        fs::write(&file, object.to_string())?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()])
    }

    /// `kubectl apply` of a file or folder; it must be taken.
    pub fn apply_path(&self, path: &Path) -> Result<()> {
        let path = path.to_string_lossy();
        self.kubectl(&["apply", "-f", &path])?.success().map(drop).with_context(|| format!("apply {path}"))
    }

    /// The end of the API server's output, for a failure's message.
    pub fn logs(&self) -> String {
        self.api.as_ref().map_or_else(String::new, Process::tail)
    }
}

/// The controller's user name, as its service account's tokens give it.
const CONTROLLER_ACCOUNT: &str = "system:serviceaccount:ferromesh-system:ferromesh-controller";

impl User {
    fn name(self) -> String {
        match self {
            Self::Admin => "admin".to_owned(),
            Self::Controller => "controller".to_owned(),
            Self::Kubelet(node) => format!("kubelet-{node}"),
        }
    }

    /// The line of the server's file of tokens: token, user, uid, groups.
    fn line(self) -> String {
        let (user, groups) = match self {
            Self::Admin => ("admin".to_owned(), "system:masters"),
            Self::Controller => {
                (CONTROLLER_ACCOUNT.to_owned(), "\"system:serviceaccounts,system:authenticated\"")
            }
            Self::Kubelet(node) => (format!("system:node:n{node}"), "system:nodes"),
        };
        format!("{},{user},{},{groups}\n", self.token(), self.name())
    }

    fn token(self) -> String {
        format!("{}-of-a-test", self.name())
    }
}

fn kubeconfig(files: &Path, user: User) -> Result<String> {
    let authority = files.join("ca.pem");
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user.name() } }],
        "clusters": [{ "name": "test", "cluster": {
            "server": format!("https://{CONTROLLER_V4}:{PORT}"), "certificate-authority": authority,
        } }],
        "users": [{ "name": user.name(), "user": { "token": user.token() } }],
    });
    Ok(serde_json::to_string_pretty(&config)?)
}
