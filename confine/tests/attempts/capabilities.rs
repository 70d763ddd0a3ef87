//! The five capability sets, and what is gone with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use caps::{CapSet, Capability, CapsHashSet};
use confine::{Error, caps};
use libc::EPERM;

use crate::harness::{attempt, confined, done, is_refused, is_root, sandbox};

const SETS: [CapSet; 5] =
    [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable, CapSet::Bounding, CapSet::Ambient];

/// Puts two capabilities in every set, so that no set is empty to begin with.
fn fill() {
    let two: CapsHashSet = [Capability::CAP_NET_ADMIN, Capability::CAP_CHOWN].into_iter().collect();
    caps::set(None, CapSet::Inheritable, &two).unwrap();
    caps::set(None, CapSet::Ambient, &two).unwrap();
    for set in SETS {
        assert!(two.is_subset(&caps::read(None, set).unwrap()), "{set:?}");
    }
}

#[test]
fn all_five_sets_are_emptied() {
    if !is_root() {
        return;
    }
    attempt(|| {
        fill();
        let confined = confined();
        for set in SETS {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        // Numbers that this code has no name for are gone as well.
        for number in 0..64 {
            // SAFETY: takes numbers.
            assert!(unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } <= 0, "{number}");
        }
        drop(confined);
    })
    .passes();
}

#[test]
fn a_kept_capability_is_exactly_that_one_and_is_not_passed_on() {
    if !is_root() {
        return;
    }
    attempt(|| {
        fill();
        let confined = sandbox().keep_capability(Capability::CAP_NET_ADMIN).confine().unwrap();
        let one: CapsHashSet = [Capability::CAP_NET_ADMIN].into_iter().collect();
        for set in [CapSet::Permitted, CapSet::Effective, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), one, "{set:?}");
        }
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        drop(confined);
    })
    .passes();
}

#[test]
fn what_root_could_do_is_refused() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        // SAFETY: the calls take numbers and a string that outlives them.
        unsafe {
            done(libc::unshare(libc::CLONE_NEWUTS)).unwrap();
            done(libc::sethostname(c"before".as_ptr(), 6)).unwrap();
            chown(&file, Some(1), None).unwrap();
            chown(&file, Some(0), None).unwrap();
            done(libc::seteuid(1)).unwrap();
            done(libc::seteuid(0)).unwrap();
            let confined = sandbox().allow_dir_rw(dir.path()).confine().unwrap();
            is_refused(done(libc::unshare(libc::CLONE_NEWUTS)), EPERM);
            is_refused(done(libc::sethostname(c"after".as_ptr(), 5)), EPERM);
            is_refused(chown(&file, Some(1), None), EPERM);
            is_refused(done(libc::setresuid(1, 1, 1)), EPERM);
            drop(confined);
        }
    })
    .passes();
}

#[test]
fn a_capability_that_is_not_held_cannot_be_kept() {
    if !is_root() {
        return;
    }
    attempt(|| {
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
        caps::drop(None, CapSet::Permitted, Capability::CAP_NET_ADMIN).unwrap();
        let error = sandbox().keep_capability(Capability::CAP_NET_ADMIN).confine().err().unwrap();
        assert!(matches!(error, Error::CapabilityNotHeld(Capability::CAP_NET_ADMIN)), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    })
    .passes();
}
