//! What of the host's IPv4 leads beyond networks: that it forwards, which is the whole network namespace's (ip-sysctl: `forwarding`). Touches that
//! below /proc/sys/net/ipv4/conf alone.
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

    /// The folder's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> Option<i32> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Has the host forward, from and to all interfaces.
    pub fn on(&self) -> io::Result<()> {
        let folder = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        ipv6::write(folder, "all/forwarding", *b"1")
    }
}
