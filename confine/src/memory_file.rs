//! Memory files that nobody can execute as a program.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;

/// A new memory file (memfd_create(2)), empty, close-on-exec and open to seals. From Linux 6.3 on it cannot be executed,
/// and that cannot be changed. `name` is seen in /proc.
///
/// # Errors
///
/// What the kernel says: memory or descriptors have run out.
pub fn memory_file(name: &str) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // The kernel does not know that flag.
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        made => Ok(made?),
    }
}

/// Whether this kernel knows memory files that cannot be executed.
pub(crate) fn is_known() -> bool {
    !matches!(memfd_create("", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL), Err(Errno::INVAL))
}
