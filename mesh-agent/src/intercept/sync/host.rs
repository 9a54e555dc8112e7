//! Units of a host. In: workloads that name a systemd unit, and its cgroup. Out: one set of listeners and one `sk_lookup` instance
//! for all of them, the ports that they listen on, and an entry for each that says that its network is shared.
//!
//! The cgroup that the units are below has an entry too: what the `sk_lookup` instance knows of the host. It is written before
//! the instance is attached, and goes after it.

use std::net::IpAddr;
use std::sync::Arc;
use std::thread;

use mesh_common::{LISTENERS_PER_POD, POD_ENROLLED, POD_SHARED, Pod};
use mesh_core::model::{ConnectMode, Workload, WorkloadUid};

use super::depart::SETTLE;
use super::entry::seconds;
use super::{EnrolError, Local, PodCgroup, PodEvent, PodNet, Refusal, Sync, discover, listen, lookups};
use crate::intercept::host::Host;
use crate::sys;

/// What is open for all units of the host together.
#[derive(Debug)]
pub(super) struct Open {
    /// The cgroup that the units are below.
    root: u64,
    pub(super) index: u32,
}

/// The addresses that the host's connections show as their own, one a family.
pub(super) fn own_addresses(host: &Host) -> Vec<IpAddr> {
    let all = host.netns.addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the host's addresses are not known: what its units dial shows a loopback address as its own");
        Vec::new()
    });
    let outward = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let first = |ipv6: bool| all.iter().filter(outward).find(|address| address.is_ipv6() == ipv6);
    [first(false), first(true)].into_iter().flatten().copied().collect()
}

/// Whether a unit can be served.
pub(super) fn fit(host: &Host, cgroup: &PodCgroup, connect: ConnectMode) -> Result<(), Refusal> {
    if connect != ConnectMode::Honest {
        return Err(Refusal::NotHonest);
    }
    let inodes = discover::processes(&cgroup.path)?.into_iter().filter_map(discover::netns_inode);
    let mut inodes = inodes.peekable();
    if inodes.peek().is_some() && !inodes.any(|inode| inode == host.netns.inode) {
        return Err(Refusal::OtherNamespace);
    }
    Ok(())
}

impl Sync {
    /// What all units of the host have together, as a workload's uid: no unit is named so.
    pub(super) fn place_uid(&self) -> WorkloadUid {
        WorkloadUid(format!("{}/", self.config.node).into())
    }

    /// Serves one unit: its ports, then what it dials. Its entry is the caller's to write.
    pub(super) fn enrol_unit(
        &mut self,
        host: &Arc<Host>,
        workload: &Workload,
        pod: &Local,
    ) -> Result<(), EnrolError> {
        self.open_host(host)?;
        host.enter(&workload.uid, &pod.cgroup, seconds(pod.opens_after));
        let listens = host.listens().map_err(Refusal::Io)?;
        self.steered.follow_also(&self.maps, host.netns.cookie, &listens).map_err(Refusal::Io)?;
        let net = PodNet::on_host(workload.uid.clone(), Arc::clone(host), Arc::clone(&self.maps));
        let held = self.hub.serve_beside_others(&host.netns, pod.cgroup.id);
        let listeners = super::PodListeners { held: Some(held), ..super::PodListeners::default() };
        self.send(PodEvent::Up(Arc::new(net), listeners))
    }

    /// Opens what the units have together, unless it is.
    fn open_host(&mut self, host: &Arc<Host>) -> Result<(), EnrolError> {
        if self.open.is_some() {
            return Ok(());
        }
        let root = sys::cgroup_id(&self.config.pods_root).map_err(Refusal::Io)?;
        let orphan = self.orphans.get(&root).map(|pod| pod.index);
        let index = orphan.or_else(|| self.free_index()).ok_or(EnrolError::TooMany)?;
        let uid = self.place_uid();
        let inherited = self.inherited.take(&uid, host.netns.cookie);
        let in_place = inherited.is_some() && self.same_map;
        let sockets = match inherited {
            Some(listeners) => listen::Sockets::adopt(listeners).map_err(Refusal::Io)?,
            None => listen::open_on_host(&host.netns)?,
        };
        if !in_place {
            for (slot, socket) in &sockets.inbound {
                self.maps.set_listener(index * LISTENERS_PER_POD + *slot as u32, socket)?;
            }
        }
        let entry = Pod {
            netns_cookie: host.netns.cookie,
            index,
            flags: POD_ENROLLED | POD_SHARED,
            ..Pod::default()
        };
        self.maps.pods.lock().insert(root, entry, 0)?;
        lookups::attach_lookup(&self.config, root, index, &host.netns)?;
        let net = PodNet::on_host(uid, Arc::clone(host), Arc::clone(&self.maps));
        self.send(PodEvent::Up(Arc::new(net), sockets.into_listeners()))?;
        self.orphans.remove(&root);
        self.open = Some(Open { root, index });
        Ok(())
    }

    /// Brings the kernel's list of ports in step with what enrolled units listen on; closes what they had together when the last
    /// has left.
    pub(super) fn follow_host(&mut self) {
        let Some(host) = self.host.clone().filter(|host| self.open.is_some() || !host.is_empty()) else {
            return;
        };
        let told = host.listens().and_then(|at| self.steered.follow(&self.maps, host.netns.cookie, &at));
        if let Err(error) = told {
            tracing::warn!(%error, "the kernel was not told where the host's units listen");
        }
        if !host.is_empty() {
            return;
        }
        let Some(open) = self.open.take() else { return };
        self.dismantle(open.root, open.index);
        if let Err(error) = self.maps.pods.lock().remove(&open.root) {
            tracing::warn!(%error, "removing the host's entry");
        }
        thread::sleep(SETTLE);
        // When the data plane has ended there is nobody to tell.
        let _stopping = self.send(PodEvent::Down { uid: self.place_uid(), gone: true });
    }

    /// The cgroup that the units are below, while anything is open for them.
    pub(super) fn host_root(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.root)
    }
}
