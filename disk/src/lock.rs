//! Locks on an open file description (fcntl(2), F_OFD_SETLK), for as long as any copy of it is open.
//!
//! A writer locks the whole file, so that nobody else has any lock on it. Readers share it, with each other and with readers
//! that are QEMU (docs/system/qemu-block-drivers, "Disk image file locking"; block/file-posix.c): there, a user holds a
//! shared lock on byte 100 + n for each permission n that it has, and on 200 + n for each that nobody else may have, and looks
//! whether somebody holds the opposite. QEMU's locks are all shared ones, so that a reader has to look as well.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// First byte of those for permissions that one has.
const HAS: i64 = 100;
/// First byte of those for permissions that nobody else may have.
const FORBIDS: i64 = 200;
/// What comes after the bytes that QEMU may use.
const AFTER: i64 = 300;
/// Permissions: to read what is consistent, to write, to resize.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes the locks of a reader or a writer.
///
/// # Errors
/// EAGAIN or EACCES if somebody has one that does not go with them.
pub fn take(file: &File, read_only: bool) -> io::Result<()> {
    if !read_only {
        return set(file, libc::F_WRLCK, 0, 0);
    }
    // Those first, then the look: of two who come at once at least one sees the other.
    for (start, len) in [(0, HAS), (AFTER, 0), (HAS + READ, 1), (FORBIDS + WRITE, 1), (FORBIDS + RESIZE, 1)] {
        set(file, libc::F_RDLCK, start, len)?;
    }
    for byte in [FORBIDS + READ, HAS + WRITE, HAS + RESIZE] {
        if is_locked(file, byte)? {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
    }
    Ok(())
}

/// To the end of the file, wherever that is, where `len` is 0.
fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: &File, kind: i32, start: i64, len: i64) -> io::Result<()> {
    let lock = range(kind, start, len);
    // SAFETY: `lock` is a valid flock for the time of the call, which is what F_OFD_SETLK reads.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether anybody else has a lock of any kind on that byte.
fn is_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = range(libc::F_WRLCK, byte, 1);
    // SAFETY: `lock` is a valid flock for the time of the call, which is what F_OFD_GETLK reads and writes.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if answer == 0 { Ok(i32::from(lock.l_type) != libc::F_UNLCK) } else { Err(io::Error::last_os_error()) }
}
