//! Looks at a file that somebody handed in, without waiting for whoever serves its file system: a process (FUSE) or another host (NFS), which may
//! never answer. Then neither fstat(2) nor fstatfs(2) nor read(2) comes back, and the thread is lost for all others.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxFlags};

/// What the kernel knows of a file by itself, and whether its content is this host's: in memory, or on a block device. Of other file systems, those
/// that span devices (Btrfs) or stand on others (overlayfs) among them, that cannot be told without asking them.
///
/// # Errors
/// What the kernel says.
pub fn look_at(file: impl AsFd) -> io::Result<(Statx, bool)> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&file, "", flags, StatxFlags::BASIC_STATS)?;
    // Only a file in memory has seals; it has no device of its own. Network file systems and FUSE have none either.
    let in_memory = rustix::fs::fcntl_get_seals(&file).is_ok();
    Ok((stat, in_memory || stat.stx_dev_major != 0))
}
