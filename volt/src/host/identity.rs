//! Who a VM's processes, and the services that root starts, are: a user each, out of a range that the host gives.
//!
//! A VM has its user for as long as the lock on one byte of a file of the host's is held, by its supervisor and its
//! janitor, so two VMs never share one, nor does a new one meet what is left of an old one.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use confine::User;
use rustix::thread::CapabilitySet;
use schema::{
    paths::{USERS_LOCK, USERS_VARIABLE},
    programs::{self, SERVICE_USERS as SERVICES},
};

use crate::{error::Error, host::services::Service};

/// What `VOLT_UID_RANGE` is if unset: above what systemd gives containers, below what it warns of.
pub const DEFAULT_RANGE: Range = Range { first: 0x7000_0000, count: 1 << 16 };

/// The users that the host gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    count: u32,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.first.saturating_add(self.count).saturating_sub(1))
    }
}

impl Range {
    /// The one that the environment names.
    pub fn find() -> Result<Range, Error> {
        match std::env::var_os(USERS_VARIABLE).filter(|text| !text.is_empty()) {
            None => Ok(DEFAULT_RANGE),
            Some(given) => Range::parse(&given.to_string_lossy())
                .ok_or_else(|| Error::UserRange { given, such_as: DEFAULT_RANGE.to_string() }),
        }
    }

    fn parse(text: &str) -> Option<Range> {
        let (first, last) = text.split_once('-')?;
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        let count = last.checked_sub(first)?.checked_add(1)?;
        (first > 0 && last < u32::MAX && count > SERVICES).then_some(Range { first, count })
    }

    /// Whether this process can become the range's users; if not, why.
    pub fn usable() -> Result<(), &'static str> {
        let needed = CapabilitySet::SETUID
            | CapabilitySet::SETGID
            | CapabilitySet::SYS_ADMIN
            | CapabilitySet::MKNOD
            | CapabilitySet::CHOWN;
        let held = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        // "inside outside count": the first namespace's, which has every user, is one line from 0 on.
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let all = map.split_whitespace().nth(2) == Some("4294967295");
        match (held, all) {
            (true, true) => Ok(()),
            (false, _) => Err("needs root"),
            (_, false) => Err("needs the host's first user namespace"),
        }
    }

    /// A service's user.
    pub fn service(self, service: Service) -> Option<User> {
        match service.process().user {
            programs::User::Service(place) => User::new(self.first.checked_add(place)?),
            programs::User::Starter | programs::User::Vm => None,
        }
    }

    /// A user that no VM has, until the descriptor and its duplicates are closed.
    pub fn claim(self) -> Result<(User, OwnedFd), Error> {
        self.claim_in(Path::new(USERS_LOCK))
    }

    fn claim_in(self, lock: &Path) -> Result<(User, OwnedFd), Error> {
        let file = open(lock).map_err(|source| Error::UsersFile { lock: lock.to_owned(), source })?;
        for place in SERVICES..self.count {
            let Some(user) = self.first.checked_add(place).and_then(User::new) else { break };
            match claim_byte(&file, user) {
                Ok(true) => return Ok((user, file.into())),
                Ok(false) => {}
                Err(source) => return Err(Error::UsersLock { lock: lock.to_owned(), source }),
            }
        }
        Err(Error::UsersTaken { lock: lock.to_owned(), most: self.count - SERVICES })
    }
}

/// Keeps `user` from VMs until the descriptor is closed, if no VM has it.
pub fn claim_free(user: User) -> Option<OwnedFd> {
    let file = open(Path::new(USERS_LOCK)).ok()?;
    claim_byte(&file, user).is_ok_and(|claimed| claimed).then(|| file.into())
}

fn open(lock: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(lock)
}

/// Whether the user's byte was free, and is the descriptor's now.
fn claim_byte(file: &File, user: User) -> io::Result<bool> {
    // SAFETY: a flock of numbers; zero is a valid value of every field.
    let mut byte: libc::flock = unsafe { std::mem::zeroed() };
    byte.l_type = libc::F_WRLCK as libc::c_short;
    byte.l_start = user.uid().into();
    byte.l_len = 1;
    // SAFETY: the descriptor is open, and the kernel reads `byte`, which outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const byte) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_seventeen_users_is_taken_and_of_sixteen_refused() {
        assert_eq!(Range::parse("1000-1016"), Some(Range { first: 1000, count: 17 }));
        assert_eq!(Range::parse(&DEFAULT_RANGE.to_string()), Some(DEFAULT_RANGE));
        assert_eq!(Range::parse("4294967278-4294967294"), Some(Range { first: 4_294_967_278, count: 17 }));
        for wrong in ["1000-1015", "0-65535", "4294967279-4294967295", "9-1", "", "-", "1000", "1000-x", "-5-100"] {
            assert_eq!(Range::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_vm_has_a_user_of_its_own_until_the_range_is_used_up_and_one_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, range) = (dir.path().join("lock"), Range { first: 5000, count: SERVICES + 2 });
        let first = range.claim_in(&lock).unwrap();
        let second = range.claim_in(&lock).unwrap();
        assert_eq!((first.0.uid(), second.0.uid()), (5016, 5017));
        assert!(matches!(range.claim_in(&lock), Err(Error::UsersTaken { most: 2, .. })));
        let copy = first.1.try_clone().unwrap();
        drop(first);
        range.claim_in(&lock).unwrap_err();
        drop(copy);
        assert_eq!(range.claim_in(&lock).unwrap().0.uid(), 5016);
    }

    #[test]
    fn services_have_users_that_no_vm_gets() {
        let users: Vec<_> = Service::ALL.into_iter().filter_map(|s| DEFAULT_RANGE.service(s)).collect();
        assert_eq!(users.len(), 3);
        assert!(users.iter().all(|user| user.uid() < DEFAULT_RANGE.first + SERVICES));
        assert!(users[0] != users[1] && users[1] != users[2] && users[0] != users[2]);
    }
}
