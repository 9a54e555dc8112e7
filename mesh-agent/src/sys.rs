//! Every system call that needs `unsafe` or enters another network namespace, and nothing else.
//!
//! In: descriptors, paths and sockets. Out: sockets that belong to a pod's network namespace, cookies, and the one
//! `bpf(2)` operation on pinned links that aya keeps to itself.

#![expect(unsafe_code, reason = "this is the one module of the agent that may")]

mod interface;
mod query;
mod tcp;

use std::cell::OnceCell;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use query::cgroup_programs;
pub use tcp::{acknowledged_beyond, bytes_written, ended_unread, probe_peer};

const SO_NETNS_COOKIE: libc::c_int = 71;
const IP_BIND_ADDRESS_NO_PORT: libc::c_int = 24;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// How long a silent peer node is waited for.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);

/// An open network namespace.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    /// What the kernel's programs know it by.
    pub cookie: u64,
    /// Its inode: `net:[inode]` in `/proc/PID/ns/net`.
    pub inode: u64,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of a process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace behind a file of nsfs (`/proc/PID/ns/net`, or a bind mount of one).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        let socket = within(file.as_fd(), || Socket::new(Domain::IPV4, Type::STREAM, None))??;
        let cookie = netns_cookie(&socket)?;
        Ok(Self { file, cookie, inode })
    }

    /// A non-blocking TCP socket of this namespace. The calling thread is back in its own when this returns.
    pub fn tcp_socket(&self, ipv6: bool) -> io::Result<Socket> {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        within(self.file.as_fd(), || Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)))?
    }

    /// A socket that asks the kernel about this namespace's sockets, and may close them.
    pub fn diag_socket(&self) -> io::Result<OwnedFd> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with, sockopt};
        let make = || {
            let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
            socket_with(kind.0, kind.1, kind.2, Some(netlink::SOCK_DIAG))
        };
        let socket = within(self.file.as_fd(), make)??;
        // The kernel answers at once; an answer that is lost must not hold the thread up.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
        Ok(socket)
    }

    /// A socket that sends whole IP packets in this namespace.
    pub fn raw_socket(&self, ipv6: bool) -> io::Result<Socket> {
        let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
        within(self.file.as_fd(), || Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))))?
    }

    /// Whether `address` is one of this namespace's own.
    pub fn has_address(&self, address: IpAddr) -> io::Result<bool> {
        let socket = self.tcp_socket(address.is_ipv6())?;
        match socket.bind(&SocketAddr::new(address, 0).into()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

thread_local! {
    /// The thread's own network namespace, opened before it first enters another.
    static OWN: OnceCell<File> = const { OnceCell::new() };
}

/// Puts the thread back into its own namespace, whatever happens in between, or ends the process: a thread that stays
/// behind would open every further socket as another pod.
struct Restore<'a>(BorrowedFd<'a>);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        if move_into_link_name_space(self.0, Some(LinkNameSpaceType::Network)).is_err() {
            std::process::abort();
        }
    }
}

/// Runs `work` in another network namespace. Synchronous, so that no other task of the thread runs in there.
fn within<T>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T) -> io::Result<T> {
    OWN.with(|cell| {
        if cell.get().is_none() {
            // Nobody else can have set it: the cell is this thread's.
            let _unset = cell.set(File::open("/proc/thread-self/ns/net")?);
        }
        let own =
            cell.get().ok_or_else(|| io::Error::other("the thread's own network namespace is not open"))?;
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        let restore = Restore(own.as_fd());
        let result = work();
        drop(restore);
        Ok(result)
    })
}

/// The cookie of the network namespace that a socket belongs to.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is a u64 and `length` says so.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Lets `bind()` to an address leave the port to `connect()`, which can then share it among destinations.
pub fn bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an int and the length says so.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_IP,
            IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Settings of a connection to another node: a peer that is gone is noticed within 20 s, idle or not.
pub fn watch_peer(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let keepalive =
        TcpKeepalive::new().with_time(PEER_TIMEOUT / 2).with_interval(PEER_TIMEOUT / 10).with_retries(5);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    socket.set_tcp_nodelay(true)
}

/// Settings of a connection that faces an application: small writes go out at once, and an out-of-band byte stays in
/// the stream.
pub fn face_application(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_nodelay(true)
}

/// Makes the close of `socket` a RST.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Lets the calling task's runtime wait for events of a ring.
pub fn watch_ring(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring owns its map's descriptor, gives the same one as long as it lives, and closes it when it goes.
    unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }.map_err(io::Error::from)
}

/// Lets the calling task's runtime wait for connections to a non-blocking listener.
pub fn watch_listener(listener: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    // SAFETY: the standard library's listener owns one descriptor for as long as it lives.
    unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }.map_err(io::Error::from)
}

/// The id of a cgroup, as the kernel's programs see it.
pub fn cgroup_id(cgroup: &Path) -> io::Result<u64> {
    // On cgroup v2 the id is the inode number (64-bit kernels).
    Ok(std::fs::metadata(cgroup)?.ino())
}

#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link: RawFd,
    program: RawFd,
    flags: u32,
    old_program: RawFd,
}

#[repr(C)]
struct LinkDetach {
    link: RawFd,
}

#[repr(C)]
struct InfoByFd {
    fd: RawFd,
    length: u32,
    info: u64,
}

/// The first fields of `bpf_link_info` and, in its union, what a cgroup link adds.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    target: u64,
    attach_type: u32,
    pad2: u32,
}

/// A link that was pinned by this agent or an earlier one.
#[derive(Debug)]
pub struct PinnedLink(OwnedFd);

impl PinnedLink {
    /// Opens the pin; `Ok(None)` when there is none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let attr = ObjGet { path: name.as_ptr() as u64, fd: 0, flags: 0 };
        match bpf(BPF_OBJ_GET, &attr) {
            // SAFETY: the kernel just gave us this descriptor.
            Ok(fd) => Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the link's program without a moment in between.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let attr =
            LinkUpdate { link: self.0.as_raw_fd(), program: program.as_raw_fd(), flags: 0, old_program: 0 };
        bpf(BPF_LINK_UPDATE, &attr).map(drop)
    }

    /// Takes the program off at once. The pin stays.
    pub fn detach(&self) -> io::Result<()> {
        let attr = LinkDetach { link: self.0.as_raw_fd() };
        bpf(BPF_LINK_DETACH, &attr).map(drop)
    }

    /// The id of the cgroup that a cgroup link is attached to; 0 when that cgroup is gone.
    pub fn cgroup_id(&self) -> io::Result<u64> {
        Ok(self.info()?.target)
    }

    /// The inode of the network namespace that a netns link is attached to; 0 when that namespace is gone.
    pub fn netns_inode(&self) -> io::Result<u64> {
        // The union's first field is 32 bits wide for this kind.
        Ok(self.info()?.target & u64::from(u32::MAX))
    }

    fn info(&self) -> io::Result<LinkInfo> {
        let mut info = LinkInfo::default();
        let attr = InfoByFd {
            fd: self.0.as_raw_fd(),
            length: size_of::<LinkInfo>() as u32,
            info: (&raw mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &attr)?;
        Ok(info)
    }
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<RawFd> {
    // SAFETY: `attr` is the prefix of `union bpf_attr` that `command` reads, its pointers live until the call returns,
    // and the kernel takes the rest of the union as zero.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result >= 0 { Ok(result as RawFd) } else { Err(io::Error::last_os_error()) }
}
