//! Namespaces of a process's own, and what it finds as `/` there.
//!
//! Uses `/proc` and mounts, so it belongs into the wide phase. Whoever has left is left: there is no way back.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, chmod, mkdirat, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, mount_remount,
    move_mount, open_tree, unmount,
};
use rustix::process::{DumpableBehavior, chdir, getegid, geteuid, pivot_root, set_dumpable_behavior};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::child::Child;
use crate::error::{Error, step};

/// Where the new root is put together. It hides what was there, which by then nobody needs any more.
const WORKSHOP: &str = "/proc";
/// The most that a root which is read-only soon may hold: folders and device nodes.
const ROOT_SIZE: &std::ffi::CStr = c"size=64k,nr_inodes=288,mode=0755";

/// How every new root is mounted.
const GUARDED: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// How long a rehearsal may take: it waits for nobody, so what takes longer is a host that has no time for it.
const REHEARSAL: Duration = Duration::from_secs(60);

/// What a process is to find as `/`.
#[derive(Clone, Debug, Default)]
pub struct Root {
    folders: Vec<(PathBuf, PathBuf)>,
    devices: Vec<(PathBuf, u32, u32)>,
}

impl Root {
    /// Nothing at all.
    pub fn empty() -> Root {
        Root::default()
    }

    /// As well the folder `from`, seen as `at`, an absolute path. As `/` it is all there is.
    pub fn folder(mut self, from: &Path, at: &str) -> Root {
        self.folders.push((from.into(), at.into()));
        self
    }

    /// As well a character device of that number, for the process's own user only.
    pub fn device(mut self, at: &str, major: u32, minor: u32) -> Root {
        self.devices.push((at.into(), major, minor));
        self
    }

    /// Makes it the calling process's root, in a mount namespace that is its own already, for `owner`. Where mounts are
    /// forbidden, [`Error::NoRoot`], the root stays what it was.
    fn enter(&self, owner: Option<crate::User>) -> Result<(), Error> {
        self.replace(owner)?;
        let failed = |tried| step(tried, "report this as a defect");
        unmount(".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
        chdir("/").map_err(failed("enter its new root"))?;
        let mut flags = MountFlags::BIND | GUARDED;
        if self.devices.is_empty() {
            flags |= MountFlags::NODEV;
        }
        if !self.is_one_folder() {
            flags |= MountFlags::RDONLY;
        }
        mount_remount("/", flags, c"").map_err(failed("guard its new root"))
    }

    /// Whether it is a folder as it is, and so as writable as that.
    fn is_one_folder(&self) -> bool {
        matches!(self.folders.as_slice(), [(_, at)] if at == Path::new("/"))
    }

    /// Puts it together and changes the root to it, on which the old one comes to lie. Until then nothing is lost.
    fn replace(&self, owner: Option<crate::User>) -> Result<(), Error> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(refused("keep mounts to itself"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let clone = |(from, at): &(PathBuf, PathBuf)| match open_tree(CWD, from, flags) {
            Ok(tree) => Ok((tree, at.clone())),
            Err(errno) if forbids(errno) => Err(refused("take a folder along")(errno)),
            Err(errno) => Err(Error::Path { path: from.clone(), source: errno.into() }),
        };
        let trees = self.folders.iter().map(clone).collect::<Result<Vec<_>, _>>()?;
        match trees.as_slice() {
            [(tree, _)] if self.is_one_folder() => place(tree, Path::new(WORKSHOP))?,
            _ => mount("volt", WORKSHOP, "tmpfs", GUARDED, ROOT_SIZE).map_err(refused("mount an empty file system"))?,
        }
        self.furnish(&trees, owner).or_else(|error| {
            // What the workshop hid is seen again.
            let uncovered = chdir("/").and_then(|()| unmount(WORKSHOP, UnmountFlags::DETACH));
            uncovered.map_err(step("take its new root away again", "an outer sandbox may forbid it"))?;
            Err(error)
        })
    }

    fn furnish(&self, trees: &[(OwnedFd, PathBuf)], owner: Option<crate::User>) -> Result<(), Error> {
        if !self.is_one_folder() {
            for (tree, at) in trees {
                let at = inside(at);
                folders(&at)?;
                place(tree, &at)?;
            }
        }
        for (at, major, minor) in &self.devices {
            device(&inside(at), *major, *minor, owner)?;
        }
        chdir(WORKSHOP).map_err(refused("enter its new root"))?;
        pivot_root(".", ".").map_err(refused("change its root"))
    }
}

/// Whether the answer is that this is not allowed here, whatever else there is of memory, time and limits.
fn forbids(errno: Errno) -> bool {
    matches!(errno, Errno::PERM | Errno::ACCESS | Errno::NOSYS)
}

/// The error of a step on the way to a new root.
fn refused(tried: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| match errno {
        errno if forbids(errno) => Error::NoRoot(errno.into()),
        errno => step(tried, "an outer sandbox may forbid it")(errno),
    }
}

fn place(tree: &OwnedFd, at: &Path) -> Result<(), Error> {
    move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(refused("mount a folder in its new root"))
}

/// A path of the new root, while that is being put together.
fn inside(at: &Path) -> PathBuf {
    Path::new(WORKSHOP).join(at.strip_prefix("/").unwrap_or(at))
}

/// Makes a folder of the new root, and those above it, which whoever lives there passes through, whatever the umask of who
/// started this is.
fn folders(at: &Path) -> Result<(), Error> {
    let (all, workshop) = (Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH, Path::new(WORKSHOP));
    let mut steps: Vec<_> = at.ancestors().take_while(|step| *step != workshop).collect();
    steps.reverse();
    for step in steps {
        let made = match mkdirat(CWD, step, all) {
            Ok(()) => chmod(step, all),
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        };
        made.map_err(|errno| Error::Path { path: step.into(), source: errno.into() })?;
    }
    Ok(())
}

fn device(at: &Path, major: u32, minor: u32, owner: Option<crate::User>) -> Result<(), Error> {
    at.parent().map_or(Ok(()), folders)?;
    let (mode, number) = (Mode::RUSR | Mode::WUSR, rustix::fs::makedev(major, minor));
    mknodat(CWD, at, FileType::CharacterDevice, mode, number).map_err(refused("make a device node"))?;
    let owner = owner.map(crate::User::uid);
    chmod(at, mode)
        .map_err(std::io::Error::from)
        .and_then(|()| std::os::unix::fs::chown(at, owner, owner))
        .map_err(|source| Error::Path { path: at.into(), source })
}

/// Leaves for own mount, ipc, uts and cgroup namespaces with that root, and for an own, empty network one where
/// `network` says so. Takes `CAP_SYS_ADMIN`. `owner` is who the process becomes next. [`Error::NoNamespaces`]: nothing was
/// changed; [`Error::NoRoot`]: the root was not.
pub(crate) fn leave(root: &Root, network: bool, owner: Option<crate::User>) -> Result<(), Error> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if network {
        flags |= UnshareFlags::NEWNET;
    }
    // That there are no more is not that there are none: who may make them is to have them.
    unshare(flags, forbids)?;
    root.enter(owner)
}

/// Whether this process may [`leave`].
pub(crate) fn may_leave() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

/// Leaves for user, mount, network, ipc, uts and cgroup namespaces of its own, with that root and with no id mapped
/// but its own. What the process starts is in them as well. Takes no right where the kernel lets users make namespaces.
/// To be called while there is one thread.
///
/// # Errors
///
/// [`Error::NoNamespaces`] where the kernel forbids it, has none to give, or gives them and lets nothing be done there: nothing
/// is changed then. After any other (a want of memory, say; [`Error::NoRoot`] where the rehearsal of it had gone well) the
/// process should end.
pub fn isolate(root: &Root) -> Result<(), Error> {
    // Some hosts let a user make namespaces, and then do nothing in them.
    rehearse(root)?;
    isolate_now(root)
}

/// Leaves in a child that is thrown away.
fn rehearse(root: &Root) -> Result<(), Error> {
    let failed = step("try namespaces in a child", "raise the limits of processes and of namespaces, or free memory");
    // SAFETY: this process has one thread (the caller's duty), so the child may use all that this one could; it ends by `_exit`.
    let Some(mut child) = (unsafe { Child::fork(0) }).map_err(&failed)? else {
        let errno = isolate_now(root).err().map_or(0, |error| errno_of(&error).clamp(1, 255));
        // SAFETY: takes a number.
        unsafe { libc::_exit(errno) }
    };
    let Some(status) = child.wait_for(REHEARSAL)? else {
        let late = step(
            "try namespaces in a child within 60 s",
            "the host is overloaded, or the child was stopped: try again",
        );
        return Err(late(Errno::TIMEDOUT));
    };
    match status.code() {
        Some(0) => Ok(()),
        Some(code) if has_none(Errno::from_raw_os_error(code)) => {
            Err(Error::NoNamespaces(std::io::Error::from_raw_os_error(code)))
        }
        Some(code) => Err(failed(Errno::from_raw_os_error(code))),
        None => Err(step("try namespaces in a child, which was killed", "see dmesg for what killed it")(Errno::INTR)),
    }
}

/// Whether the answer is that there are no namespaces for this user, and will be none: their kind is not known, or their number
/// is limited (`user.max_user_namespaces`).
fn has_none(errno: Errno) -> bool {
    forbids(errno) || matches!(errno, Errno::INVAL | Errno::NOSPC | Errno::USERS)
}

/// What the kernel said, below what an error says.
fn errno_of(error: &Error) -> i32 {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.find_map(std::io::Error::raw_os_error).unwrap_or(libc::EPERM)
}

fn isolate_now(root: &Root) -> Result<(), Error> {
    let failed = |tried| step(tried, "mount /proc");
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(
        UnshareFlags::NEWUSER
            | UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP,
        has_none,
    )?;
    // A process that has changed its user is not dumpable, and its maps are root's. The next phase undoes this.
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(failed("map its user"))?;
    for (map, content) in
        [("setgroups", "deny".into()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
    {
        let path = Path::new("/proc/self").join(map);
        fs::write(&path, content).map_err(|source| Error::Path { path, source })?;
    }
    root.enter(None)
}

/// Makes namespaces; `none` tells which answers mean that there are none to be had.
fn unshare(flags: UnshareFlags, none: fn(Errno) -> bool) -> Result<(), Error> {
    // SAFETY: what is unsafe is CLONE_FILES, which is not among the flags.
    unsafe { unshare_unsafe(flags) }.map_err(|errno| match errno {
        errno if none(errno) => Error::NoNamespaces(errno.into()),
        errno => step("make namespaces", "raise sysctl user.max_*_namespaces, or free memory")(errno),
    })
}
