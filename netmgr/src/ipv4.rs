//! What of the host's IPv4 leads beyond networks: that it forwards, which is the whole network namespace's, and that what it has sent from its
//! loopback network leaves by a bridge and is answered there (ip-sysctl: `forwarding`, `route_localnet`). Touches these two below
//! /proc/sys/net/ipv4/conf alone.
//!
//! Forwarding is switched on when the first network wants it, and never off: by then others may rely on it.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{self, CWD, Mode, OFlags};

use crate::ipv6;

/// Where the kernel keeps a folder for each interface, and one for all.
pub const FOLDER: &str = "/proc/sys/net/ipv4/conf";

/// The folder, kept open as that of IPv6 is; `None` where it is not there.
pub struct Forwarding(Option<OwnedFd>);

impl Forwarding {
    /// Opens the folder, in phase 1.
    pub fn open() -> Forwarding {
        Forwarding(fs::openat(CWD, FOLDER, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// None, of a namespace that is not netmgr's own.
    pub fn none() -> Forwarding {
        Forwarding(None)
    }

    /// The folder's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> Option<i32> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Has the host forward, from and to all interfaces.
    pub fn on(&self) -> io::Result<()> {
        self.set("all/forwarding", *b"1")
    }

    /// Lets what is from the loopback network leave by a bridge, or not. (What a guest sends to that network, the rules drop.)
    pub fn of_loopback(&self, bridge: &str, on: bool) -> io::Result<()> {
        self.set(&format!("{bridge}/route_localnet"), if on { *b"1" } else { *b"0" })
    }

    fn set(&self, setting: &str, value: [u8; ipv6::LENGTH]) -> io::Result<()> {
        let folder = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        ipv6::write(folder, setting, value)
    }
}
