//! Disk images: what is behind a path or a descriptor, whether it may be used, and for how long nobody else may.
//!
//! Phase 1 only: never sees a guest. Two programs use it, whoever opens a disk (`volt`, which keeps it over a guest's resets) and
//! whoever writes to it (`vhost-blk-backend`).
//!
//! A writer has a disk alone; readers share one. What keeps others away:
//!
//! * a block device is claimed (O_EXCL): the kernel gives no second claim by whichever node, and none of what is mounted,
//!   swapped to, or a part of another device (open(2));
//! * a lock on the open file, which QEMU's locks meet as well (`lock`);
//! * for a loop device, the same lock on the file behind it; for a file, that no loop device has it (`behind`).
//!
//! Not seen, as nothing tells of it: who opens a file without a lock; a reader by one node of a block device and a writer by
//! another; a loop device that is set up later, or in another place than this process sees; other hosts, where a network's
//! file system does not carry locks.

mod behind;
mod lock;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;

/// Bytes of a sector, the unit of virtio-blk whatever the disk's own (Virtio 1.2, 5.2.4).
pub const SECTOR: u64 = 512;

/// `RAMFS_MAGIC` of linux/magic.h, which libc lacks.
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// Why a disk was refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It could not be opened.
    #[error(
        "Cannot open the disk {name}: check that it exists and that this user may use it (to only read it needs no right to write)"
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
    /// A block device that somebody has claimed.
    #[error(
        "The disk {name} is in use: it is mounted, swapped to, a part of another device (LVM, RAID, loop), or another machine's: unmount or detach it, or end that machine (`lsblk` shows which)"
    )]
    Claimed {
        /// As given.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that a loop device has.
    #[error(
        "The disk {name} is in use by the loop device {device}, which may be mounted: detach it with `losetup --detach {device}`"
    )]
    Loop {
        /// As given.
        name: String,
        /// As it is called below /dev.
        device: String,
    },
    /// A file of huge pages.
    #[error("The disk {0} is on hugetlbfs, whose files cannot be written to: copy it to a disk or to tmpfs")]
    Huge(String),
    /// Somebody else uses it.
    #[error(
        "The disk {0} is in use by another process (it holds a lock on it): end the other user, or let all of them only read"
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

/// A disk that is checked, and that nobody else writes to. That holds as long as the open files, whoever has them.
#[derive(Debug)]
pub struct Disk {
    /// The image.
    pub file: File,
    /// Its size.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// What only keeps others away, and is to be kept as long as `file`.
    pub guards: Vec<File>,
    /// Bytes of memory that use of the disk may take, as its file system keeps all content there: they are charged to whoever
    /// uses it.
    pub memory: u64,
}

impl Disk {
    /// Opens a disk for one user: claims and locks it.
    ///
    /// # Errors
    /// If it is no disk, or somebody has it.
    pub fn open(path: &Path, read_only: bool) -> Result<Disk, DiskError> {
        let name = path.display().to_string();
        let open = |flags| File::options().read(true).write(!read_only).custom_flags(flags).open(path);
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::EBUSY) => DiskError::Claimed { name: name.clone(), source },
            _ => DiskError::Open { name: name.clone(), source },
        };
        let is_device = |file: &File| file.metadata().is_ok_and(|found| found.file_type().is_block_device());
        // Where it is no block device the flag means nothing that is defined.
        let device = path.metadata().is_ok_and(|found| found.file_type().is_block_device());
        let file = match (device, read_only) {
            (true, false) => open(libc::O_EXCL).map_err(failed)?,
            (true, true) => {
                unclaimed(open).map_err(failed)?;
                open(0).map_err(failed)?
            }
            (false, _) => open(0).map_err(failed)?,
        };
        if is_device(&file) != device {
            return Err(DiskError::Kind(name));
        }
        let mut disk = Disk::adopt(name.clone(), file, read_only)?;
        let look = |source| DiskError::Look { name: name.clone(), source };
        let metadata = disk.file.metadata().map_err(look)?;
        let mut keeping = Keeping::of(&disk.file, read_only).map_err(look)?;
        if keeping == Keeping::Huge {
            return Err(DiskError::Huge(name));
        }
        if !device {
            if let Some(device) = behind::device_of(&metadata, read_only) {
                return Err(DiskError::Loop { name, device });
            }
        // What cannot be opened cannot be told.
        } else if let Some(behind) = behind::file_of(&metadata, read_only) {
            lock(&behind, &name, read_only)?;
            keeping = Keeping::of(&behind, read_only).map_err(look)?;
            disk.guards.push(behind);
        }
        if keeping == Keeping::Memory {
            // What a file has already is charged to who has written it.
            let had = if device { 0 } else { metadata.blocks() };
            disk.memory = disk.sectors.saturating_sub(had) * SECTOR;
        }
        Ok(disk)
    }

    /// Takes a disk that somebody else has opened, who has claimed it if it is a block device, and keeps what is behind it. Opens
    /// nothing. `name` is for messages.
    ///
    /// # Errors
    /// If it is no disk, or somebody has it locked.
    pub fn adopt(name: String, file: File, read_only: bool) -> Result<Disk, DiskError> {
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
        lock(&file, &name, read_only)?;
        Ok(Disk { file, sectors: size / SECTOR, read_only, guards: Vec::new(), memory: 0 })
    }
}

fn lock(file: &File, name: &str, read_only: bool) -> Result<(), DiskError> {
    lock::take(file, read_only).map_err(|source| match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => DiskError::Locked(name.to_owned()),
        _ => DiskError::Lock { name: name.to_owned(), source },
    })
}

/// Where a file's content is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// On something; its pages in memory can be dropped.
    Elsewhere,
    /// In memory, of which use takes more.
    Memory,
    /// In huge pages, which are not written to by a system call.
    Huge,
}

impl Keeping {
    /// By the file system's type (statfs(2)).
    fn of(file: impl AsFd, read_only: bool) -> io::Result<Keeping> {
        // A memfd is a file of tmpfs. There, reading what was never written takes no page; in ramfs it does.
        Ok(match rustix::fs::fstatfs(file)?.f_type {
            libc::TMPFS_MAGIC if !read_only => Keeping::Memory,
            RAMFS_MAGIC => Keeping::Memory,
            libc::HUGETLBFS_MAGIC if !read_only => Keeping::Huge,
            _ => Keeping::Elsewhere,
        })
    }
}

/// Whether what is written to a file is kept in memory, and charged to whoever writes it.
///
/// # Errors
/// If its file system cannot be asked.
pub fn is_in_memory(file: impl AsFd) -> io::Result<bool> {
    Ok(Keeping::of(file, false)? == Keeping::Memory)
}

/// Whether nobody has claimed a block device: by a claim that is given back at once. Two who ask at the same time are in each
/// other's way for a moment.
fn unclaimed(open: impl Fn(i32) -> io::Result<File>) -> io::Result<()> {
    for _ in 0..5 {
        match open(libc::O_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.map(drop),
        }
    }
    open(libc::O_EXCL).map(drop)
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

/// The device's end. Moves the file's offset, which nothing here uses.
fn block_device_size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}
