//! What this crate's unit tests share.

use std::fs::File;

use rustix::fs::{MemfdFlags, SealFlags};

/// A memfd that cannot shrink.
pub(crate) fn memfd(size: u64) -> File {
    let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(size).unwrap();
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

/// 1 MiB of guest memory at address 0.
#[cfg(test)]
pub(crate) fn memory() -> crate::memory::Memory {
    use crate::memory::{Memory, Sealing};
    let region = vhost::vhost_user::message::VhostUserMemoryRegion::new(0, 1 << 20, 0, 0);
    Memory::map(&[region], vec![memfd(1 << 20)], Sealing::Required).unwrap()
}
