//! The embedded kernel programs. In: the name of a program, a link that was just made. Out: the program by its type, the link's
//! pin; and why it cannot be.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::ProgramError;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfError};

pub(super) static CGROUP_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-cgroup.o"));
pub(super) static LOOKUP_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-lookup.o"));

/// Why connections cannot be intercepted.
#[derive(Debug, thiserror::Error)]
pub enum InterceptError {
    /// No cgroup v2.
    #[error("cgroup v2 is not mounted")]
    NoCgroup2,
    /// A private cgroup namespace.
    #[error(
        "the mounted cgroup v2 is not the host's hierarchy: run the agent in the host's cgroup namespace"
    )]
    PrivateCgroups,
    /// The pods' root is elsewhere.
    #[error("{} is not below the mount point of cgroup v2", .0.display())]
    NotACgroup(PathBuf),
    /// The pin directory is not on bpffs.
    #[error("{} is not on a BPF file system: mount -t bpf bpf /sys/fs/bpf", .0.display())]
    NotBpffs(PathBuf),
    /// A file operation.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object lacks a map: agent and kernel programs are of different builds.
    #[error("the embedded kernel programs have no map {0}")]
    NoSuchMap(&'static str),
    /// The object lacks a program.
    #[error("the embedded kernel programs have no program {0}")]
    NoSuchProgram(&'static str),
    /// A pinned map of another agent version.
    #[error("the pinned map {0} has another layout: un-enrol the node's pods and remove the pins first")]
    OtherLayout(String),
    /// The embedded object cannot be read.
    #[error("the embedded kernel programs cannot be read: {0}")]
    Object(String),
    /// The loader or the verifier.
    #[error(transparent)]
    Load(#[from] EbpfError),
    /// A map operation.
    #[error(transparent)]
    Map(#[from] aya::maps::MapError),
    /// Loading or attaching a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A link could not be taken or pinned.
    #[error("pinning the link {}: {reason}", .path.display())]
    Link {
        /// Its pin.
        path: PathBuf,
        /// What the kernel said.
        reason: String,
    },
}

impl InterceptError {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The program `name` of `object`, as the type that it must be.
pub(super) fn program<'a, P>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, InterceptError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    Ok(object.program_mut(name).ok_or(InterceptError::NoSuchProgram(name))?.try_into()?)
}

/// Pins a link that was just made.
pub(super) fn pin<E: std::fmt::Display>(link: Result<FdLink, E>, path: &Path) -> Result<(), InterceptError> {
    let failed = |reason: String| InterceptError::Link { path: path.to_owned(), reason };
    let link = link.map_err(|error| failed(error.to_string()))?;
    link.pin(path).map(drop).map_err(|error| failed(format!("{error:?}")))
}
