//! The TAP: what the descriptor must be, how it is set up, and which offloads it takes.
//!
//! Touches the descriptor by ioctl only. Interfaces are made, and put on bridges, by others.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

/// Bytes of `virtio_net_hdr_v1`, which stands before every frame (Virtio 1.2, 5.1.6).
pub const HEADER: usize = 12;

/// Why a TAP was refused.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// It is no TAP.
    #[error("--tap-fd is no TAP interface's descriptor: open /dev/net/tun and attach it with TUNSETIFF")]
    NoTap(#[source] io::Error),
    /// It was set up differently.
    #[error("The TAP was set up without {0}: attach it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Flags(&'static str),
    /// It could not be set up.
    #[error("Cannot {what} of the TAP")]
    SetUp {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// One queue of a TAP interface.
#[derive(Debug, Clone)]
pub struct Tap(Arc<OwnedFd>);

impl Tap {
    /// Checks the descriptor, and sets it up for 12-byte headers without offloads.
    pub fn new(fd: OwnedFd) -> Result<Tap, TapError> {
        let tap = Tap(Arc::new(fd));
        let flags = tap.flags().map_err(TapError::NoTap)?;
        // IFF_NO_PI cannot be seen: TUNGETIFF gives its bit for "no filter" as well.
        for (flag, name) in [(libc::IFF_TAP, "IFF_TAP"), (libc::IFF_VNET_HDR, "IFF_VNET_HDR")] {
            if i32::from(flags) & flag == 0 {
                return Err(TapError::Flags(name));
            }
        }
        tap.set_header_size().map_err(|source| TapError::SetUp { what: "set the header size", source })?;
        let nonblocking =
            rustix::fs::fcntl_getfl(&tap.0).and_then(|flags| rustix::fs::fcntl_setfl(&tap.0, flags | OFlags::NONBLOCK));
        nonblocking.map_err(|e| TapError::SetUp { what: "set the non-blocking flag", source: e.into() })?;
        tap.set_offloads(0)?;
        Ok(tap)
    }

    /// The descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Lets the kernel hand over what a driver with these features understands.
    pub fn set_offloads(&self, features: u64) -> Result<(), TapError> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let answer =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads(features))) };
        result(answer).map_err(|source| TapError::SetUp { what: "set the offloads", source })
    }

    fn flags(&self) -> io::Result<libc::c_short> {
        // SAFETY: an all-zero ifreq is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: TUNGETIFF fills in the ifreq it is given, which lives through the call; then its flags are set.
        unsafe {
            result(libc::ioctl(self.0.as_raw_fd(), libc::TUNGETIFF, &raw mut request))?;
            Ok(request.ifr_ifru.ifru_flags)
        }
    }

    fn set_header_size(&self) -> io::Result<()> {
        let size = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which lives through the call.
        result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
    }
}

/// The TUN_F_* for what the driver can receive: without checksums no segmentation (5.1.3.1).
fn offloads(features: u64) -> libc::c_uint {
    let has = |bit: u32| features & 1 << bit != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    if has(VIRTIO_NET_F_GUEST_TSO4) {
        offloads |= libc::TUN_F_TSO4;
    }
    if has(VIRTIO_NET_F_GUEST_TSO6) {
        offloads |= libc::TUN_F_TSO6;
    }
    offloads
}

fn result(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segmentation_without_checksums_gives_no_offload() {
        let tso = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        assert_eq!(offloads(tso), 0);
        assert_eq!(offloads(1 << VIRTIO_NET_F_GUEST_CSUM), libc::TUN_F_CSUM);
        let all = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        assert_eq!(offloads(tso | 1 << VIRTIO_NET_F_GUEST_CSUM), all);
    }

    #[test]
    fn a_file_that_is_no_tap_is_refused() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(matches!(Tap::new(file), Err(TapError::NoTap(_))));
    }
}
