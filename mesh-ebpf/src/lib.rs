//! What the kernel programs share: maps, addresses, counters.
//!
//! Two objects of the mesh are built from this crate: `mesh-cgroup` (one file a hook in `cgroup/`), attached to the pods' cgroup root,
//! and `mesh-lookup` (`sk_lookup`), loaded once for each pod's network namespace. They meet in the pinned maps of
//! [`maps`]; the layout of everything in them is `mesh-common`'s.

#![no_std]

pub mod address;
pub mod dialled;
pub mod heartbeat;
pub mod maps;

pub use maps::count;

/// The programs cannot panic (the verifier would refuse an endless loop that can be reached); the compiler wants this.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
