//! A terminal for a VM, as it has one when a user starts it: its standard input and standard error, and that of the
//! programs which it starts.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    ptr,
};

use anyhow::{Context, Result};

/// Gives a program a terminal of its own, which controls it. What is written there goes to a file.
pub(super) fn give(command: &mut Command, to: PathBuf) -> Result<()> {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: the two numbers outlive the call; of name, modes and size there are none.
    let done = unsafe { libc::openpty(&raw mut master, &raw mut slave, ptr::null_mut(), ptr::null(), ptr::null()) };
    if done < 0 {
        return Err(io::Error::last_os_error()).context("There is no terminal to be had");
    }
    // SAFETY: openpty has just made both, and nothing else has them.
    let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC)?;
    command.stdin(slave.try_clone()?).stderr(slave);
    let control = || {
        rustix::process::setsid()?;
        Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stderr())?)
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; these are two system calls.
    unsafe { command.pre_exec(control) };
    let (mut from, mut to) = (File::from(master), File::create(to)?);
    // Ends with the last descriptor of the terminal's other side.
    std::thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let size = from.read(&mut buffer)?;
            to.write_all(buffer.get(..size).unwrap_or_default())?;
        }
    });
    Ok(())
}
