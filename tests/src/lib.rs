//! What the lab's driver, the host tests and `xtask` share: the archive writer, Volt as its users
//! run it, processes with a console, the blocks of the documentation, and the check that nothing was left behind.

pub mod console;
pub mod cpio;
pub mod demo;
pub mod docs;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod escape;
pub mod leftovers;
pub mod namespaces;
pub mod python;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod syscalls;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod tracee;
pub mod volt;
pub mod workspace;
