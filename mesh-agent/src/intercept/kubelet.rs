//! Is it the node's kubelet that connects? In: both ends of a connection that came in as plaintext. Out: whether the
//! socket at the other end was made in the kubelet's own cgroup, which the kernel says of a socket of the node's network
//! namespace. Neither an address nor a port proves it: other programs of the node have the same address.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_core::model::Workload;
use mesh_core::snapshot::Snapshot;

use super::{WeakSpot, cgroup, diag};
use crate::sys::{self, NetNs};

/// The kubelet of this node.
#[derive(Debug)]
pub struct Kubelet {
    node: NetNs,
    cgroups: Vec<PathBuf>,
}

impl Kubelet {
    /// `places` are where its cgroup may be, below the mount of cgroup v2. Call it in the node's network namespace.
    pub fn new(places: &[PathBuf]) -> io::Result<Self> {
        let mount = cgroup::mount()?.ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))?;
        let cgroups = places.iter().map(|place| mount.join(place)).collect();
        Ok(Self { node: NetNs::current()?, cgroups })
    }

    /// The cgroups of those places that are there now: after each restart of the kubelet its cgroup is another one.
    fn ids(&self) -> impl Iterator<Item = u64> {
        self.cgroups.iter().filter_map(|place| sys::cgroup_id(place).ok())
    }

    /// What `meshctl check` says where no kubelet is found although pods of `node` have probes.
    pub fn weak_spot(&self, node: &str, snapshot: &Snapshot) -> Option<WeakSpot> {
        let probed = |w: &&Arc<Workload>| w.enrolled && *w.node == *node && !w.probes.is_empty();
        let pods = snapshot.workloads().filter(probed).count();
        let places: Vec<_> = self.cgroups.iter().map(|place| place.display().to_string()).collect();
        (pods > 0 && self.ids().next().is_none()).then(|| WeakSpot {
            name: "the kubelet's cgroup".to_owned(),
            found: format!("none of {}; pods with probes: {pods}", places.join(", ")),
            mend: "name it in --kubelet-cgroup (`systemctl show -p ControlGroup kubelet` tells it): until then probes are \
                   refused where STRICT or a policy refuses plaintext",
        })
    }

    /// Whether the kubelet made the connection from `client` to `dst`. Where it has no cgroup, nobody is the kubelet.
    pub fn made(&self, client: SocketAddr, dst: SocketAddr) -> bool {
        match diag::find(&self.node, client, dst) {
            Ok(found) => {
                found.and_then(|socket| socket.cgroup).is_some_and(|id| self.ids().any(|own| own == id))
            }
            Err(error) => {
                tracing::warn!(%client, %error, "who made a connection to a probe's port cannot be asked");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::snapshot::Upsert;

    use super::*;
    use crate::fixture::{published, workload};

    #[test]
    fn a_missing_kubelet_is_told_where_pods_have_probes() {
        let kubelet =
            Kubelet { node: NetNs::current().unwrap(), cgroups: vec!["/nowhere/kubelet.service".into()] };
        let pod = |probes| Workload { probes, ..workload("api", [10, 0, 0, 1].into()) };
        let told = |node: &str, probes| {
            kubelet.weak_spot(node, &published(vec![Upsert::Workload(pod(probes))]).load())
        };
        assert_eq!(told("n1", [].into()), None);
        assert_eq!(told("n2", [80].into()), None);
        let spot = told("n1", [80].into()).unwrap();
        assert_eq!(spot.found, "none of /nowhere/kubelet.service; pods with probes: 1");
        assert!(!kubelet.made("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()));
    }
}
