//! `meshctl check`: what this node has and lacks, and the mend. The file systems are looked at here, without an agent;
//! what only the kernel can say (helpers, program types, the agent's capabilities) is asked of the agent when it is there.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::agent::{self, DEFAULT_SOCKET};
use crate::inventory::{each, text};
use crate::table::Table;
use crate::{Answer, inventory};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// `node`, `agent` or `cluster`: who looked.
    by: &'static str,
    pub(crate) name: String,
    pub(crate) ok: bool,
    /// Something that does not keep the mesh from working, but that its owner should know.
    pub(crate) weak: bool,
    /// What was found.
    pub(crate) found: String,
    /// What to do when it is not right.
    pub(crate) mend: String,
}

impl Check {
    /// Something of the cluster.
    pub(crate) fn of_cluster(name: &str, ok: bool, found: &str, mend: &str) -> Self {
        let mend = if ok { String::new() } else { mend.to_owned() };
        Self { by: "cluster", name: name.to_owned(), ok, weak: false, found: found.to_owned(), mend }
    }

    /// Something of the cluster that its owner should know, and that does not keep the mesh from working.
    pub(crate) fn weak_of_cluster(name: &str, found: &str, mend: &str) -> Self {
        Self { weak: true, ..Self::of_cluster(name, false, found, mend) }
    }

    fn here(name: &str, found: Option<String>, mend: &str) -> Self {
        let ok = found.is_some();
        Self {
            by: "node",
            name: name.to_owned(),
            ok,
            weak: false,
            found: found.unwrap_or_else(|| "missing".to_owned()),
            mend: if ok { String::new() } else { mend.to_owned() },
        }
    }
}

/// Looks at the node, and asks the agent.
pub(crate) async fn check(socket: Option<&Path>) -> Result<Answer> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let init = std::fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    let mut checks = here(&mounts, &init, Path::new("/sys/kernel/btf/vmlinux").exists());
    let place = socket.unwrap_or(Path::new(DEFAULT_SOCKET));
    // A socket that was named has to answer; at the default place there need not be an agent.
    if socket.is_some() || place.exists() {
        match agent::get(socket, "/check").await {
            Ok(list) => checks.extend(of_agent(&list)),
            Err(error) => checks.push(Check {
                by: "agent",
                name: "administration socket".to_owned(),
                ok: false,
                weak: false,
                found: format!("{error:#}"),
                mend: "start the agent, or run `mesh-agent --check`".to_owned(),
            }),
        }
    }
    let asked_agent = checks.iter().any(|check| check.by == "agent");
    let mut table = render(&checks);
    if !asked_agent {
        table.push_str(&format!(
            "no agent at {}: helpers, program types and capabilities were not looked at (`mesh-agent --check` does it)\n",
            place.display()
        ));
    }
    Ok(Answer { table, ..told(&checks, "") })
}

/// The checks, with what else is to be said.
pub(crate) fn told(checks: &[Check], said: &str) -> Answer {
    let ok = checks.iter().all(|check| check.ok || check.weak);
    let json = json!({ "ok": ok, "checks": to_json(checks), "said": said });
    Answer { json, table: render(checks) + said, ok }
}

fn here(mounts: &str, init_cgroup: &str, btf: bool) -> Vec<Check> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // A process of the host sees init's path begin at the mounted root; in a private namespace it lies above it.
    let host = !init_cgroup.lines().any(|line| line.starts_with("0::/.."));
    vec![
        Check::here("kernel release", Some(release), ""),
        Check::here(
            "cgroup2",
            mount_of(mounts, "cgroup2"),
            "mount cgroup v2: mount -t cgroup2 none /sys/fs/cgroup",
        ),
        Check::here(
            "cgroup namespace",
            host.then(|| "the host's".to_owned()),
            "run in the host's cgroup namespace, and mount the host's cgroup2",
        ),
        Check::here("bpffs", mount_of(mounts, "bpf"), "mount -t bpf bpf /sys/fs/bpf"),
        Check::here(
            "BTF",
            btf.then(|| "/sys/kernel/btf/vmlinux".to_owned()),
            "a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
    ]
}

/// Where the first file system of this kind is mounted.
fn mount_of(mounts: &str, kind: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == kind).then(|| place.to_owned())
    })
}

fn of_agent(list: &Value) -> impl Iterator<Item = Check> {
    each(list).map(|probe| {
        let ok = probe["ok"] == true;
        Check {
            by: "agent",
            name: text(&probe["name"]),
            ok,
            weak: probe["weak"] == true,
            found: match probe["found"].as_str() {
                Some(found) => found.to_owned(),
                None => if ok { "present" } else { "missing" }.to_owned(),
            },
            mend: text(&probe["mend"]),
        }
    })
}

fn to_json(checks: &[Check]) -> Vec<Value> {
    let one = |c: &Check| {
        json!({ "by": c.by, "name": c.name, "ok": c.ok, "weak": c.weak, "found": c.found,
                                 "mend": c.mend })
    };
    checks.iter().map(one).collect()
}

fn render(checks: &[Check]) -> String {
    let mut table = Table::new(&["CHECK", "BY", "OK", "FOUND", "MEND"]);
    for check in checks {
        let ok = if check.weak { "weak".to_owned() } else { inventory::text(&Value::Bool(check.ok)) };
        table.row([check.name.clone(), check.by.to_owned(), ok, check.found.clone(), check.mend.clone()]);
    }
    table.render("nothing was looked at")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";

    fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn cgroup2_is_found_where_it_is_mounted_and_a_missing_bpffs_has_a_mend() {
        let checks = here(HYBRID, "0::/init.scope\n", true);
        assert_eq!(named(&checks, "cgroup2").found, "/sys/fs/cgroup/unified");
        assert!(named(&checks, "cgroup namespace").ok && named(&checks, "BTF").ok);
        let bpffs = named(&checks, "bpffs");
        assert!(!bpffs.ok && bpffs.mend.contains("mount -t bpf"), "{bpffs:?}");
    }

    #[test]
    fn a_private_cgroup_namespace_is_seen() {
        let checks = here(HYBRID, "0::/../../init.scope\n", false);
        assert!(!named(&checks, "cgroup namespace").ok);
        assert_eq!(named(&checks, "BTF").mend, "a kernel with CONFIG_DEBUG_INFO_BTF=y");
    }

    #[test]
    fn the_agents_answers_are_merged() {
        let list = json!([{ "name": "CAP_BPF", "ok": false, "mend": "give it" }, { "name": "BTF", "ok": true, "mend": "" }]);
        let checks: Vec<Check> = of_agent(&list).collect();
        assert_eq!((checks[0].ok, checks[0].mend.as_str(), checks[1].ok), (false, "give it", true));
        let text = render(&checks);
        assert!(text.lines().any(|line| line == "CAP_BPF  agent  no   missing  give it"), "{text}");
    }

    #[test]
    fn a_weak_spot_is_told_with_what_was_found() {
        let list = json!([{ "name": "raw sockets: pod shop/web", "ok": false, "weak": true,
                            "found": "nginx (7) has CAP_NET_RAW", "mend": "drop it" }]);
        let checks: Vec<Check> = of_agent(&list).collect();
        let text = render(&checks);
        let wanted = "raw sockets: pod shop/web  agent  weak  nginx (7) has CAP_NET_RAW  drop it";
        assert!(text.lines().any(|line| line == wanted), "{text}");
        assert_eq!(to_json(&checks)[0]["weak"], true);
    }
}
