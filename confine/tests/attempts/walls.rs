//! Another user, namespaces, another root: what is gone with them, and that there is no way back.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use confine::{Error, Policy, Root, Sandbox, Spawn, User, caps};
use libc::{EACCES, EPERM, O_PATH};

use crate::harness::{attempt, done, is_refused, is_root, sandbox};

/// A user whom nobody else here is.
fn user() -> User {
    User::new(4_713).unwrap()
}

fn namespace(kind: &str) -> String {
    fs::read_link(Path::new("/proc/self/ns").join(kind)).unwrap().display().to_string()
}

#[test]
fn a_user_that_was_become_cannot_be_left_again() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o600)).unwrap();
        let confined = sandbox().user(user()).allow_dir_ro(Path::new("/")).confine().unwrap();
        // SAFETY: these ask for numbers, or are refused.
        unsafe {
            let (mut real, mut effective, mut saved) = (0, 0, 0);
            libc::getresuid(&raw mut real, &raw mut effective, &raw mut saved);
            assert_eq!([real, effective, saved], [4_713; 3]);
            libc::getresgid(&raw mut real, &raw mut effective, &raw mut saved);
            assert_eq!([real, effective, saved], [4_713; 3]);
            assert_eq!(libc::getgroups(0, std::ptr::null_mut()), 0);
            is_refused(done(libc::setresuid(0, 0, 0)), EPERM);
            is_refused(done(libc::setresgid(0, 0, 0)), EPERM);
        }
        is_refused(File::open(secret.path()), EACCES);
        for set in [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable, CapSet::Bounding, CapSet::Ambient] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        drop(confined);
        // The file is root's, and removing it no longer this process's to do.
        std::mem::forget(secret);
    })
    .passes();
}

#[test]
fn a_capability_to_keep_outlives_the_change_of_user_alone() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let sandbox = sandbox().user(user()).keep_capability(Capability::CAP_NET_ADMIN);
        let confined = sandbox.confine().unwrap();
        let one: CapsHashSet = [Capability::CAP_NET_ADMIN].into_iter().collect();
        for set in [CapSet::Permitted, CapSet::Effective, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), one, "{set:?}");
        }
        // SAFETY: asks for a number.
        assert_eq!(unsafe { libc::geteuid() }, 4_713);
        drop(confined);
    })
    .passes();
}

#[test]
fn a_root_is_its_user_s_to_use_whatever_the_umask_that_it_was_made_under() {
    if !is_root() {
        return;
    }
    for umask in [0, 0o022, 0o027, 0o007, 0o077, 0o777] {
        attempt(|| {
            let dir = tempfile::tempdir().unwrap().keep();
            fs::write(dir.join("f"), "mine").unwrap();
            user().own(&dir).unwrap();
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
            let root = Root::empty().device("/dev/net/null", 1, 3).folder(&dir, "/a/b");
            let (sandbox, _) = sandbox().user(user()).root(&root, true).unwrap();
            let confined = sandbox.allow_dir_ro(Path::new("/a")).allow_file_rw(Path::new("/dev/net/null")).confine();
            let confined = confined.unwrap();
            let mode = |path: &str| fs::metadata(path).unwrap().mode() & 0o7777;
            for (path, wanted) in [("/dev", 0o755), ("/dev/net", 0o755), ("/a", 0o755), ("/dev/net/null", 0o600)] {
                assert_eq!(mode(path), wanted, "{path}");
            }
            assert_eq!(fs::read_to_string("/a/b/f").unwrap(), "mine");
            File::options().read(true).write(true).open("/dev/net/null").unwrap();
            drop(confined);
        })
        .passes();
    }
}

#[test]
fn a_folder_is_handed_over_with_all_in_it_but_not_what_its_links_point_at() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (own, other) = (dir.path().join("own"), dir.path().join("other"));
    fs::create_dir_all(own.join("a/b")).unwrap();
    for file in [own.join("f"), own.join("a/b/g"), other.clone()] {
        fs::write(file, "").unwrap();
    }
    std::os::unix::fs::symlink(&other, own.join("link")).unwrap();
    user().own(&own).unwrap();
    for path in [&own, &own.join("f"), &own.join("a"), &own.join("a/b"), &own.join("a/b/g"), &own.join("link")] {
        assert_eq!(fs::symlink_metadata(path).unwrap().uid(), 4_713, "{}", path.display());
    }
    assert_eq!(fs::metadata(&other).unwrap().uid(), 0);

    // What is the user's already is not looked into; what is a third user's is refused, and so is a link.
    fs::write(own.join("later"), "").unwrap();
    user().own(&own).unwrap();
    assert_eq!(fs::metadata(own.join("later")).unwrap().uid(), 0);
    let third = User::new(4_714).unwrap();
    assert!(matches!(third.own(&own), Err(Error::HandOver { .. })));
    std::os::unix::fs::symlink(&own, dir.path().join("way")).unwrap();
    assert!(matches!(user().own(&dir.path().join("way")), Err(Error::HandOver { .. })));
}

#[test]
fn a_service_sees_its_folder_as_its_root_and_nothing_else() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        fs::write(dir.join("f"), "mine").unwrap();
        let network = namespace("net");
        let (sandbox, folder) = sandbox().service(Some(user()), &dir).unwrap();
        assert_eq!(folder, Path::new("/"));
        let confined = sandbox.confine().unwrap();
        assert_eq!(fs::read_to_string("/f").unwrap(), "mine");
        fs::write("/g", "new").unwrap();
        assert_eq!(fs::metadata("/g").unwrap().uid(), 4_713);
        let mut seen: Vec<_> = fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        seen.sort();
        assert_eq!(seen, ["f", "g"]);
        for outside in ["/etc/passwd", "/proc/self/status", "/dev/null", "/../etc/passwd"] {
            assert_eq!(fs::metadata(outside).unwrap_err().kind(), io::ErrorKind::NotFound, "{outside}");
        }
        assert!(!network.is_empty());
        fs::remove_file("/f").unwrap();
        fs::remove_file("/g").unwrap();
        drop(confined);
    })
    .passes();
}

#[test]
fn a_service_without_a_user_to_become_keeps_its_path() {
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let (sandbox, folder) = sandbox().service(None, dir.path()).unwrap();
        assert_eq!(folder, dir.path());
        let confined = sandbox.confine().unwrap();
        fs::write(dir.path().join("f"), "").unwrap();
        drop(confined);
    })
    .passes();
}

#[test]
fn a_root_of_ones_own_holds_the_folders_and_devices_it_was_given_and_cannot_be_written() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        fs::write(dir.join("f"), "given").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        let root = Root::empty().folder(&dir, "/some/where").device("/dev/zero", 1, 5);
        let (sandbox, alone) = sandbox().user(user()).root(&root, true).unwrap();
        assert!(alone);
        let confined = sandbox.allow_dir_ro(Path::new("/")).allow_file_rw(Path::new("/dev/zero")).confine().unwrap();
        // The folder itself is root's, with mode 0700.
        assert_eq!(fs::read_dir("/some/where").unwrap_err().raw_os_error(), Some(EACCES));
        let mut zeros = [1; 4];
        File::options().read(true).write(true).open("/dev/zero").unwrap().read_exact(&mut zeros).unwrap();
        assert_eq!(zeros, [0; 4]);
        assert!(File::create("/new").is_err());
        let mut seen: Vec<_> = fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
        seen.sort();
        assert_eq!(seen, ["dev", "some"]);
        drop(confined);
    })
    .passes();
}

#[test]
fn isolated_processes_see_no_file_no_interface_and_no_other_user() {
    attempt(|| {
        let before = ["user", "mnt", "net", "ipc", "uts", "cgroup"].map(namespace);
        let own = File::open("/proc/self/ns/pid").unwrap();
        let namespaces = File::options().read(true).custom_flags(O_PATH).open("/proc/self/ns").unwrap();
        confine::isolate(&confine::Root::empty()).unwrap();
        assert_eq!(fs::read_dir("/").unwrap().count(), 0);
        assert!(File::create("/new").is_err());
        for outside in ["/etc/passwd", "/proc/self/status", "/../etc"] {
            assert_eq!(fs::metadata(outside).unwrap_err().kind(), io::ErrorKind::NotFound, "{outside}");
        }
        // By a descriptor from before, to see that they changed.
        let now = |kind: &str| rustix::fs::readlinkat(&namespaces, kind, Vec::new()).unwrap().into_string().unwrap();
        for (kind, before) in ["user", "mnt", "net", "ipc", "uts", "cgroup"].into_iter().zip(before) {
            assert_ne!(now(kind), before, "{kind}");
        }
        // SAFETY: refused, or asks for a number.
        unsafe {
            is_refused(done(libc::setresuid(1, 1, 1)), libc::EINVAL);
            is_refused(done(libc::setgroups(0, std::ptr::null())), EPERM);
        }
        drop(own);
    })
    .passes();
}

#[test]
fn where_namespaces_can_be_made_and_not_used_nothing_is_changed_and_best_effort_goes_on() {
    if !is_root() {
        return;
    }
    // As on hosts whose AppArmor lets every user make namespaces, and takes all rights there.
    attempt(|| {
        user().become_it().unwrap();
        caps::clear(None, CapSet::Effective).unwrap();
        crate::policy::refuse(libc::SYS_pivot_root, EACCES);
        let before = ["user", "mnt", "net"].map(namespace);
        match confine::isolate(&Root::empty()) {
            Err(Error::NoNamespaces(source)) => assert_eq!(source.raw_os_error(), Some(EACCES)),
            other => panic!("{other:?}"),
        }
        let (_sandbox, alone) = sandbox().alone(&Root::empty()).unwrap();
        assert!(!alone);
        let strict = Sandbox::new("attempt", Policy::Strict).alone(&Root::empty());
        assert!(matches!(strict, Err(Error::NoNamespaces(_))));
        assert_eq!(["user", "mnt", "net"].map(namespace), before);
    })
    .passes();
}

#[test]
fn where_root_may_make_no_mounts_best_effort_goes_on_with_a_changed_root_and_says_so() {
    if !is_root() {
        return;
    }
    // As in containers that have CAP_SYS_ADMIN, and mounts forbidden.
    for forbidden in
        [libc::SYS_unshare, libc::SYS_mount, libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_pivot_root]
    {
        let lost = if forbidden == libc::SYS_unshare { "namespaces" } else { "a root" };
        attempt(move || {
            let dir = tempfile::tempdir().unwrap().keep();
            fs::write(dir.join("f"), "mine").unwrap();
            let namespaces = File::options().read(true).custom_flags(O_PATH).open("/proc/self/ns").unwrap();
            let network = || rustix::fs::readlinkat(&namespaces, "net", Vec::new()).unwrap();
            let before = network();
            crate::policy::refuse(forbidden, EPERM);
            let (sandbox, folder) = sandbox().service(Some(user()), &dir).unwrap();
            assert_eq!(folder, Path::new("/"));
            assert_eq!(network() == before, forbidden == libc::SYS_unshare);
            drop(namespaces);
            drop(sandbox.confine().unwrap());
            assert_eq!(fs::read_to_string("/f").unwrap(), "mine");
            fs::write("/g", "new").unwrap();
            for outside in ["/etc/passwd", "/proc/self/status", "/../etc/passwd"] {
                assert_eq!(fs::metadata(outside).unwrap_err().kind(), io::ErrorKind::NotFound, "{outside}");
            }
        })
        .passes()
        .says(&format!("attempt: runs without {lost} of its own, as this host forbids it (Operation not permitted"));
    }
}

#[test]
fn root_that_has_used_its_namespaces_up_is_refused_and_does_not_go_on_without() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        // What says unshare(2) past user.max_net_namespaces.
        crate::policy::refuse(libc::SYS_unshare, libc::ENOSPC);
        let outcome = sandbox().service(Some(user()), dir.path());
        assert!(matches!(outcome, Err(Error::Step { .. })));
    })
    .passes()
    .says_nothing();
}

#[test]
fn where_root_may_make_no_mounts_strict_refuses() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        crate::policy::refuse(libc::SYS_pivot_root, EPERM);
        let strict = Sandbox::new("attempt", Policy::Strict).service(Some(user()), dir.path());
        assert!(matches!(strict, Err(Error::NoRoot(_))));
        // What was put together is gone, and what it hid is there.
        assert!(Path::new("/proc/self/status").exists());
    })
    .passes();
}

#[test]
fn a_program_started_by_its_descriptor_alone_is_pid_one_without_any_capability() {
    let own = std::thread::current().name().unwrap_or_default().to_owned();
    // The program is this very test, which is static, as the first process of its namespace.
    if std::process::id() == 1 {
        for set in [CapSet::Permitted, CapSet::Effective, CapSet::Inheritable, CapSet::Ambient, CapSet::Bounding] {
            assert_eq!(caps::read(None, set).unwrap(), CapsHashSet::new(), "{set:?}");
        }
        // SAFETY: these ask for numbers, or are refused.
        unsafe {
            assert_eq!(libc::getppid(), 0);
            assert_ne!(libc::geteuid(), 0);
            // Nobody else is there.
            is_refused(done(libc::kill(-1, 0)), libc::ESRCH);
            is_refused(done(libc::setresuid(0, 0, 0)), libc::EINVAL);
        }
        return;
    }
    let own_file = std::env::current_exe().unwrap();
    let program = File::options().read(true).custom_flags(O_PATH).open(own_file).unwrap().into();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let mut spawn = Spawn::from_fd(Path::new("walls"), program, null.into());
    spawn.args(["--exact", own.as_str(), "--test-threads=1"]);
    let (mut from, to) = io::pipe().unwrap();
    spawn.stdout(to.try_clone().unwrap().into()).stderr(to.into()).die_with_parent().isolated();
    let mut child = spawn.spawn().unwrap();
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
}

#[test]
fn handing_over_takes_root() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        chown(&dir, Some(0), Some(0)).unwrap();
        user().become_it().unwrap();
        caps::clear(None, CapSet::Effective).unwrap();
        let error = User::new(4_714).unwrap().own(&dir).unwrap_err();
        assert!(matches!(error, Error::HandOver { .. }), "{error}");
        assert!(User::new(4_714).unwrap().become_it().is_err());
    })
    .passes();
}
