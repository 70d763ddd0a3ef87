//! The host's own IPv6 on bridges of ours: off. A network of this version is IPv4; the host would still take router advertisements
//! that a guest sends, and with them a default route, and listen on a link-local address. What guests send to each other is not affected.
//! Touches /proc/sys/net/ipv6/conf/BRIDGE/disable_ipv6 alone.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{self, CWD, Mode, OFlags},
    io::retry_on_intr,
};

/// Where the kernel keeps a folder for each interface.
pub const FOLDER: &str = "/proc/sys/net/ipv6/conf";
/// How a setting is opened; the filter knows no other way. (Rustix adds O_LARGEFILE.)
pub const OPEN: OFlags = OFlags::WRONLY.union(OFlags::CLOEXEC).union(OFlags::LARGEFILE);

/// What is written to one; the filter knows its length.
pub const OFF: &[u8] = b"1";

/// The folder, kept open: the kernel may forget a folder of /proc that nobody has open and then make another one, which the
/// sandbox would not know.
pub struct Sysctl(Option<OwnedFd>);

impl Sysctl {
    /// Opens the folder, in phase 1; says so if the host has IPv6 and no folder.
    pub fn open() -> Sysctl {
        let folder = fs::openat(CWD, FOLDER, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok();
        if folder.is_none() && !Path::new("/proc/sys/net").exists() {
            confine::say!(
                "netmgr: /proc/sys/net is not there: IPv6 of the host stays on on bridges. Mount /proc and start netmgr again."
            );
        }
        Sysctl(folder)
    }

    /// The folder's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> Option<i32> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Switches IPv6 off on a bridge. No error where the kernel has none.
    pub fn off(&self, bridge: &str) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        let path = format!("{bridge}/disable_ipv6");
        let setting = retry_on_intr(|| fs::openat(folder, &path, OPEN, Mode::empty()))?;
        retry_on_intr(|| rustix::io::write(&setting, OFF))?;
        Ok(())
    }
}
