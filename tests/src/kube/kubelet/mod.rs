//! A small kubelet for a node of the world, so that the agent's own discovery runs unchanged.
//!
//! In: the Pods that the API server has for this node, by that node's own rights. Out: cgroups with the names that a
//! kubelet and its runtime give them, network namespaces, the containers' commands, and the Pods' status. It pulls no
//! image, and runs the first container of a Pod only; what the Pod mounts is seen by containers of this project's image alone. Addresses are used again at once: the lowest free one.

mod cgroups;
mod container;
mod pod;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

pub use cgroups::Driver;
use pod::Running;

use super::proxy::Proxy;
use crate::world::{Node, Pod, Process};

/// How long the watch is waited on before the pods are looked after.
const TURN: Duration = Duration::from_millis(50);
/// The number of a node's first address that a kubelet gives; lower ones are the world's.
const FIRST_ADDRESS: u32 = 512;

/// The port of a kubelet.
pub(super) const PORT: u16 = 10250;

/// Where a node's kubelet says what the program that serves `pods/exec` and logs has to know of each pod.
pub(super) fn said(node: &Node) -> PathBuf {
    node.host.join("kubelet")
}

/// A running kubelet. Dropping it leaves the pods.
pub struct Kubelet {
    stop: Arc<AtomicBool>,
    off: Arc<AtomicBool>,
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
    trouble: Arc<Mutex<String>>,
    thread: Option<JoinHandle<()>>,
}

/// What scenarios see of a pod.
#[derive(Clone)]
struct Shown {
    pod: Option<Pod>,
    output: PathBuf,
}

/// The kubelet's own thread.
struct Work {
    node: Node,
    driver: Driver,
    proxy: Proxy,
    /// Reads what is [`said`] of pods.
    _server: Process,
    pods: BTreeMap<String, Running>,
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
    stop: Arc<AtomicBool>,
}

impl Kubelet {
    /// Registers the node and follows its Pods.
    pub(super) fn start(node: &Node, driver: Driver, proxy: Proxy, server: Process) -> Result<Self> {
        fs::create_dir_all(driver.root(&node.cgroup))?;
        proxy.ready()?;
        let (stop, off) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (shown, trouble) = (Arc::default(), Arc::<Mutex<String>>::default());
        let mut work = Work {
            node: node.clone(),
            driver,
            proxy,
            _server: server,
            pods: BTreeMap::new(),
            shown: Arc::clone(&shown),
            stop: Arc::clone(&stop),
        };
        work.register().context("register the node")?;
        let (told, ends) = (Arc::clone(&trouble), Arc::clone(&off));
        let thread = std::thread::spawn(move || {
            while !work.stop.load(Ordering::Relaxed) {
                // The API server may be away; it lists again then.
                if let Err(error) = work.follow() {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
                    std::thread::sleep(4 * TURN);
                }
            }
            if ends.load(Ordering::Relaxed)
                && let Err(error) = work.power_off()
            {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = format!("{error:#}");
            }
        });
        Ok(Self { stop, off, shown, trouble, thread: Some(thread) })
    }

    /// The node's power fails: whatever runs in its pods ends at once, and the API server is not told.
    pub fn power_off(self) -> Result<()> {
        let trouble = Arc::clone(&self.trouble);
        trouble.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.off.store(true, Ordering::Relaxed);
        drop(self);
        let said = trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(said.is_empty(), "{said}");
        Ok(())
    }

    /// The running pod `namespace/name`, to run programs in.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let found = shown.get(&path(namespace, name)).and_then(|shown| shown.pod.clone());
        found.ok_or_else(|| anyhow!("the kubelet has no pod {namespace}/{name}: {}", self.trouble()))
    }

    /// What the container of `namespace/name` has written to standard output, over all its starts in this world.
    pub fn output(&self, namespace: &str, name: &str) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let file = shown.get(&path(namespace, name)).map(|shown| shown.output.clone());
        file.and_then(|file| fs::read(file).ok())
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// What went wrong last.
    pub fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the kubelet's thread panicked");
        }
    }
}

fn path(namespace: &str, name: &str) -> String {
    format!("namespaces/{namespace}/pods/{name}")
}

impl Work {
    fn register(&self) -> Result<()> {
        let name = &self.node.name;
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let room = json!({ "cpu": "64", "memory": "64Gi", "pods": "500" });
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux", "kubernetes.io/hostname": name } },
            "status": {
                "nodeInfo": { "operatingSystem": "linux", "kernelVersion": kernel },
                "capacity": room, "allocatable": room, "conditions": [{ "type": "Ready", "status": "True" }],
                "addresses": [{ "type": "InternalIP", "address": self.node.v4.to_string() }],
                "daemonEndpoints": { "kubeletEndpoint": { "Port": PORT } },
            },
        });
        match self.proxy.ask("POST", "/api/v1/nodes", Some(&node)) {
            Err(error) if !error.to_string().starts_with("409") => Err(error),
            _ => Ok(()),
        }
    }

    /// Lists, then watches until the watch ends or it is time to stop.
    fn follow(&mut self) -> Result<()> {
        let of_node = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node.name);
        let list = self.proxy.ask("GET", &of_node, None)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let live: BTreeSet<&str> = items.iter().filter_map(|pod| pod["metadata"]["uid"].as_str()).collect();
        let gone: Vec<String> =
            self.pods.values().filter(|p| !live.contains(&*p.uid)).map(|p| p.path.clone()).collect();
        for path in gone {
            self.remove(&path)?;
        }
        // What one pod lacks (a ConfigMap that another is to write) holds up no other.
        let synced: Vec<Result<()>> = items.iter().map(|pod| self.sync(pod)).collect();
        // What was not heard of while the server was away.
        let all: Vec<String> = self.pods.keys().cloned().collect();
        all.iter().try_for_each(|path| self.report(path))?;
        self.tend()?;
        synced.into_iter().collect::<Result<()>>()?;
        let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let mut lines = self.proxy.watch(&format!("{of_node}&watch=true&resourceVersion={version}"), TURN)?;
        while !self.stop.load(Ordering::Relaxed) {
            while let Some(event) = lines.next()? {
                match event["type"].as_str() {
                    Some("ADDED" | "MODIFIED") => self.sync(&event["object"])?,
                    Some("DELETED") => self.forget(&event["object"])?,
                    _ => return Err(anyhow!("the watch says {event}")),
                }
            }
            self.tend()?;
        }
        Ok(())
    }

    fn power_off(&mut self) -> Result<()> {
        for pod in self.pods.values_mut() {
            pod.take_down()?;
        }
        self.pods.clear();
        Ok(())
    }

    fn sync(&mut self, object: &Value) -> Result<()> {
        let meta = &object["metadata"];
        let word = |name: &str| meta[name].as_str().unwrap_or_default();
        let path = path(word("namespace"), word("name"));
        let over = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if self.pods.get(&path).is_some_and(|known| known.uid != word("uid")) {
            self.remove(&path)?;
        }
        match self.pods.get_mut(&path) {
            Some(known) if meta["deletionTimestamp"].is_string() => known.end(object),
            Some(_) => {}
            None if meta["deletionTimestamp"].is_string() => self.release(&path, word("uid"))?,
            None if over => {}
            None => {
                let used: BTreeSet<u32> = self.pods.values().filter_map(|pod| pod.address).collect();
                let address =
                    (FIRST_ADDRESS..).find(|number| !used.contains(number)).unwrap_or(FIRST_ADDRESS);
                // Links go some time after their namespaces, so a name is never used again.
                static STARTED: AtomicU32 = AtomicU32::new(1);
                let number = STARTED.fetch_add(1, Ordering::Relaxed) * 10 + u32::from(self.node.number);
                let volumes = container::volumes(&self.proxy, &self.node, object)?;
                let running = Running::start(&self.node, self.driver, (object, &volumes), number, address)?;
                self.pods.insert(path.clone(), running);
                self.report(&path)?;
            }
        }
        Ok(())
    }

    /// Looks after each pod, and takes down what has ended.
    fn tend(&mut self) -> Result<()> {
        let all: Vec<String> = self.pods.keys().cloned().collect();
        for path in all {
            let Some(pod) = self.pods.get_mut(&path) else { continue };
            let changed = pod.tend()?;
            if pod.may_go() {
                let uid = pod.uid.clone();
                self.remove(&path)?;
                self.release(&path, &uid)?;
                continue;
            }
            if changed {
                self.report(&path)?;
            }
        }
        Ok(())
    }

    /// Says how a pod fares; one that is over loses its sandbox then.
    fn report(&mut self, path: &str) -> Result<()> {
        let Some(pod) = self.pods.get_mut(path) else { return Ok(()) };
        let shown = Shown { pod: pod.pod.clone(), output: pod.output.clone() };
        pod.say(&said(&self.node))?;
        let over = pod.is_over();
        let asked = self.proxy.ask("PATCH", &format!("/api/v1/{path}/status"), Some(&pod.status()));
        match asked {
            // Deleted by force meanwhile: the watch will say so.
            Err(error) if !error.to_string().starts_with("404") => return Err(error),
            _ => {}
        }
        if over {
            pod.take_down()?;
        }
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), shown);
        Ok(())
    }

    /// Lets the API server remove a pod of which nothing runs any more.
    fn release(&self, path: &str, uid: &str) -> Result<()> {
        let now = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } });
        match self.proxy.ask("DELETE", &format!("/api/v1/{path}"), Some(&now)) {
            Err(error) if !["404", "409"].iter().any(|code| error.to_string().starts_with(code)) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    fn forget(&mut self, object: &Value) -> Result<()> {
        let word = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        let path = path(word("namespace"), word("name"));
        if self.pods.get(&path).is_some_and(|known| known.uid == word("uid")) {
            self.remove(&path)?;
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<()> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        match self.pods.remove(path) {
            Some(mut pod) => {
                pod.unsay(&said(&self.node))?;
                pod.take_down()
            }
            None => Ok(()),
        }
    }
}
