//! The disk image: what is behind the descriptor, whether it may be used, and for how long nobody else may.
//!
//! Phase 1 only. Never sees the guest.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use rustix::fs::OFlags;

/// Bytes of a sector, the unit of virtio-blk whatever the disk's own (Virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// Why a disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It could not be opened.
    #[error(
        "Cannot open the disk {name}: check that it exists and that this user may use it (--read-only needs no right to write)"
    )]
    Open {
        /// As given.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its size is no number of sectors.
    #[error(
        "The disk {name} has {size} bytes, which is not a multiple of 512: it is truncated or no raw image; check it, then pad it with `truncate --size %512`"
    )]
    OddSize {
        /// As given.
        name: String,
        /// Bytes.
        size: u64,
    },
    /// It is empty.
    #[error("The disk {0} is empty: give it a size with `truncate --size`")]
    Empty(String),
    /// It is a directory, pipe or something else.
    #[error("The disk {0} is neither a regular file nor a block device")]
    Kind(String),
    /// The descriptor was opened in a way that cannot serve.
    #[error("The disk {name} is open {how}")]
    Mode {
        /// As given.
        name: String,
        /// How it was opened, and what to do.
        how: &'static str,
    },
    /// Somebody else uses it.
    #[error(
        "The disk {0} is in use by another process (it holds a lock on it): end the other user, or share it with --read-only on both sides"
    )]
    Locked(String),
    /// The file system does not lock.
    #[error("Cannot lock the disk {name}: its file system has to support locks, or two machines could write to it")]
    Lock {
        /// As given.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its facts could not be asked for.
    #[error("Cannot look at the disk {name}")]
    Look {
        /// As given.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A disk that is checked and locked. The lock lives as long as the open file.
#[derive(Debug)]
pub struct Disk {
    /// The image.
    pub file: File,
    /// Its size.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
}

impl Disk {
    /// Checks and locks an open disk. `name` is for messages.
    pub fn new(name: String, file: File, read_only: bool) -> Result<Disk, DiskError> {
        let look = |source| DiskError::Look { name: name.clone(), source };
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| look(errno.into()))?;
        if let Some(how) = wrong_mode(flags, read_only) {
            return Err(DiskError::Mode { name, how });
        }
        let metadata = file.metadata().map_err(look)?;
        let size = if metadata.is_file() {
            metadata.len()
        } else if metadata.file_type().is_block_device() {
            block_device_size(&file).map_err(look)?
        } else {
            return Err(DiskError::Kind(name));
        };
        if size == 0 {
            return Err(DiskError::Empty(name));
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(DiskError::OddSize { name, size });
        }
        lock(&file, read_only).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::Locked(name),
            _ => DiskError::Lock { name, source },
        })?;
        Ok(Disk { file, sectors: size / SECTOR, read_only })
    }
}

/// What is wrong with the way the disk was opened.
fn wrong_mode(flags: OFlags, read_only: bool) -> Option<&'static str> {
    let mode = flags & OFlags::RWMODE;
    if flags.contains(OFlags::PATH) {
        return Some("as a path only (O_PATH): open it for reading and writing");
    }
    if mode == OFlags::WRONLY {
        return Some("for writing only: open it for reading as well");
    }
    if mode == OFlags::RDONLY && !read_only {
        return Some("for reading only: pass --read-only, or open it for writing too");
    }
    if flags.contains(OFlags::APPEND) {
        return Some("for appending (O_APPEND), which would put every write at its end: open it without");
    }
    if flags.contains(OFlags::DIRECT) {
        return Some("with O_DIRECT, which a guest's buffers need not be aligned for: open it without");
    }
    None
}

/// Takes a lock on the whole open file description, for as long as any copy of it is open: exclusive for a writer, so
/// that two machines cannot use one image, shared for a reader, so that several can.
fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end of the file, wherever that is
        l_pid: 0,
    };
    // SAFETY: `lock` is a valid flock for the time of the call, which is what F_OFD_SETLK reads.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The device's end. Moves the file's offset, which nothing here uses.
fn block_device_size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
