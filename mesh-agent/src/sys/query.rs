//! Which programs of an attach type a cgroup has: `BPF_PROG_QUERY`, which aya does not offer for cgroups.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

const BPF_PROG_QUERY: libc::c_int = 16;

/// `query` in `union bpf_attr`, with all that the kernel may write back to.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// How many programs of `attach_type` are attached to `cgroup` itself, and with which flags (`BPF_F_ALLOW_MULTI`..).
pub fn cgroup_programs(cgroup: &Path, attach_type: u32) -> io::Result<(u32, u32)> {
    let folder = File::open(cgroup)?;
    let target = u32::try_from(folder.as_raw_fd()).map_err(io::Error::other)?;
    let mut attr = Query { target, attach_type, ..Query::default() };
    // SAFETY: `attr` is a prefix of `union bpf_attr` that holds every field which this command reads or writes; its
    // pointers are null with a count of zero, so the kernel writes the count and the flags only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<Query>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((attr.count, attr.attach_flags)) }
}
