//! Programs that are built from their Go modules: a real control plane and helm. In: a folder with `go.mod` and `go.sum`.
//! Out: a link in `target/` to where they are kept: outside of the workspace, under a key of everything they are made from.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::packages::present;
use crate::steps::run;
use crate::tools;

/// A Go module of tools.
pub(crate) struct Module {
    /// Its folder, and what it is called where it is kept and linked.
    folder: &'static str,
    name: &'static str,
    /// The module whose version is the programs'.
    versioned: &'static str,
    /// What the tools are called when they are built, and what they are.
    programs: &'static [(&'static str, &'static str)],
    /// For people.
    takes: &'static str,
    /// Variables that the linker sets, of this version with its major and minor number.
    set: fn(&str, &str, &str) -> Vec<String>,
}

/// etcd and Kubernetes.
pub(crate) const KUBE: Module = Module {
    folder: "tests/kube",
    name: "kube",
    versioned: "k8s.io/kubernetes",
    programs: &[
        ("server", "etcd"),
        ("kube-apiserver", "kube-apiserver"),
        ("kube-controller-manager", "kube-controller-manager"),
        ("kube-proxy", "kube-proxy"),
        ("kube-scheduler", "kube-scheduler"),
        ("kubelet-server", "kubelet-server"),
        ("kubectl", "kubectl"),
    ],
    takes: "about ten minutes on two cores, once",
    // kubectl refuses to speak to a server when it does not know its own version.
    set: |version, major, minor| {
        let set = |name: &str, value: &str| format!("-X k8s.io/component-base/version.{name}={value}");
        vec![set("gitVersion", version), set("gitMajor", major), set("gitMinor", minor)]
    },
};

/// helm.
pub(crate) const HELM: Module = Module {
    folder: "tests/helm",
    name: "helm",
    versioned: "helm.sh/helm/v3",
    programs: &[("helm", "helm")],
    takes: "about four minutes on two cores, once",
    // What `helm template` and `helm lint` take for the cluster's version; helm's own build sets it in the same way.
    set: |version, _, _| {
        let set = |name: &str, value: &str| format!("-X helm.sh/helm/v3/{name}={value}");
        let of = |package: &str| {
            [
                set(&format!("pkg/{package}.k8sVersionMajor"), "1"),
                set(&format!("pkg/{package}.k8sVersionMinor"), "36"),
            ]
        };
        [vec![set("internal/version.version", version)], of("chartutil").into(), of("lint/rules").into()]
            .concat()
    },
};

/// Refuses at once when Go is missing, since what needs it comes last.
pub(crate) fn need_go() -> Result<()> {
    ensure!(
        present("go"),
        "Go is missing: the scenarios on a real API server and helm are built from source; install Go 1.26 \
         (https://go.dev/dl) and have it on the PATH"
    );
    Ok(())
}

impl Module {
    /// Builds the programs if they are not kept already, and links them to `target/NAME`, which is returned.
    pub(crate) fn build(&self, root: &Path) -> Result<PathBuf> {
        need_go()?;
        let module = root.join(self.folder);
        let version = self.version(&module)?;
        let kept = tools::folder(self.name)?.join(format!("{version}-{:016x}", key(&module)?));
        if self.programs.iter().all(|(_, name)| kept.join(name).is_file()) {
            eprintln!("    kept in {}", kept.display());
        } else {
            eprintln!("    {} {version}: {}", self.versioned, self.takes);
            self.make(&module, &version, &kept)?;
        }
        let to = tools::target_directory(root).join(self.name);
        link(&kept, &to)?;
        Ok(to)
    }

    fn make(&self, module: &Path, version: &str, kept: &Path) -> Result<()> {
        let fresh = kept.with_extension(format!("new-{}", std::process::id()));
        fs::create_dir_all(&fresh).with_context(|| format!("make {}", fresh.display()))?;
        let (major, rest) = version.trim_start_matches('v').split_once('.').context("a version has a dot")?;
        let minor = rest.split('.').next().unwrap_or_default();
        let flags = [vec!["-s -w".to_owned()], (self.set)(version, major, minor)].concat();
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-mod=readonly", "-ldflags", &flags.join(" "), "-o"]);
        // The slash makes it a folder.
        go.arg(format!("{}/", fresh.display())).arg("tool").current_dir(module);
        run(&mut go)?;
        for (built, name) in self.programs.iter().filter(|(built, name)| built != name) {
            fs::rename(fresh.join(built), fresh.join(name))
                .with_context(|| format!("go built no {built}"))?;
        }
        if kept.exists() {
            fs::remove_dir_all(kept)?;
        }
        fs::rename(&fresh, kept).with_context(|| format!("keep {}", kept.display()))
    }

    /// The version that the module asks for.
    fn version(&self, module: &Path) -> Result<String> {
        let file = module.join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let wanted = format!("{} v", self.versioned);
        let found = text.lines().find_map(|line| {
            let line = line.trim().trim_start_matches("require ");
            line.strip_prefix(&wanted).map(|version| format!("v{version}"))
        });
        match found {
            Some(version) => Ok(version.split_whitespace().next().unwrap_or_default().to_owned()),
            None => bail!("{} requires no {}", file.display(), self.versioned),
        }
    }
}

fn link(kept: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|to| to == kept) {
        return Ok(());
    }
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link).with_context(|| format!("remove {}", link.display()))?;
    }
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder)?;
    }
    std::os::unix::fs::symlink(kept, link).with_context(|| format!("link {}", link.display()))
}

/// The Go files of the module itself, in its folders.
fn own_sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            own_sources(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "go") {
            files.push(path);
        }
    }
    Ok(())
}

/// Differs when the sources or the compiler do.
fn key(module: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut files = vec![module.join("go.mod"), module.join("go.sum")];
    own_sources(module, &mut files)?;
    files.sort();
    for file in files {
        hasher.write(&fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let go = Command::new("go").arg("version").output().context("run go version")?;
    hasher.write(&go.stdout);
    Ok(hasher.finish())
}
