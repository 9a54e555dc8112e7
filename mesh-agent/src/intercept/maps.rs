//! The pinned maps, as the agent uses them. In: the loaded object. Out: typed, locked handles; every entry is written and
//! read through here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockMap};
use mesh_common::{Addr, ClientKey, Endpoint, Held, OrigKey, Pod, PortKey, REASONS, SteeredKey, UdpKey};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use socket2::Socket;

use super::object::InterceptError;

/// `BPF_NOEXIST`: the key must be free.
const NO_EXIST: u64 = 1;

/// Handles of the maps.
pub(super) struct Maps {
    pub(super) pods: Mutex<HashMap<MapData, u64, Pod>>,
    pub(super) originals: Mutex<HashMap<MapData, OrigKey, Endpoint>>,
    pub(super) held: Mutex<HashMap<MapData, OrigKey, Held>>,
    pub(super) clients: Mutex<HashMap<MapData, ClientKey, Endpoint>>,
    pub(super) unserved: Mutex<HashMap<MapData, Endpoint, u8>>,
    pub(super) agents: Mutex<HashMap<MapData, u64, u8>>,
    pub(super) listening: Mutex<HashMap<MapData, PortKey, u64>>,
    pub(super) seeded: Mutex<HashMap<MapData, PortKey, u8>>,
    pub(super) steered: Mutex<HashMap<MapData, SteeredKey, u32>>,
    pub(super) udp_tables: Mutex<Array<MapData, u64>>,
    pub(super) udp_denied: Mutex<HashMap<MapData, UdpKey, u8>>,
    listeners: Mutex<SockMap<MapData>>,
    /// The kernel's id of the map of listeners.
    pub(super) listeners_id: u32,
    reasons: PerCpuArray<MapData, u64>,
    heartbeat: Mutex<Array<MapData, u64>>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of the two objects, which were loaded with them pinned.
    pub(super) fn take(object: &mut Ebpf, lookup: &mut Ebpf) -> Result<Self, InterceptError> {
        let listeners = taken(lookup, "LISTENERS")?;
        let listeners_id = match &listeners {
            Map::SockMap(data) => data.info()?.id(),
            _ => return Err(InterceptError::OtherLayout("LISTENERS".to_owned())),
        };
        Ok(Self {
            listeners_id,
            pods: Mutex::new(taken(object, "PODS")?.try_into()?),
            originals: Mutex::new(taken(object, "ORIG_DST")?.try_into()?),
            held: Mutex::new(taken(object, "HELD")?.try_into()?),
            clients: Mutex::new(taken(object, "CLIENTS")?.try_into()?),
            unserved: Mutex::new(taken(object, "UNSERVED")?.try_into()?),
            agents: Mutex::new(taken(object, "AGENTS")?.try_into()?),
            listening: Mutex::new(taken(object, "LISTENING")?.try_into()?),
            seeded: Mutex::new(taken(object, "SEEDED")?.try_into()?),
            steered: Mutex::new(taken(lookup, "STEERED")?.try_into()?),
            udp_tables: Mutex::new(taken(object, "UDP_TABLES")?.try_into()?),
            udp_denied: Mutex::new(taken(object, "UDP_DENIED")?.try_into()?),
            listeners: Mutex::new(listeners.try_into()?),
            reasons: taken(object, "REASONS")?.try_into()?,
            heartbeat: Mutex::new(taken(object, "HEARTBEAT")?.try_into()?),
        })
    }

    /// Forgets the agents before `own`: none of their listeners is in use.
    pub(super) fn forget_agents(&self, own: Option<u64>) {
        let mut agents = self.agents.lock();
        let others: Vec<u64> = agents.keys().map_while(Result::ok).filter(|id| Some(*id) != own).collect();
        for id in others {
            // Gone is what is wanted.
            let _gone = agents.remove(&id);
        }
    }

    /// Puts a listener where the kernel finds it.
    pub(super) fn set_listener(&self, slot: u32, listener: &Socket) -> Result<(), MapError> {
        self.listeners.lock().set(slot, listener, 0)
    }

    /// Empties a listener slot.
    pub(super) fn clear_listener(&self, slot: u32) {
        // An empty slot cannot be emptied, and a closed listener has left by itself: both are what is wanted.
        let _already_empty = self.listeners.lock().clear_index(&slot);
    }

    /// Removes and returns the original destination under `key`.
    pub(super) fn take_original(&self, key: &OrigKey) -> Option<Endpoint> {
        let mut originals = self.originals.lock();
        let found = originals.get(key, 0).ok()?;
        // One-shot: whoever removes it has it.
        originals.remove(key).ok()?;
        Some(found)
    }

    /// What the kernel wrote down of a connection whose SYN it holds; `None`: its client waits no longer.
    pub(super) fn held(&self, key: &OrigKey) -> Option<Held> {
        self.held.lock().get(key, 0).ok()
    }

    /// The keys of every connection that is held.
    pub(super) fn all_held(&self) -> Vec<OrigKey> {
        self.held.lock().keys().map_while(Result::ok).collect()
    }

    /// Records the true client of a connection that is about to be dialled; `Ok(false)` when the key is taken.
    pub(super) fn put_client(&self, key: &ClientKey, client: SocketAddr) -> Result<bool, MapError> {
        match self.clients.lock().insert(key, endpoint(client), NO_EXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a client record, if it is still there.
    pub(super) fn remove_client(&self, key: &ClientKey) {
        // The kernel may have moved it to the application's socket.
        let _moved = self.clients.lock().remove(key);
    }

    /// Gives a sign of life.
    pub(super) fn beat(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let nanoseconds = now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs();
        if let Err(error) = self.heartbeat.lock().set(0, nanoseconds, 0) {
            tracing::error!(%error, "the kernel was given no sign of life");
        }
    }

    /// How often each outcome was counted, over all CPUs.
    pub(super) fn reasons(&self) -> Vec<(&'static str, u64)> {
        let total = |index: u32| self.reasons.get(&index, 0).map_or(0, |values| values.iter().sum());
        REASONS.iter().map(|(reason, name)| (*name, total(*reason as u32))).collect()
    }
}

/// Takes a map out of `object`; [`super::pins::check`] has seen that the pinned one has this agent's layout.
pub(super) fn taken(object: &mut Ebpf, name: &'static str) -> Result<Map, InterceptError> {
    object.take_map(name).ok_or(InterceptError::NoSuchMap(name))
}

/// An address and port as the maps have them.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { addr: addr(address.ip()), port: address.port(), pad: 0 }
}

/// The address and port of a map entry.
pub(super) fn socket_addr(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(endpoint.addr).to_canonical(), endpoint.port)
}

/// An address as the maps have it.
pub(super) fn addr(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => mesh_common::mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_maps_form() {
        for text in ["10.0.0.1:80", "[2001:db8::1]:443", "127.64.1.2:0"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(socket_addr(&endpoint(address)), address);
        }
    }

    #[test]
    fn a_mapped_address_comes_back_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(socket_addr(&endpoint(mapped)), "10.0.0.1:80".parse().unwrap());
    }
}
