//! The container of an image of this project, whose programs are the workspace's: a read-only root of its own, the volumes
//! where the Pod mounts them, and the capabilities that it adds. In: the Pod, and what the kubelet fetched for its volumes.
//! Out: a program that becomes the container's command.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kube::PORT;
use crate::kube::proxy::Proxy;
use crate::world::{CONTROLLER_V4, Node, binary, cgroup, netns};

/// What the image holds (`deploy/image/Containerfile`), all in one folder.
const PROGRAMS: [&str; 3] = ["mesh-agent", "mesh-controller", "meshctl"];
const CONTROLLER: &str = "ferromesh-controller.ferromesh-system.svc";
/// The container's `/etc/hosts`, in the pod's folder.
const HOSTS: &str = "hosts";
/// How long a controller beside the cluster may take to accept.
const BESIDE: Duration = Duration::from_secs(1);

/// Whether the Pod's first container is one of this project's image.
pub(super) fn is_ours(object: &Value) -> bool {
    let image = object.pointer("/spec/containers/0/image").and_then(Value::as_str).unwrap_or_default();
    image.contains("/ferromesh:")
}

/// A Pod's volumes by their names: the folders that are mounted.
pub(super) type Volumes = BTreeMap<String, PathBuf>;

/// Makes the volumes of a Pod: what stands for the node's own folders, and what the API server has for it.
pub(super) fn volumes(proxy: &Proxy, node: &Node, object: &Value) -> Result<Volumes> {
    let text = |value: &Value, pointer: &str| -> String {
        value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let (namespace, name) = (text(object, "/metadata/namespace"), text(object, "/metadata/name"));
    let (uid, account) = (text(object, "/metadata/uid"), text(object, "/spec/serviceAccountName"));
    let mut volumes = Volumes::new();
    let pod = node.host.join("pods").join(&uid);
    if is_ours(object) {
        fs::create_dir_all(&pod)?;
        fs::write(pod.join(HOSTS), format!("{} {CONTROLLER}\n", controller(proxy, node)?))?;
    }
    for volume in object.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten() {
        let called = text(volume, "/name");
        let mut folder = pod.join("volumes").join(&called);
        if volume["hostPath"].is_object() {
            folder = on_host(node, &text(volume, "/hostPath/path"));
        }
        fs::create_dir_all(&folder)?;
        if volume["emptyDir"].is_object() {
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        }
        if volume["configMap"].is_object() {
            write_map(proxy, &namespace, &text(volume, "/configMap/name"), &folder)?;
        }
        for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
            let Some(wanted) = source.get("serviceAccountToken") else { continue };
            // Without one it is for the API server.
            let audiences: Vec<&Value> = wanted.get("audience").into_iter().collect();
            let request = json!({
                "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
                "spec": {
                    "audiences": audiences, "expirationSeconds": wanted["expirationSeconds"],
                    "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid },
                },
            });
            let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
            let token = text(&proxy.ask("POST", &path, Some(&request))?, "/status/token");
            ensure!(!token.is_empty(), "no token for {name}");
            fs::write(folder.join(text(wanted, "/path")), token)?;
        }
        // The authority of the API server; nobody else looks at it.
        for source in volume.pointer("/projected/sources").and_then(Value::as_array).into_iter().flatten() {
            let Some(map) = source.get("configMap").filter(|_| is_ours(object)) else { continue };
            write_map(proxy, &namespace, &text(map, "/name"), &folder)?;
        }
        volumes.insert(called, folder);
    }
    Ok(volumes)
}

/// Writes what a ConfigMap holds, a file a key.
fn write_map(proxy: &Proxy, namespace: &str, name: &str, folder: &Path) -> Result<()> {
    let held = proxy.ask("GET", &format!("/api/v1/namespaces/{namespace}/configmaps/{name}"), None)?;
    for (key, value) in held["data"].as_object().into_iter().flatten() {
        fs::write(folder.join(key), value.as_str().unwrap_or_default())?;
    }
    Ok(())
}

/// What the cluster's DNS would answer: the controller's Service, unless the scenario runs the controller beside the cluster (or
/// will: then there is no Service).
fn controller(proxy: &Proxy, node: &Node) -> Result<String> {
    let beside = SocketAddr::from((CONTROLLER_V4, 15010));
    if netns::inside(&node.netns, || TcpStream::connect_timeout(&beside, BESIDE))?.is_ok() {
        return Ok(CONTROLLER_V4.to_string());
    }
    let path =
        "/api/v1/namespaces/ferromesh-system/services?fieldSelector=metadata.name=ferromesh-controller";
    let services = proxy.ask("GET", path, None)?;
    let address = services.pointer("/items/0/spec/clusterIP").and_then(Value::as_str);
    Ok(address.map_or_else(|| CONTROLLER_V4.to_string(), str::to_owned))
}

/// Where a path of the node is: the kernel's file systems are the machine's, of bpffs the node's own part.
fn on_host(node: &Node, path: &str) -> PathBuf {
    match path {
        "/sys/fs/bpf" => node.pins.clone(),
        "/sys/fs/cgroup" | "/run/netns" => path.into(),
        path => node.host.join(path.trim_start_matches('/')),
    }
}

/// Writes the program. `arguments` of the one that it returns are those of the container's command.
pub(super) fn script(node: &Node, object: &Value, volumes: &Volumes, command: &str) -> Result<PathBuf> {
    let container = object.pointer("/spec/containers/0").context("no container")?;
    let uid = object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default();
    let folder = node.host.join("pods").join(uid);
    let root = folder.join("rootfs");
    fs::create_dir_all(&root)?;
    let beside = Path::new(command).parent().context("a program")?;
    let programs = PROGRAMS.map(|name| {
        let (place, program) = (beside.join(name), binary(name)?);
        Ok::<_, anyhow::Error>(format!(
            "touch .{0}\nmount --bind {1} .{0}",
            place.display(),
            program.display()
        ))
    });
    let mut lines = vec![
        "set -e".to_owned(),
        format!("mount -t tmpfs tmpfs {0}\ncd {0}", root.display()),
        "mkdir -p etc proc sys dev usr/bin usr/sbin usr/lib usr/lib64 usr/local/bin".to_owned(),
        "cp -P /bin /sbin /lib /lib64 .".to_owned(),
        "for part in proc sys dev usr/bin usr/sbin usr/lib usr/lib64; do mount --rbind /$part $part; done"
            .to_owned(),
        format!("cp {} etc/hosts\necho hosts: files >etc/nsswitch.conf", folder.join(HOSTS).display()),
        format!("export KUBERNETES_SERVICE_HOST={CONTROLLER_V4} KUBERNETES_SERVICE_PORT={PORT}"),
    ];
    lines.extend(programs.into_iter().collect::<Result<Vec<_>>>()?);
    lines.push(format!("mount -o remount,bind,ro .{}", cgroup::mount_point()?.display()));
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let (name, at) =
            (mount["name"].as_str().unwrap_or_default(), mount["mountPath"].as_str().unwrap_or_default());
        let from = volumes.get(name).with_context(|| format!("no volume {name}"))?;
        // It is there already, with the rest of /sys.
        if from == Path::new(at) && at.starts_with("/sys/") {
            continue;
        }
        lines.push(format!("mkdir -p .{at}\nmount --rbind {} .{at}", from.display()));
        if mount["readOnly"] == true {
            lines.push(format!("mount -o remount,bind,ro .{at}"));
        }
    }
    let added = container.pointer("/securityContext/capabilities/add").and_then(Value::as_array);
    let added = added.into_iter().flatten().filter_map(Value::as_str);
    let bounding: String = added.map(|name| format!(",+{}", name.to_lowercase())).collect();
    let user = ["/spec/containers/0/securityContext/runAsUser", "/spec/securityContext/runAsUser"];
    let user = user.into_iter().find_map(|path| object.pointer(path)?.as_u64()).unwrap_or(0);
    lines.push("mount -o remount,ro .".to_owned());
    lines.push(format!(
        "exec chroot . setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --inh-caps=-all \
         --bounding-set=-all{bounding} -- {command} \"$@\""
    ));
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private -- sh -c '\n{}' sh \"$@\"\n",
        lines.join("\n")
    );
    let script = folder.join("container");
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}
