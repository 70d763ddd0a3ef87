//! The lives of leases: one empty file each, locked (flock(2)) through the open file that its holder was given. The kernel keeps that lock as
//! long as any process has that open file, so that a look at it says whether the holder is there, whatever became of connections and of
//! this process. Touches these files alone, in the state directory; sees no client, no time and no database.
//!
//! A file is named for the lease and its address: a database that was put back in the place of a newer one knows nothing of the lease, and who
//! has its life goes on using that address.
//!
//! What a holder can do with its descriptor costs nobody but itself: it cannot write to the file, and all that it can lock, unlock or
//! ask notice of is its own. No call here waits for one.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::store::LeaseId;

const PREFIX: &str = "life-";

/// What is known of the files in one directory.
pub struct Lives {
    folder: PathBuf,
    files: HashMap<LeaseId, (File, Ipv4Addr)>,
    leases: HashMap<File, LeaseId>,
}

/// Which file it is, by device and inode.
type File = (u64, u64);

/// The leases that `folder` has files of, and their addresses, in a process that may still list it.
///
/// # Errors
/// Where it cannot be listed.
pub fn found(folder: &Path) -> io::Result<Vec<(LeaseId, Ipv4Addr)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        found.extend(entry?.file_name().to_str().and_then(read_name));
    }
    Ok(found)
}

fn name(lease: LeaseId, address: Ipv4Addr) -> String {
    format!("{PREFIX}{lease}-{address}")
}

fn read_name(file: &str) -> Option<(LeaseId, Ipv4Addr)> {
    let (lease, address) = file.strip_prefix(PREFIX)?.split_once('-')?;
    let read = (lease.parse().ok()?, address.parse().ok()?);
    (name(read.0, read.1) == file).then_some(read)
}

impl Lives {
    /// Of no lease yet; see [`Lives::find`].
    pub fn new(folder: PathBuf) -> Lives {
        Lives { folder, files: HashMap::new(), leases: HashMap::new() }
    }

    /// Makes the life of a lease of that address and gives its one open file, locked. What was its life before is no more.
    ///
    /// # Errors
    /// Where the file cannot be made or locked; the lease then has no life.
    pub fn make(&mut self, lease: LeaseId, address: Ipv4Addr) -> io::Result<OwnedFd> {
        self.remove(lease, address)?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let life = rustix::fs::openat(CWD, self.path(lease, address), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&life, FlockOperation::NonBlockingLockExclusive)?;
        self.know(lease, address, file_of(&life)?);
        Ok(life)
    }

    /// Looks whether a lease of the last run has a life, and whether somebody has it.
    pub fn find(&mut self, lease: LeaseId, address: Ipv4Addr) -> bool {
        match rustix::fs::statat(CWD, self.path(lease, address), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => self.know(lease, address, (stat.st_dev, stat.st_ino)),
            Err(Errno::NOENT) => return false,
            Err(_) => self.know(lease, address, (0, 0)),
        }
        self.is_held(lease)
    }

    /// Whether a lease has a life, had by somebody or not.
    pub fn has(&self, lease: LeaseId) -> bool {
        self.files.contains_key(&lease)
    }

    /// The address of a lease that has a life.
    pub fn address(&self, lease: LeaseId) -> Option<Ipv4Addr> {
        self.files.get(&lease).map(|(_, address)| *address)
    }

    /// Whether somebody has the life of a lease. Where that cannot be told, it is taken for so: an address that is kept too long costs less
    /// than one that is given twice.
    pub fn is_held(&self, lease: LeaseId) -> bool {
        self.address(lease).is_some_and(|address| match self.open(lease, address) {
            Ok(probe) => is_locked(&probe),
            Err(errno) => errno != Errno::NOENT,
        })
    }

    /// The lease whose life a stranger's descriptor is: that very open file, or a duplicate of it.
    pub fn lease_of(&self, life: &OwnedFd) -> Option<LeaseId> {
        // Nothing is done through a descriptor that might be of another file: on some file systems any call waits for a stranger.
        let lease = *self.leases.get(&file_of(life).ok()?)?;
        // Where nobody has the lock, the next line would give it to whoever opened the file anew.
        let locked = self.is_held(lease);
        let mine = rustix::fs::flock(life, FlockOperation::NonBlockingLockExclusive).is_ok();
        (locked && mine).then_some(lease)
    }

    /// Removes the life of a lease that has ended, or has a new one.
    ///
    /// # Errors
    /// Where the file stays.
    pub fn end(&mut self, lease: LeaseId) -> io::Result<()> {
        self.address(lease).map_or(Ok(()), |address| self.remove(lease, address))
    }

    fn remove(&mut self, lease: LeaseId, address: Ipv4Addr) -> io::Result<()> {
        if let Some((file, _)) = self.files.remove(&lease) {
            self.leases.remove(&file);
        }
        match std::fs::remove_file(self.path(lease, address)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn know(&mut self, lease: LeaseId, address: Ipv4Addr, file: File) {
        self.files.insert(lease, (file, address));
        self.leases.insert(file, lease);
    }

    /// Opens a life to look at it. Not to wait for a lease of the other kind (fcntl(2), F_SETLEASE), which root may have on any file.
    fn open(&self, lease: LeaseId, address: Ipv4Addr) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, self.path(lease, address), flags, Mode::empty())
    }

    fn path(&self, lease: LeaseId, address: Ipv4Addr) -> PathBuf {
        self.folder.join(name(lease, address))
    }
}

/// By what is known already: a file system that asks a stranger's process (FUSE) is not waited for.
fn file_of(fd: &impl AsFd) -> rustix::io::Result<File> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let Stat { st_dev, st_ino, .. } = rustix::fs::statat(fd, c"", flags)?;
    Ok((st_dev, st_ino))
}

/// Whether another open file has the lock. If none has, `probe` has it until it is closed.
fn is_locked(probe: &OwnedFd) -> bool {
    rustix::fs::flock(probe, FlockOperation::NonBlockingLockExclusive).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// fcntl(2), Linux.
    const F_SETSIG: libc::c_int = 10;
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 2);

    fn lives() -> (Lives, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Lives::new(dir.path().into()), dir)
    }

    #[test]
    fn a_life_is_held_until_the_last_duplicate_is_closed() {
        let (mut lives, dir) = lives();
        assert!(!lives.is_held(1));
        let life = lives.make(1, ADDRESS).unwrap();
        let copy = life.try_clone().unwrap();
        drop(life);
        assert!(lives.is_held(1) && lives.has(1));
        assert_eq!(lives.lease_of(&copy), Some(1));
        // As a service that was restarted finds it.
        let mut again = Lives::new(dir.path().into());
        assert!(again.find(1, ADDRESS) && !again.find(2, ADDRESS));
        assert_eq!(again.lease_of(&copy), Some(1));
        drop(copy);
        assert!(!lives.is_held(1) && lives.has(1) && !again.find(1, ADDRESS));
    }

    #[test]
    fn only_the_open_file_that_has_the_lock_proves_a_lease() {
        let (mut lives, dir) = lives();
        let life = lives.make(7, ADDRESS).unwrap();
        let anew = || OwnedFd::from(std::fs::File::open(dir.path().join("life-7-10.42.0.2")).unwrap());
        let (pipe, _) = std::io::pipe().unwrap();
        let other = tempfile::tempfile().unwrap();
        for wrong in [anew(), pipe.into(), other.into()] {
            assert_eq!(lives.lease_of(&wrong), None);
        }
        assert_eq!(lives.lease_of(&life), Some(7), "what was tried in vain took nothing");
        // Unlocked, or with its holder gone, it proves nothing, and nobody else can take its place.
        rustix::fs::flock(&life, FlockOperation::Unlock).unwrap();
        assert_eq!(lives.lease_of(&anew()), None);
        assert_eq!(lives.lease_of(&life), None);
        drop(life);
        assert_eq!(lives.lease_of(&anew()), None);
        let newer = lives.make(7, ADDRESS).unwrap();
        assert_eq!(lives.lease_of(&newer), Some(7));
    }

    #[test]
    fn a_new_life_ends_the_one_before_and_an_ended_one_proves_nothing() {
        let (mut lives, dir) = lives();
        let first = lives.make(3, ADDRESS).unwrap();
        let second = lives.make(3, ADDRESS).unwrap();
        assert_eq!(lives.lease_of(&first), None);
        assert_eq!(lives.lease_of(&second), Some(3));
        assert_eq!(found(dir.path()).unwrap(), [(3, ADDRESS)]);
        lives.end(3).unwrap();
        lives.end(3).unwrap();
        assert_eq!(lives.lease_of(&second), None);
        assert!(!lives.is_held(3) && found(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn the_descriptor_can_be_read_from_and_nothing_else() {
        let (mut lives, _dir) = lives();
        let life = lives.make(1, ADDRESS).unwrap();
        assert_eq!(rustix::io::write(&life, b"x"), Err(Errno::BADF));
        assert_eq!(rustix::fs::ftruncate(&life, 1), Err(Errno::INVAL));
        // A lease of the kernel's own kind, which makes whoever opens the file wait up to 45 s; its holder is told by a signal.
        for (command, argument) in [(F_SETSIG, libc::SIGCHLD), (libc::F_SETLEASE, libc::F_WRLCK)] {
            // SAFETY: both commands take an integer.
            let done = unsafe { libc::fcntl(life.as_raw_fd(), command, argument) };
            assert_eq!(done, 0, "of one's own file anybody may take one");
        }
        let begun = std::time::Instant::now();
        assert!(lives.is_held(1));
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "it waited for the holder");
    }
}
