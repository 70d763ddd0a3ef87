//! TAPs through /dev/net/tun (the kernel's Documentation/networking/tuntap.rst). Touches that device alone.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{CWD, Mode, OFlags};

/// The device that TAPs are made through.
pub const DEVICE: &str = "/dev/net/tun";
/// Its major and minor number (Documentation/admin-guide/devices.txt).
pub const NUMBER: (u32, u32) = (10, 200);
/// Bytes of the virtio_net_hdr_v1 before each frame (Virtio 1.2, section 5.1.6).
const VNET_HEADER: libc::c_int = 12;
/// How it is opened; the filter knows no other way. (Rustix adds O_LARGEFILE.)
pub const OPEN: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::LARGEFILE);
/// The requests that the filter lets through.
pub const REQUESTS: [libc::Ioctl; 2] = [libc::TUNSETIFF, libc::TUNSETVNETHDRSZ];

/// Which step of making a TAP failed.
#[derive(Debug)]
pub enum Failure {
    /// Opening [`DEVICE`].
    Open(io::Error),
    /// An interface has that name, be it as alternative name.
    NameTaken,
    /// Making the interface.
    Make(io::Error),
}

/// Makes a TAP of that name. It is not persistent: it goes when its last descriptor is closed, so that it cannot outlive those who use it.
/// Never attaches to one that exists (IFF_TUN_EXCL). The descriptor does not block.
pub fn make(name: &str) -> Result<OwnedFd, Failure> {
    let open = rustix::fs::openat(CWD, DEVICE, OPEN, Mode::empty());
    let tap = open.map_err(|error| Failure::Open(error.into()))?;
    // SAFETY: all-zero bytes are a valid ifreq: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(made).map_err(|error| {
        if error.raw_os_error() == Some(libc::EBUSY) { Failure::NameTaken } else { Failure::Make(error) }
    })?;
    size_header(&tap).map_err(Failure::Make)?;
    Ok(tap)
}

/// Has the header before each frame be of the size that those who use it know, also of a macvtap's device.
pub fn size_header(tap: &OwnedFd) -> io::Result<()> {
    let header = VNET_HEADER;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives through the call.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
