//! One immutable view of the mesh, and the deltas that make the next one.
//!
//! A connection loads the current snapshot once and keeps it. `Snapshot::apply` takes a whole delta or refuses it whole:
//! nothing is half-applied.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::identity::TrustDomain;
use crate::model::{AuthorizationPolicy, PolicyName, Service, ServiceName, Workload, WorkloadUid};

/// What an agent holds: its own workloads in full, services and peers as they were asked for.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The controller's version of the last delta that was applied; 0 before the first.
    pub version: u64,
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    by_address: HashMap<IpAddr, Arc<Workload>>,
    services: HashMap<ServiceName, Arc<Service>>,
    by_vip: HashMap<IpAddr, Arc<Service>>,
    policies: HashMap<PolicyName, Arc<AuthorizationPolicy>>,
    absent: HashSet<IpAddr>,
    unserved: HashSet<SocketAddr>,
    udp: HashMap<SocketAddr, Arc<[UdpBackend]>>,
}

/// Who answers datagrams to an address and port: a workload, at a port of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpBackend {
    /// The workload.
    pub workload: WorkloadUid,
    /// Its port.
    pub port: u16,
}

/// What a dialled address is.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A virtual address of a service.
    Service(Arc<Service>),
    /// A pod's own address.
    Workload(Arc<Workload>),
    /// The controller said that the mesh does not know it: passed through.
    Absent,
    /// Nobody has asked the controller yet.
    NotLoaded,
}

/// One resource to add or replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upsert {
    /// A workload.
    Workload(Workload),
    /// A service.
    Service(Service),
    /// A policy.
    Policy(AuthorizationPolicy),
    /// The controller knows no such address.
    Absent(IpAddr),
    /// A virtual address and port that has no endpoint for this node's clients.
    Unserved(SocketAddr),
    /// An address and port that UDP rules speak of, and who is behind it.
    Udp(SocketAddr, Vec<UdpBackend>),
}

/// The name of a resource to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remove {
    /// A workload.
    Workload(WorkloadUid),
    /// A service.
    Service(ServiceName),
    /// A policy.
    Policy(PolicyName),
    /// Forget what was said of an address.
    Absent(IpAddr),
    /// There is an endpoint again, or no such service port.
    Unserved(SocketAddr),
    /// No UDP rule speaks of this address and port any more.
    Udp(SocketAddr),
}

/// A change of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The version that the snapshot has afterwards.
    pub version: u64,
    /// Drop everything that was held before (the first message of a new stream).
    pub reset: bool,
    /// Added or replaced.
    pub upserts: Vec<Upsert>,
    /// Removed.
    pub removes: Vec<Remove>,
}

impl Snapshot {
    /// A snapshot that holds nothing.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            version: 0,
            trust_domain,
            workloads: HashMap::new(),
            by_address: HashMap::new(),
            services: HashMap::new(),
            by_vip: HashMap::new(),
            policies: HashMap::new(),
            absent: HashSet::new(),
            unserved: HashSet::new(),
            udp: HashMap::new(),
        }
    }

    /// The snapshot after `delta`.
    pub fn apply(&self, delta: Delta) -> Self {
        let mut next = if delta.reset { Self::empty(self.trust_domain.clone()) } else { self.clone() };
        next.version = delta.version;
        for remove in delta.removes {
            next.remove(&remove);
        }
        for upsert in delta.upserts {
            next.upsert(upsert);
        }
        next
    }

    /// The delta that makes this snapshot out of an empty one.
    pub fn whole(&self) -> Delta {
        // Every field by name: one that is added later is not forgotten here.
        let Self {
            version,
            trust_domain: _,
            workloads,
            by_address: _,
            services,
            by_vip: _,
            policies,
            absent,
            unserved,
            udp,
        } = self;
        let workloads = workloads.values().map(|held| Upsert::Workload(Workload::clone(held)));
        let services = services.values().map(|held| Upsert::Service(Service::clone(held)));
        let policies = policies.values().map(|held| Upsert::Policy(AuthorizationPolicy::clone(held)));
        let absent = absent.iter().copied().map(Upsert::Absent);
        let unserved = unserved.iter().copied().map(Upsert::Unserved);
        let udp = udp.iter().map(|(at, behind)| Upsert::Udp(*at, behind.to_vec()));
        let resources = policies.chain(workloads).chain(services);
        let upserts = resources.chain(absent).chain(unserved).chain(udp).collect();
        Delta { version: *version, reset: true, upserts, removes: Vec::new() }
    }

    /// What `address` is, so far as this agent knows.
    pub fn destination(&self, address: IpAddr) -> Destination {
        if let Some(service) = self.by_vip.get(&address) {
            return Destination::Service(Arc::clone(service));
        }
        if let Some(workload) = self.by_address.get(&address) {
            return Destination::Workload(Arc::clone(workload));
        }
        if self.absent.contains(&address) { Destination::Absent } else { Destination::NotLoaded }
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }

    /// The policy of this name.
    pub fn policy(&self, name: &PolicyName) -> Option<&Arc<AuthorizationPolicy>> {
        self.policies.get(name)
    }

    /// Every workload that is held.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service that is held.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Every policy that is held.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.policies.values()
    }

    /// Every virtual address and port without an endpoint for this node's clients, looked up or not.
    pub fn unserved(&self) -> &HashSet<SocketAddr> {
        &self.unserved
    }

    /// Every address and port that UDP rules speak of, looked up or not, with who is behind it.
    pub fn udp(&self) -> impl Iterator<Item = (SocketAddr, &[UdpBackend])> {
        self.udp.iter().map(|(at, behind)| (*at, &**behind))
    }

    fn upsert(&mut self, upsert: Upsert) {
        match upsert {
            Upsert::Workload(workload) => {
                self.remove(&Remove::Workload(workload.uid.clone()));
                let workload = Arc::new(workload);
                for address in &workload.addresses {
                    self.absent.remove(address);
                    self.by_address.insert(*address, Arc::clone(&workload));
                }
                self.workloads.insert(workload.uid.clone(), workload);
            }
            Upsert::Service(service) => {
                self.remove(&Remove::Service(service.name.clone()));
                let service = Arc::new(service);
                for vip in &service.vips {
                    self.absent.remove(vip);
                    self.by_vip.insert(*vip, Arc::clone(&service));
                }
                self.services.insert(service.name.clone(), service);
            }
            Upsert::Policy(policy) => {
                self.policies.insert(policy.name.clone(), Arc::new(policy));
            }
            Upsert::Absent(address) => {
                self.absent.insert(address);
            }
            Upsert::Unserved(address) => {
                self.unserved.insert(address);
            }
            Upsert::Udp(address, behind) => {
                self.udp.insert(address, behind.into());
            }
        }
    }

    fn remove(&mut self, remove: &Remove) {
        match remove {
            Remove::Workload(uid) => {
                if let Some(old) = self.workloads.remove(uid) {
                    for address in &old.addresses {
                        forget(&mut self.by_address, address, &old);
                    }
                }
            }
            Remove::Service(name) => {
                if let Some(old) = self.services.remove(name) {
                    for vip in &old.vips {
                        forget(&mut self.by_vip, vip, &old);
                    }
                }
            }
            Remove::Policy(name) => {
                self.policies.remove(name);
            }
            Remove::Absent(address) => {
                self.absent.remove(address);
            }
            Remove::Unserved(address) => {
                self.unserved.remove(address);
            }
            Remove::Udp(address) => {
                self.udp.remove(address);
            }
        }
    }
}

/// Removes the entry of `address` only while it is `old`'s: the address may have moved to another owner since.
fn forget<T>(map: &mut HashMap<IpAddr, Arc<T>>, address: &IpAddr, old: &Arc<T>) {
    if map.get(address).is_some_and(|held| Arc::ptr_eq(held, old)) {
        map.remove(address);
    }
}
