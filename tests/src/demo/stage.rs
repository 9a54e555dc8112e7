//! The demo's shop: pods, their programs, and the mesh around them, with nobody enrolled yet.

use anyhow::{Context, Result};

use super::report::Report;
use crate::apps::{self, Nginx};
use crate::mesh::{Mesh, Options};
use crate::world::{Pod, Process};

/// What every page and row carries, so that a capture can look for it.
pub(super) const SECRET: &str = "the-shop-s-secret";
/// Virtual addresses; there is no kube-proxy, the agents resolve them.
pub(super) const FRONT: &str = "10.99.0.1";
pub(super) const DB: &str = "10.99.0.2";
pub(super) const CACHE: &str = "10.99.0.3";

/// Certificates live so long here, so that a renewal is seen.
const SVID_TTL: &str = "30s";

/// Everything that runs.
pub(super) struct Stage {
    pub(super) web: Pod,
    pub(super) api: Pod,
    pub(super) outsider: Pod,
    pub(super) nginx: Nginx,
    pub(super) front: Pod,
    pub(super) db: Pod,
    /// The client that runs through the whole demo without a restart.
    pub(super) client: Process,
    servers: Vec<Process>,
    pub(super) mesh: Mesh,
}

impl Stage {
    pub(super) fn set(report: &Report) -> Result<Self> {
        let options = Options { svid_ttl: SVID_TTL, ..Options::default() };
        let mut mesh = Mesh::prepare(options)?;
        mesh.manifests.namespace("shop", false)?;
        mesh.manifests.namespace("other", false)?;
        report.note("pods on node n1: shop/web, shop/api, other/outsider; on n2: shop/front, shop/front-2, shop/db, shop/cache");
        let (web, api) = (mesh.pod("shop", "web", 1)?, mesh.pod("shop", "api", 1)?);
        let outsider = mesh.pod("other", "outsider", 1)?;
        let (front, second) = (mesh.pod("shop", "front", 2)?, mesh.pod("shop", "front-2", 2)?);
        let (db, cache) = (mesh.pod("shop", "db", 2)?, mesh.pod("shop", "cache", 2)?);
        mesh.service(("shop", "front"), &[FRONT], (8080, 80), &[&front, &second])?;
        mesh.service(("shop", "db"), &[DB], (5432, 5432), &[&db])?;
        mesh.service(("shop", "cache"), &[CACHE], (6379, 6379), &[&cache])?;
        report.note("starting nginx (twice), PostgreSQL and redis");
        let nginx = Nginx::start(&front, SECRET)?;
        let servers =
            vec![Nginx::start(&second, SECRET)?.process, apps::postgres(&db)?, apps::redis(&cache)?];
        let local = ["-h", "127.0.0.1", "-U", "postgres", "-qc"];
        let table = format!("create table orders as select generate_series(1, 3) as id, '{SECRET}' as note");
        db.run("psql", &[&local[..], &[&table]].concat())?.success().context("fill the database")?;
        report.note("starting the controller and an agent on each node");
        mesh.start_controller()?;
        mesh.start_agent(1)?;
        mesh.start_agent(2)?;
        let client = loop_of_curl(&web, &front)?;
        report.note(&format!("shop/web asks shop/front for a page all the time (process {})", client.id()));
        Ok(Self { web, api, outsider, nginx, front, db, client, servers, mesh })
    }

    /// How many requests of the running client were answered, and the last lines that are no such answer.
    pub(super) fn client_answers(&self) -> (usize, Vec<String>) {
        let text = self.client.stdout();
        let (good, bad): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("200 "));
        (good.len(), bad.into_iter().map(str::to_owned).collect())
    }

    /// Leaves everything running, and tells how to look around.
    pub(super) fn keep(self) {
        let (node, socket) = (&self.mesh.world.node(1).netns, self.mesh.admin_socket(1));
        println!("\nEverything is left running. To look around:");
        println!("  meshctl --agent-socket {} status", socket.display());
        println!("  meshctl --agent-socket {} explain shop/web {DB}:5432", socket.display());
        println!("  ip netns exec {node} curl -s {}:15020/metrics", self.mesh.world.node(1).v4);
        println!(
            "  target/release/peer run --netns {} --cgroup {} -- curl -s http://{FRONT}:8080/",
            self.web.netns(),
            self.web.cgroup().display()
        );
        println!("  manifests, watched by the controller: {}", self.mesh.manifests.folder().display());
        println!("  logs: {}", self.mesh.world.files.join("logs").display());
        println!("The next run of the demo, the tests or the bench removes it.");
        for process in self.servers.into_iter().chain([self.nginx.process, self.client]) {
            process.leave_running();
        }
        self.mesh.keep();
    }
}

/// One shell that starts a curl for each request; it is never restarted.
fn loop_of_curl(web: &Pod, front: &Pod) -> Result<Process> {
    let url = format!("http://{}/?ask={SECRET}", front.at(80));
    let script = format!(
        "while true; do curl -sS -o /dev/null --max-time 3 -w '%{{http_code}} %{{remote_ip}}\\n' '{url}' 2>&1; \
         sleep 0.1; done"
    );
    web.spawn("client", "bash", &["-c", &script])
}
