//! One pod on a test node: its cgroups and its network, the command of its container, and what its kubelet says of it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::cgroups::Driver;
use super::container::{self, Volumes};
use crate::world::{Frame, Node, Place, Pod, PodSpec, Process, binary, cgroup, netns};

/// How often a container is probed, and how long a probe may take.
const PERIOD: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(1);
const EXEC: Duration = Duration::from_secs(5);

/// A pod that was started.
pub(super) struct Running {
    /// `namespaces/NAMESPACE/pods/NAME`.
    pub(super) path: String,
    pub(super) uid: String,
    /// Number of its address on this node; nothing on the node's own network.
    pub(super) address: Option<u32>,
    /// The pod, for scenarios to run programs in; nothing on the node's own network.
    pub(super) pod: Option<Pod>,
    /// Where the container's standard output is.
    pub(super) output: PathBuf,
    object: Value,
    cgroup: PathBuf,
    /// What its container runs.
    command: Vec<String>,
    /// The folder of its logs: before there is a sandbox, whoever looks on the node knows the pod's namespace by its name.
    logs: PathBuf,
    place: Place,
    node: Node,
    pause: Process,
    main: Option<Process>,
    starts: u32,
    ready: bool,
    probed: Option<Instant>,
    /// How it ended: its exit code.
    over: Option<i32>,
    ending: Option<Ending>,
}

/// A pod that is being deleted.
struct Ending {
    /// When the container gets SIGTERM: after its preStop hook.
    stop_at: Instant,
    kill_at: Instant,
    asked: bool,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn seconds(value: &Value, pointer: &str) -> Duration {
    Duration::from_secs(value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0))
}

/// The container's command and arguments; `peer` is the helper program. Without one it is there and does nothing.
fn command(node: &Node, object: &Value) -> Vec<String> {
    let container = &object["spec"]["containers"][0];
    let words = |of: &str| container[of].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut command: Vec<String> = words("command").chain(words("args")).map(str::to_owned).collect();
    for variable in container["env"].as_array().into_iter().flatten() {
        if text(variable, "/valueFrom/fieldRef/fieldPath") == "spec.nodeName" {
            let name = format!("$({})", text(variable, "/name"));
            command.iter_mut().for_each(|word| *word = word.replace(&name, &node.name));
        }
    }
    match (command.first().map(String::as_str), binary("peer")) {
        (None, _) => vec!["sleep".into(), "infinity".into()],
        (Some("peer"), Ok(peer)) => {
            command[0] = peer.to_string_lossy().into_owned();
            command
        }
        _ => command,
    }
}

impl Running {
    /// Makes the pod's sandbox and starts its container. `number` names it on the node, `address` is its address.
    pub(super) fn start(
        node: &Node,
        driver: Driver,
        (object, volumes): (&Value, &Volumes),
        number: u32,
        address: u32,
    ) -> Result<Self> {
        let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        let uid = text(object, "/metadata/uid").to_owned();
        let logs = node.host.join("var/log/pods").join(format!("{namespace}_{name}_{uid}"));
        let on_node = object.pointer("/spec/hostNetwork") == Some(&json!(true));
        fs::create_dir_all(&logs)?;
        let pod_cgroup = driver.pod(&node.cgroup, text(object, "/status/qosClass"), &uid);
        // A runtime's ids: 64 hex digits.
        let container = |of: u32| driver.container(&pod_cgroup, &format!("{of:08x}{number:056x}"));
        let (sandbox, main) = (container(0), container(1));
        fs::create_dir_all(&sandbox).with_context(|| format!("make {}", sandbox.display()))?;
        fs::create_dir_all(&main)?;
        let mut spec = PodSpec::new(namespace, name, node.number);
        spec.service_account = text(object, "/spec/serviceAccountName").to_owned();
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
        spec.labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        let (pod, mut place) = if on_node {
            (None, node.place())
        } else {
            let frame =
                Frame { uid: uid.clone(), cgroup: main.clone(), link: format!("k{number}"), number: address };
            let pod = Pod::make(node, &spec, frame)?;
            let place = pod.place().clone();
            (Some(pod), place)
        };
        place.cgroup = sandbox;
        let pause = format!("{namespace}-{name}-pause");
        let pause = Process::start(&place, &pause, "sleep".as_ref(), &["infinity"])?;
        place.cgroup = main;
        let (mut command, ours) = (command(node, object), container::is_ours(object));
        if let Some(program) = command.first_mut().filter(|_| ours) {
            *program = container::script(node, object, volumes, program)?.to_string_lossy().into_owned();
        }
        let mut running = Self {
            path: format!("namespaces/{namespace}/pods/{name}"),
            uid,
            address: pod.is_some().then_some(address),
            pod,
            output: PathBuf::new(),
            object: object.clone(),
            cgroup: pod_cgroup,
            command,
            logs,
            place,
            node: node.clone(),
            pause,
            main: None,
            starts: 0,
            ready: false,
            probed: None,
            over: None,
            ending: None,
        };
        running.start_container()?;
        Ok(running)
    }

    fn start_container(&mut self) -> Result<()> {
        let Some((program, arguments)) = self.command.split_first() else { bail!("no command") };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.starts += 1;
        let name = format!("{}-{}", self.path.replace('/', "-"), self.starts);
        let main = Process::start(&self.place, &name, program.as_ref(), &arguments)?;
        self.output = main.output().to_owned();
        self.main = Some(main);
        Ok(())
    }

    /// Says where it is, to those who want to run a command in it or read its output.
    pub(super) fn say(&self, folder: &Path) -> Result<()> {
        let told = json!({
            "netns": self.place.netns, "cgroup": self.place.cgroup, "output": self.output,
            "pid": self.main.as_ref().map_or(0, Process::id),
        });
        let file = folder.join(self.said());
        let fresh = file.with_extension("new");
        fs::write(&fresh, told.to_string())?;
        Ok(fs::rename(fresh, file)?)
    }

    /// Takes that back.
    pub(super) fn unsay(&self, folder: &Path) -> Result<()> {
        match fs::remove_file(folder.join(self.said())) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn said(&self) -> String {
        let (namespace, name) =
            (text(&self.object, "/metadata/namespace"), text(&self.object, "/metadata/name"));
        format!("{namespace}_{name}.json")
    }

    /// It is to be deleted, as `object` says.
    pub(super) fn end(&mut self, object: &Value) {
        if self.ending.is_some() {
            return;
        }
        let grace = seconds(object, "/metadata/deletionGracePeriodSeconds");
        let hook = seconds(object, "/spec/containers/0/lifecycle/preStop/sleep/seconds");
        let now = Instant::now();
        self.ending = Some(Ending { stop_at: now + hook.min(grace), kill_at: now + grace, asked: false });
    }

    /// Looks after the container. True when the pod's status is another now.
    pub(super) fn tend(&mut self) -> Result<bool> {
        if self.over.is_some() {
            return Ok(false);
        }
        if let Some(ending) = &mut self.ending
            && !ending.asked
            && Instant::now() >= ending.stop_at
            && let Some(main) = &self.main
        {
            ending.asked = true;
            main.signal(Signal::TERM)?;
        }
        if !self.main.as_mut().is_some_and(Process::running) {
            return self.container_ended();
        }
        let ready = self.probe();
        Ok(std::mem::replace(&mut self.ready, ready) != ready)
    }

    fn container_ended(&mut self) -> Result<bool> {
        let Some(main) = self.main.take() else { return Ok(false) };
        let ended = main.wait(Duration::ZERO)?;
        let policy = text(&self.object, "/spec/restartPolicy");
        let again = policy == "Always" || (policy == "OnFailure" && !ended.ok());
        self.ready = false;
        if again && self.ending.is_none() {
            self.start_container()?;
        } else {
            self.over = Some(ended.status.code().unwrap_or(137));
        }
        Ok(true)
    }

    /// The readiness probe, from the node or in the container; without one a container that runs is ready.
    fn probe(&mut self) -> bool {
        let Some(probe) = self.object.pointer("/spec/containers/0/readinessProbe") else { return true };
        let port = probe.pointer("/tcpSocket/port").and_then(Value::as_u64);
        let port = port.and_then(|port| u16::try_from(port).ok());
        let exec = probe.pointer("/exec/command").and_then(Value::as_array);
        let exec: Vec<String> =
            exec.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if self.probed.is_some_and(|last| last.elapsed() < PERIOD) {
            return self.ready;
        }
        self.probed = Some(Instant::now());
        if !exec.is_empty() {
            return self.run(&exec).unwrap_or(false);
        }
        if probe["httpGet"].is_object() {
            return self.get(&probe["httpGet"]).unwrap_or(false);
        }
        let (Some(port), Some(pod)) = (port, &self.pod) else { return true };
        let to = pod.at(port);
        self.ask(&to, &["--half-close"]).is_ok_and(|told| told["connect"] == "ok")
    }

    /// Asks for a path over HTTP; the port may be named.
    fn get(&self, probe: &Value) -> Result<bool> {
        let ports = self.object.pointer("/spec/containers/0/ports").and_then(Value::as_array);
        let named = |name: &Value| {
            ports.into_iter().flatten().find(|port| port["name"] == *name)?["containerPort"].as_u64()
        };
        let port = probe["port"].as_u64().or_else(|| named(&probe["port"])).context("a port")?;
        let pod = self.pod.as_ref().context("a pod with a network of its own")?;
        let request = format!("GET {} HTTP/1.0\r\n\r\n", text(probe, "/path"));
        let told = self.ask(&pod.at(u16::try_from(port)?), &["--send", &request])?;
        Ok(told["received"].as_str().and_then(|answer| answer.split(' ').nth(1)) == Some("200"))
    }

    /// Connects, as the kubelet's own process, and says what came of it.
    fn ask(&self, to: &str, more: &[&str]) -> Result<Value> {
        let limit = PROBE.as_millis().to_string();
        let arguments = [&["talk", "--to", to, "--timeout-ms", &limit], more].concat();
        let name = format!("{}-probe", self.path.replace('/', "-"));
        let asked = Process::start(&self.node.kubelet(), &name, &binary("peer")?, &arguments)?.wait(EXEC)?;
        // All of them write to the same file.
        Ok(serde_json::from_str(asked.stdout.lines().last().unwrap_or_default())?)
    }

    /// Runs a command in the container, with what it has mounted.
    fn run(&self, command: &[String]) -> Result<bool> {
        let Some(main) = &self.main else { return Ok(false) };
        let of = main.id().to_string();
        let mut arguments = vec!["--target", &of, "--mount", "--root", "--"];
        arguments.extend(command.iter().map(String::as_str));
        let name = format!("{}-exec", self.path.replace('/', "-"));
        Ok(Process::start(&self.place, &name, "nsenter".as_ref(), &arguments)?.wait(EXEC)?.ok())
    }

    /// True when a pod that is being deleted has no process of its own left.
    pub(super) fn may_go(&mut self) -> bool {
        let late = self.ending.as_ref().map(|ending| Instant::now() >= ending.kill_at);
        let running = self.main.as_mut().is_some_and(Process::running);
        late.is_some_and(|late| late || !running)
    }

    /// True when nothing of it will run again, so that its sandbox can go.
    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Takes the sandbox away: processes, cgroups, network.
    pub(super) fn take_down(&mut self) -> Result<()> {
        self.pause.kill();
        if let Some(main) = &mut self.main {
            main.kill();
        }
        cgroup::destroy(&self.cgroup)?;
        match fs::remove_dir(&self.logs) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        match self.pod.take() {
            Some(pod) => netns::delete(pod.netns()),
            None => Ok(()),
        }
    }

    /// The end of its output, where the container failed and wants it to be its message; as long as a kubelet has it.
    fn last_words(&self, code: i32) -> Option<String> {
        let policy = text(&self.object, "/spec/containers/0/terminationMessagePolicy");
        let text = fs::read(&self.output).ok().filter(|_| policy == "FallbackToLogsOnError" && code != 0)?;
        let from = text.len().saturating_sub(2048);
        Some(String::from_utf8_lossy(&text[from..]).into_owned())
    }

    /// The status, as its kubelet reports it.
    pub(super) fn status(&self) -> Value {
        let phase = match self.over {
            None => "Running",
            Some(0) => "Succeeded",
            Some(_) => "Failed",
        };
        let state = match self.over {
            None => json!({ "running": {} }),
            Some(code) => json!({ "terminated": { "exitCode": code, "message": self.last_words(code) } }),
        };
        let condition =
            |kind: &str, holds: bool| json!({ "type": kind, "status": if holds { "True" } else { "False" } });
        let mut status = json!({
            "phase": phase,
            "hostIP": self.node.v4.to_string(),
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", self.ready), condition("Ready", self.ready),
            ],
            "containerStatuses": [{
                "name": text(&self.object, "/spec/containers/0/name"), "image": "unmodified", "imageID": "",
                "ready": self.ready, "restartCount": self.starts.saturating_sub(1), "state": state,
            }],
        });
        let addresses = match (&self.pod, self.over) {
            (Some(pod), _) => vec![pod.v4.to_string(), pod.v6.to_string()],
            (None, None) => vec![self.node.v4.to_string()],
            // As before: a pod that is over keeps what it was told.
            (None, Some(_)) => Vec::new(),
        };
        if let Some(first) = addresses.first() {
            status["podIP"] = json!(first);
            status["podIPs"] = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        }
        json!({ "status": status })
    }
}
