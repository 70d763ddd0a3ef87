//! A container's network namespace, by the path that its engine gives. Entered on a thread of its own, which ends with that, before this process is
//! narrow. Touches that file, and a socket that stays in that namespace.

use std::{ffi::CStr, fs, io, net::IpAddr, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{CWD, Mode, OFlags},
    net::{AddressFamily, SocketFlags, SocketType},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::answer::{self, Refusal};

/// What is handed over to `netmgr`, and what was found within.
pub struct Handed {
    pub namespace: OwnedFd,
    pub socket: OwnedFd,
    /// Whether an interface that comes there has IPv6: whoever has made the container may have switched that off.
    pub ipv6: bool,
    /// Names of interfaces and their addresses, if these were to be looked at.
    pub found: Vec<(String, IpAddr)>,
}

/// Opens it, and a socket to its rtnetlink; and looks at its addresses, if these are wanted.
pub fn open(path: &Path, look: bool) -> Result<Handed, Refusal> {
    let tried = format!("enter the network namespace {}", path.display());
    // A FIFO is not waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let failed = |why: io::Error| {
        let code = if why.kind() == io::ErrorKind::NotFound { answer::UNKNOWN } else { answer::IO };
        Refusal::new(code, &tried, why)
    };
    let namespace = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|why| failed(why.into()))?;
    let within = || {
        use std::os::fd::AsFd;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // Of the namespace of who reads it.
        let off = fs::read_to_string("/proc/sys/net/ipv6/conf/default/disable_ipv6");
        let ipv6 = off.is_ok_and(|off| off.trim() == "0");
        Ok((socket, ipv6, if look { addresses()? } else { Vec::new() }))
    };
    let entered: io::Result<_> = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, within)?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    });
    let (socket, ipv6, found) = entered.map_err(failed)?;
    Ok(Handed { namespace, socket, ipv6, found })
}

/// Interfaces' addresses of the namespace that this thread is in.
fn addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: it makes a list of its own, and writes where that begins.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let (mut found, mut next) = (Vec::new(), first);
    while !next.is_null() {
        // SAFETY: an entry of the list, which is freed below, after the last look at it.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() || entry.ifa_name.is_null() {
            continue;
        }
        // SAFETY: a text of the list's; and an address, which is as long as its family says, and aligned for it.
        let (name, address) = unsafe {
            let name = CStr::from_ptr(entry.ifa_name).to_string_lossy().into_owned();
            let address = match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address: libc::sockaddr_in = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    Some(IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()))
                }
                libc::AF_INET6 => {
                    let address: libc::sockaddr_in6 = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    Some(IpAddr::from(address.sin6_addr.s6_addr))
                }
                _ => None,
            };
            (name, address)
        };
        found.extend(address.map(|address| (name, address)));
    }
    // SAFETY: it was made above, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}
