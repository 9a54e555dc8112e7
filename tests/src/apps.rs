//! Real programs as they come from Debian, started in pods: nginx, PostgreSQL, redis.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::poll;
use crate::world::{Pod, Process};

const START: Duration = Duration::from_secs(20);

/// nginx that serves one page on port 80, IPv4 and IPv6.
pub struct Nginx {
    /// The program.
    pub process: Process,
    access_log: PathBuf,
}

impl Nginx {
    /// Starts it; `page` is what `/` answers.
    pub fn start(pod: &Pod, page: &str) -> Result<Self> {
        let folder = pod.files()?;
        let at = folder.display();
        fs::create_dir_all(folder.join("html"))?;
        fs::write(folder.join("html/index.html"), page)?;
        let configuration = format!(
            "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/error.log;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log {at}/access.log; keepalive_requests 100000000; client_body_temp_path {at}/b;\n\
             proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen 80; listen [::]:80; root {at}/html;\n\
             location = /status {{ access_log off; return 200 'fine'; }} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration)?;
        let process = pod.spawn("nginx", "nginx", &["-c", &file.to_string_lossy()])?;
        listening(pod, 80, &process)?;
        Ok(Self { process, access_log: folder.join("access.log") })
    }

    /// Its access log; each line begins with the client's address.
    pub fn access_log(&self) -> String {
        fs::read_to_string(&self.access_log).unwrap_or_default()
    }
}

/// Starts redis on port 6379.
pub fn redis(pod: &Pod) -> Result<Process> {
    let folder = pod.files()?;
    let arguments =
        ["--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", &folder.to_string_lossy()];
    let process = pod.spawn("redis", "redis-server", &arguments)?;
    listening(pod, 6379, &process)?;
    Ok(process)
}

/// Starts PostgreSQL on port 5432, with a fresh data folder; everybody is trusted (the mesh decides who comes in).
pub fn postgres(pod: &Pod) -> Result<Process> {
    let (programs, folder) = (postgres_programs()?, pod.files()?);
    let data = folder.join("data");
    // The user `postgres` must be able to walk there.
    for part in folder.ancestors().take_while(|part| part.starts_with("/tmp/")) {
        set_mode(part, 0o755)?;
    }
    fs::create_dir_all(&data)?;
    own(&["chown", "postgres", &data.to_string_lossy()])?;
    let initdb = programs.join("initdb");
    let (initdb, data) = (initdb.to_string_lossy(), data.to_string_lossy());
    let as_postgres = ["--reuid=postgres", "--regid=postgres", "--clear-groups"];
    let mut arguments = as_postgres.to_vec();
    arguments.extend([
        &*initdb,
        "-D",
        &*data,
        "-A",
        "trust",
        "-U",
        "postgres",
        "--no-sync",
        "--no-instructions",
    ]);
    pod.run("setpriv", &arguments)?.success().context("initdb")?;
    fs::write(format!("{data}/pg_hba.conf"), "host all all all trust\nlocal all all trust\n")?;
    let server = programs.join("postgres");
    let server = server.to_string_lossy();
    let mut arguments = as_postgres.to_vec();
    arguments.extend([&*server, "-D", &*data, "-c", "listen_addresses=*", "-c", "unix_socket_directories="]);
    arguments.extend(["-c", "fsync=off", "-c", "shared_buffers=16MB"]);
    let process = pod.spawn("postgres", "setpriv", &arguments)?;
    listening(pod, 5432, &process)?;
    // It listens before it takes connections.
    poll::until("PostgreSQL to take connections", START, || {
        let query = ["-h", "127.0.0.1", "-U", "postgres", "-Atc", "select 1"];
        pod.run("psql", &query)?.success()
    })?;
    Ok(process)
}

/// Where Debian keeps PostgreSQL's programs; the version differs from release to release.
fn postgres_programs() -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    for version in versions {
        let programs = version?.path().join("bin");
        if programs.join("initdb").is_file() {
            return Ok(programs);
        }
    }
    bail!("no initdb in /usr/lib/postgresql/*/bin: install the package postgresql")
}

/// Waits until something listens on the port.
pub fn listening(pod: &Pod, port: u16, process: &Process) -> Result<()> {
    poll::until_true(&format!("{} to listen on {port}", pod.name()), START, || pod.listens(port))
        .with_context(|| process.tail())
}

/// Starts a server of the helper program and waits until it listens on `port`.
pub fn peer_server(pod: &Pod, kind: &str, port: u16, more: &[&str]) -> Result<Process> {
    let listen = format!("[::]:{port}");
    let mut arguments = vec![kind, "--listen", &listen];
    arguments.extend(more);
    let process = pod.spawn_peer(&arguments)?;
    listening(pod, port, &process)?;
    Ok(process)
}

fn own(command: &[&str]) -> Result<()> {
    let status = Command::new(command[0]).args(&command[1..]).status()?;
    if !status.success() {
        bail!("{} failed", command.join(" "));
    }
    Ok(())
}

fn set_mode(path: &std::path::Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", path.display()))
}
