//! Becoming another user for good, and handing files over to one.

use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, chownat, openat, statat};
use rustix::thread::{
    capabilities, set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::error::{Error, step};

/// Ids of a user and its one group. Neither is root's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

impl FromStr for User {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<User, &'static str> {
        text.parse().ok().and_then(User::new).ok_or("it takes a number from 1 to 4294967294")
    }
}

impl User {
    /// The user `id`, whose group has the same number. `None` for root, and for the number that stands for "no change".
    pub fn new(id: u32) -> Option<User> {
        (id != 0 && id != u32::MAX).then_some(User { uid: id, gid: id })
    }

    /// Its number.
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// Makes it the calling thread's real, effective, saved and file-system user and its only group. Capabilities that
    /// are permitted stay so, and effective: cutting them is the next step's part. To be called while there is one thread.
    ///
    /// # Errors
    ///
    /// Where the caller lacks `CAP_SETUID` or `CAP_SETGID`.
    pub fn become_it(self) -> Result<(), Error> {
        let remedy = "start as root, or without a user to become";
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let held = capabilities(None).map_err(step("read the capability sets", remedy))?;
        set_keep_capabilities(true).map_err(step("keep capabilities for a moment", remedy))?;
        set_thread_groups(&[]).map_err(step("leave all groups", remedy))?;
        set_thread_res_gid(gid, gid, gid).map_err(step("change the group", remedy))?;
        set_thread_res_uid(uid, uid, uid).map_err(step("change the user", remedy))?;
        set_keep_capabilities(false).map_err(step("keep capabilities no longer", remedy))?;
        // The change has emptied the effective set.
        set_capabilities(None, held).map_err(step("use the capabilities that were held", remedy))
    }

    /// Makes a directory that root has, and all in it, this user's. A directory that is the user's already is not
    /// looked into: what the user put there is nothing that root may trust.
    ///
    /// # Errors
    ///
    /// Where it belongs to a third user, or cannot be handed over.
    pub fn own(self, dir: &Path) -> Result<(), Error> {
        let failed =
            |errno: rustix::io::Errno| Error::HandOver { path: dir.into(), uid: self.uid, source: errno.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(CWD, dir, flags, Mode::empty()).map_err(failed)?;
        match rustix::fs::fstat(&fd).map_err(failed)?.st_uid {
            owner if owner == self.uid => Ok(()),
            0 => self.own_all(fd, DEPTH).map_err(failed),
            _ => Err(failed(rustix::io::Errno::PERM)),
        }
    }

    /// The directory itself last, so that one which was handed over in part is gone through again.
    fn own_all(self, dir: std::os::fd::OwnedFd, depth: u32) -> rustix::io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() && depth > 0 {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                self.own_all(openat(&dir, name, flags, Mode::empty())?, depth - 1)?;
            } else {
                chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        rustix::fs::fchown(&dir, uid, gid)
    }
}

/// How deep [`User::own`] goes.
const DEPTH: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_root_nor_no_change_is_a_user_to_become() {
        assert!(User::new(0).is_none() && User::new(u32::MAX).is_none());
        assert_eq!(User::new(1).map(User::uid), Some(1));
        assert_eq!(User::new(u32::MAX - 1).map(User::uid), Some(u32::MAX - 1));
        assert!(["0", "4294967295", "-1", "root", ""].iter().all(|text| text.parse::<User>().is_err()));
    }
}
