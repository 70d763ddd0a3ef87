//! The process that a command becomes which defines or removes an isolated network: the command itself goes on in another one, which it forks, and this one
//! waits for that one's end, and lets the network's namespace go if it is to. It reads nothing from anybody, and has no right to mount or unmount: who removes a
//! file on which nothing is mounted in its own mount namespace takes away what is mounted on it in all others.

use std::{
    ffi::CString,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use confine::{Filter, Policy, Rule};
use rustix::{
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
    thread::{UnshareFlags, unshare_unsafe},
};
use schema::programs::UNPINNER;

use crate::{
    error::Error,
    helper,
    host::{isolated, paths::Paths},
    output::say,
};

/// Has the caller go on in a process of its own, beside which `lock` is held. What it ends with, this process does as well; and before, where `goes` says so
/// of whether that was 0, the namespace of the network goes. Must run while this process has one thread.
pub fn apart(
    paths: &Paths,
    network: &str,
    policy: Policy,
    lock: &OwnedFd,
    goes: impl FnOnce(bool) -> bool,
) -> Result<(), Error> {
    let failed = |errno: Errno| isolated::failed("look after", network, errno.into());
    let Some(command) = helper::fork(0).map_err(failed)? else { return Ok(()) };
    let ended = look_after(paths, network, policy, [&command, lock], goes);
    confine::exit(ended.unwrap_or_else(|error| {
        // What nobody looks after does not go on. One that has ended is no error.
        let _gone = pidfd_send_signal(&command, Signal::KILL);
        say(error.fault());
        1
    }))
}

fn look_after(
    paths: &Paths,
    network: &str,
    policy: Policy,
    [command, lock]: [&OwnedFd; 2],
    goes: impl FnOnce(bool) -> bool,
) -> Result<i32, Error> {
    let failed = |tried| move |errno: Errno| isolated::failed(tried, network, errno.into());
    let unconfined = |source| Error::Unconfined { what: UNPINNER.name, source };
    let pin = isolated::path(paths, network);
    // SAFETY: of what this process shares with others it takes nothing but the mount namespace.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.map_err(failed("look after"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).map_err(failed("look after"))?;
    while isolated::found(&pin).map_err(|source| isolated::failed("open", network, source))?.is_some() {
        unmount(&pin, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed("look after"))?;
    }
    let folder = pin.parent().unwrap_or(Path::new("/")).to_owned();
    let (sandbox, alone) = helper::tidier(&UNPINNER, policy, &[(folder, "/")]).map_err(unconfined)?;
    let sandbox = [command, lock].into_iter().fold(sandbox, |sandbox, fd| sandbox.keep_fd(fd.as_raw_fd()));
    let pin = if alone { Path::new("/").join(network) } else { pin };
    let pin = CString::new(pin.as_os_str().as_bytes()).map_err(|_| failed("look after")(Errno::INVAL))?;
    let filter = Filter::new(UNPINNER.name)
        .allow(&[libc::SYS_waitid, libc::SYS_unlinkat, libc::SYS_exit_group])
        .allow_if(libc::SYS_write, vec![Rule::eq(0, 2)]); // why it did not go
    let _narrow = sandbox.confine().and_then(|confined| confined.enter(&filter)).map_err(unconfined)?;
    let code = wait(command).map_err(failed("look after"))?;
    if goes(code == 0) {
        match rustix::fs::unlink(&pin) {
            Err(errno) if errno != Errno::NOENT => {
                let path = isolated::path(paths, network);
                say(Error::Pinned { path, source: errno.into() }.fault());
                return Ok(code.max(1));
            }
            _ => {}
        }
    }
    Ok(code)
}

/// What a process has ended with; as a shell says it of one that was killed.
fn wait(process: &OwnedFd) -> Result<i32, Errno> {
    loop {
        match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) | Ok(None) => {}
            Err(errno) => return Err(errno),
            Ok(Some(status)) => {
                let killed = || status.terminating_signal().map(|signal| 128 + signal);
                return Ok(status.exit_status().or_else(killed).unwrap_or(1));
            }
        }
    }
}
