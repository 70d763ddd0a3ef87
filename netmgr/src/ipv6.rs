//! The host's own IPv6 on interfaces of ours. On the bridge of a network without IPv6 it is off: the host would still listen on a link-local address;
//! and bridges take no router advertisements, which a guest could send, and with them a default route. On ports' interfaces it is off: they need
//! none, somebody may take one off its bridge, and with routes of each of a thousand, bringing another one up or down takes the kernel four times as
//! long. What guests send to each other is not affected.
//! Where a network leads to the outside, the host forwards IPv6, and still hears the routers that it has its own way there from.
//! Touches disable_ipv6, accept_ra and forwarding below /proc/sys/net/ipv6/conf/INTERFACE alone.

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

/// Bytes that are written to one; the filter knows how many.
pub const LENGTH: usize = 1;

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

    /// None, of a namespace that is not netmgr's own.
    pub fn none() -> Sysctl {
        Sysctl(None)
    }

    /// The folder's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> Option<i32> {
        self.0.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Switches IPv6 on or off on an interface. That it is off is no error where the kernel has none.
    pub fn set_on(&self, interface: &str, on: bool) -> io::Result<()> {
        match on {
            true if self.0.is_none() => Err(io::ErrorKind::NotFound.into()),
            true => self.set(interface, "disable_ipv6", *b"0"),
            false => self.set(interface, "disable_ipv6", *b"1"),
        }
    }

    /// Has the host take no router advertisements on a bridge. No error where the kernel has no IPv6.
    pub fn no_routers(&self, bridge: &str) -> io::Result<()> {
        self.set(bridge, "accept_ra", *b"0")
    }

    /// Has the host forward IPv6, from and to all interfaces. Of those that there are, `routers` are those where it hears routers, as hosts that
    /// forward nothing do: it goes on to.
    pub fn forward<'a>(&self, routers: impl Iterator<Item = &'a str>) -> io::Result<()> {
        if self.0.is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for interface in routers {
            match self.set(interface, "accept_ra", *b"2") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.set("all", "forwarding", *b"1")
    }

    fn set(&self, interface: &str, setting: &str, value: [u8; LENGTH]) -> io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        write(folder, &format!("{interface}/{setting}"), value)
    }
}

/// Sets what is at a path in such a folder.
pub fn write(folder: &OwnedFd, path: &str, value: [u8; LENGTH]) -> io::Result<()> {
    let setting = retry_on_intr(|| fs::openat(folder, path, OPEN, Mode::empty()))?;
    retry_on_intr(|| rustix::io::write(&setting, &value))?;
    Ok(())
}
