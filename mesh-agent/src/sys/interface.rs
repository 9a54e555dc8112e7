//! The addresses of a network namespace: which interface has a pod's (`getifaddrs(3)`), and which one a connection comes from.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use super::{NetNs, within};

impl NetNs {
    /// The index of the interface that has all of `addresses`; `None` when no single one has.
    pub fn interface_of(&self, addresses: &[IpAddr]) -> io::Result<Option<u32>> {
        let held = within(self.file.as_fd(), interface_addresses)??;
        let of =
            |address: &IpAddr| held.iter().find(|(_, own)| own == address).map_or(0, |(index, _)| *index);
        let indexes: HashSet<u32> = addresses.iter().map(of).collect();
        Ok(match indexes.iter().next() {
            Some(index) if indexes.len() == 1 && *index != 0 => Some(*index),
            _ => None,
        })
    }

    /// Every address that this namespace has.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let held = within(self.file.as_fd(), interface_addresses)??;
        Ok(held.into_iter().map(|(_, address)| address).collect())
    }

    /// The address that the kernel would have a connection to `to` come from; nothing is sent.
    pub fn source(&self, to: IpAddr) -> io::Result<IpAddr> {
        let any: IpAddr =
            if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = within(self.file.as_fd(), || UdpSocket::bind(SocketAddr::new(any, 0)))??;
        // Any port: a UDP socket that is connected has chosen its route.
        socket.connect(SocketAddr::new(to, 9))?;
        Ok(socket.local_addr()?.ip().to_canonical())
    }
}

/// Every address of the calling thread's network namespace, with its interface's index.
fn interface_addresses() -> io::Result<Vec<(u32, IpAddr)>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the kernel's answer is written to `list`, which `freeifaddrs` takes back below.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: an entry of the list, which lives until `freeifaddrs`; its name is a C string.
        let (entry, index) = unsafe { (&*next, libc::if_nametoindex((*next).ifa_name)) };
        // SAFETY: null, or the address of a socket-address structure that its family names.
        if let Some(address) = unsafe { address(entry.ifa_addr) } {
            found.push((index, address));
        }
        next = entry.ifa_next;
    }
    // SAFETY: the list is the one that `getifaddrs` made; nothing refers to it any more.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// The address in a socket-address structure of the Internet families.
///
/// # Safety
/// `from` is null or points to a structure of the kind that its family names.
unsafe fn address(from: *const libc::sockaddr) -> Option<IpAddr> {
    if from.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise; the structures need no more alignment than this one is read with.
    unsafe {
        match i32::from((*from).sa_family) {
            libc::AF_INET => {
                let ip4 = from.cast::<libc::sockaddr_in>().read_unaligned();
                Some(Ipv4Addr::from(u32::from_be(ip4.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let ip6 = from.cast::<libc::sockaddr_in6>().read_unaligned();
                Some(Ipv6Addr::from(ip6.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}
