//! Tells the kernel where each enrolled pod may not send datagrams to. In: snapshots, and pods as they come and go. Out: tables in
//! `UDP_DENIED`, and one number a pod in `UDP_TABLES` that says which of them is the pod's.
//!
//! A table is written as a whole under a number that was never used, and then given to the pod by one write: each datagram meets
//! the old rules or the new ones. Pods with the same rules share a table. What does not fit refuses all: a rule that is not there
//! would let through what it denies.
//!
//! The snapshot on disk that an agent starts with may be older than what the kernel holds: it changes no table that is there.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::{MAX_PODS, UDP_REFUSED, UDP_VERSION_SLOT, UdpKey};
use mesh_core::model::{Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use mesh_core::udp;

use super::maps::{Maps, endpoint, socket_addr};
use super::problem::PodProblem;

/// No table.
const NONE: u64 = 0;
/// The most entries of one table, so that the rules of one pod leave room for others.
const MOST: usize = 16_384;

/// The tables that the kernel has.
#[derive(Debug)]
pub(super) struct Udp {
    maps: Arc<Maps>,
    snapshot: Option<Arc<Snapshot>>,
    /// The enrolled pods by their index.
    pods: HashMap<u32, WorkloadUid>,
    /// Which table a pod has, by its index; those without one are not here.
    given: HashMap<u32, u64>,
    tables: HashMap<u64, BTreeSet<SocketAddr>>,
    /// Tables that no pod has any more; a program may still be looking into one.
    retired: Vec<u64>,
    next: u64,
    /// What the agent starts with, when it is older than what the adopted tables were made from.
    older: Option<Arc<Snapshot>>,
}

impl Udp {
    /// Begins with what an earlier agent wrote. `first` is what is known before the controller has spoken: its version can be
    /// compared, one of another controller's cannot.
    pub(super) fn adopt(maps: &Arc<Maps>, first: Arc<Snapshot>) -> Self {
        let mut tables: HashMap<u64, BTreeSet<SocketAddr>> = HashMap::new();
        for key in maps.udp_denied.lock().keys().map_while(Result::ok) {
            let at = socket_addr(&mesh_common::Endpoint { addr: key.addr, port: key.port, pad: 0 });
            tables.entry(key.table).or_default().insert(at);
        }
        let held = maps.udp_tables.lock();
        let adopted = held.get(&UDP_VERSION_SLOT, 0).unwrap_or_default();
        let given = (0..MAX_PODS).filter_map(|index| Some((index, held.get(&index, 0).ok()?)));
        let given: HashMap<u32, u64> = given.filter(|(_, table)| *table != NONE).collect();
        drop(held);
        let retired = tables.keys().copied().filter(|table| !given.values().any(|g| g == table)).collect();
        let next = tables.keys().max().map_or(NONE, |last| *last) + 1;
        Self {
            maps: Arc::clone(maps),
            snapshot: None,
            pods: HashMap::new(),
            given,
            tables,
            retired,
            next,
            older: Some(first).filter(|first| first.version < adopted),
        }
    }

    /// Brings every pod's table in step with `snapshot`.
    pub(super) fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        // Tables that did not fit may fit now.
        let again = self.forget_retired() && self.given.values().any(|table| *table == UDP_REFUSED);
        if !again && self.snapshot.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, snapshot)) {
            return;
        }
        self.snapshot = Some(Arc::clone(snapshot));
        if self.is_older(snapshot) {
            return;
        }
        self.older = None;
        // Before the tables: one that was made already must not be taken for older than it is.
        if let Err(error) = self.maps.udp_tables.lock().set(UDP_VERSION_SLOT, snapshot.version, 0) {
            tracing::error!(%error, "noting the version of the UDP rules");
        }
        for (index, uid) in self.pods.clone() {
            // A pod that is gone keeps its table until it leaves.
            if let Some(workload) = snapshot.workload(&uid) {
                self.give(index, udp::denied(snapshot, workload));
                self.maps.beat();
            }
        }
    }

    /// A pod is about to be enrolled: its table is there before its entry.
    pub(super) fn arrive(&mut self, index: u32, workload: &Workload) {
        self.pods.insert(index, workload.uid.clone());
        let Some(snapshot) = self.snapshot.clone() else { return };
        if !self.is_older(&snapshot) || !self.given.contains_key(&index) {
            self.give(index, udp::denied(&snapshot, workload));
        }
    }

    /// A pod is enrolled no more.
    pub(super) fn leave(&mut self, index: u32) {
        self.pods.remove(&index);
        self.give(index, BTreeSet::new());
    }

    /// The pods whose rules do not fit, for status.
    pub(super) fn problems(&self) -> Vec<PodProblem> {
        let refused = self.given.iter().filter(|(_, table)| **table == UDP_REFUSED);
        let uids = refused.filter_map(|(index, _)| self.pods.get(index));
        let workloads = uids.filter_map(|uid| self.snapshot.as_ref()?.workload(uid));
        let reason = "its UDP rules do not fit into the kernel's table: of UDP it may send only DNS";
        workloads.map(|workload| PodProblem::new(workload, &reason)).collect()
    }

    fn is_older(&self, snapshot: &Arc<Snapshot>) -> bool {
        self.older.as_ref().is_some_and(|older| Arc::ptr_eq(older, snapshot))
    }

    fn give(&mut self, index: u32, denied: BTreeSet<SocketAddr>) {
        let table = self.table_of(denied);
        let before = self.given.get(&index).copied().unwrap_or(NONE);
        if table == before {
            return;
        }
        if let Err(error) = self.maps.udp_tables.lock().set(index, table, 0) {
            tracing::error!(index, %error, "giving a pod its table of UDP rules");
            return;
        }
        match table {
            NONE => drop(self.given.remove(&index)),
            _ => drop(self.given.insert(index, table)),
        }
        if self.tables.contains_key(&before) && !self.given.values().any(|given| *given == before) {
            self.retired.push(before);
        }
    }

    /// The number of the table with these entries, which is written if it is not there.
    fn table_of(&mut self, denied: BTreeSet<SocketAddr>) -> u64 {
        if denied.is_empty() {
            return NONE;
        }
        if let Some((table, _)) = self.tables.iter().find(|(_, held)| **held == denied) {
            return *table;
        }
        let table = self.next;
        if denied.len() > MOST || !self.write(table, &denied) {
            tracing::error!(entries = denied.len(), most = MOST, "UDP rules that do not fit: all is refused");
            return UDP_REFUSED;
        }
        self.next += 1;
        self.tables.insert(table, denied);
        table
    }

    /// Writes a table; false, and nothing stays, when there is no room.
    fn write(&self, table: u64, denied: &BTreeSet<SocketAddr>) -> bool {
        let mut map = self.maps.udp_denied.lock();
        let full = denied.iter().find_map(|at| map.insert(key(table, *at), 0, 0).err());
        let Some(error) = full else { return true };
        tracing::warn!(%error, "writing a table of UDP rules");
        for at in denied {
            // Those behind the first that failed were never there.
            let _absent = map.remove(&key(table, *at));
        }
        false
    }

    /// Removes what nobody uses any more; whether there was any.
    fn forget_retired(&mut self) -> bool {
        let mut freed = false;
        for table in std::mem::take(&mut self.retired) {
            // Rules that came back have their table back.
            if self.given.values().any(|given| *given == table) {
                continue;
            }
            freed = true;
            let mut map = self.maps.udp_denied.lock();
            for at in self.tables.remove(&table).into_iter().flatten() {
                if let Err(error) = map.remove(&key(table, at)) {
                    tracing::warn!(%at, %error, "removing an entry of UDP rules");
                }
            }
        }
        freed
    }
}

fn key(table: u64, at: SocketAddr) -> UdpKey {
    let at = endpoint(at);
    UdpKey { table, addr: at.addr, port: at.port, pad: [0; 3] }
}
