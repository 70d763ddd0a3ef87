//! Ports of the host that lead to a guest, and the sockets by which they are held: handed over, or, of what an earlier netmgr has published, bound in phase 1.
//! Reads of a socket what it is and what it is bound to, and never what comes to it.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use crate::error::Error;

/// What the libc crate lacks of asm-generic/socket.h, from Linux 5.14.
const SO_NETNS_COOKIE: i32 = 71;

/// What is asked of a socket, beside what it is: for the sandbox to allow.
pub const OPTIONS: [(i32, i32); 5] = [
    (libc::SOL_SOCKET, SO_NETNS_COOKIE),
    (libc::SOL_SOCKET, libc::SO_ACCEPTCONN),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
];

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IPPROTO_*.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// A port of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: Protocol,
    /// One of the host's own, or all of its family.
    pub at: SocketAddr,
}

impl HostPort {
    /// Whether something may come to both.
    pub fn overlaps(&self, other: &HostPort) -> bool {
        let (one, two) = (self.at.ip(), other.at.ip());
        let all = one.is_unspecified() || two.is_unspecified() || one == two;
        (self.protocol, self.at.port()) == (other.protocol, other.at.port()) && one.is_ipv4() == two.is_ipv4() && all
    }

    /// Takes it, in phase 1, so that nobody else has it: a socket that does not listen, and of which nothing is read.
    pub fn hold(&self) -> io::Result<OwnedFd> {
        let family = if self.at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if self.protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if self.at.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        bind(&socket, &self.at)?;
        Ok(socket)
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = if self.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        write!(f, "{protocol} {}", self.at)
    }
}

/// A port of the host, and where it leads.
#[derive(Clone, Debug)]
pub struct Published {
    pub host: HostPort,
    /// The guest's address of that family, and its port.
    pub guest: SocketAddr,
    /// `None` for one of an earlier netmgr that is another process's.
    pub held: Option<Arc<OwnedFd>>,
}

/// What a socket holds, which a caller says is a port of the network namespace that `own` is of.
pub fn held(socket: &OwnedFd, own: i32) -> Result<HostPort, Error> {
    let refuse = |why: &str| Error::argument("socket", "", why);
    let option = |level, name| option_of(socket.as_raw_fd(), level, name);
    let no_socket = |_: io::Error| refuse("it is none of IPv4 or IPv6");
    let domain = option(libc::SOL_SOCKET, libc::SO_DOMAIN).map_err(no_socket)? as i32;
    let protocol = match option(libc::SOL_SOCKET, libc::SO_PROTOCOL).map_err(no_socket)? as i32 {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => return Err(refuse("it is neither of TCP nor of UDP")),
    };
    // A number of a namespace that nobody else has is no other's.
    let here = option_of(own, libc::SOL_SOCKET, SO_NETNS_COOKIE);
    if here.is_err() || here.ok() != option(libc::SOL_SOCKET, SO_NETNS_COOKIE).ok() {
        return Err(refuse("it is of another network namespace, or the kernel cannot tell (Linux 5.14 can)"));
    }
    let is = |level, name| Ok::<bool, Error>(option(level, name).map_err(no_socket)? != 0);
    let listens = protocol == Protocol::Tcp && is(libc::SOL_SOCKET, libc::SO_ACCEPTCONN)?;
    // Nobody is let in beside one that listens, whatever both say.
    if is(libc::SOL_SOCKET, libc::SO_REUSEPORT)? || !listens && is(libc::SOL_SOCKET, libc::SO_REUSEADDR)? {
        return Err(refuse("it lets others have the port too (SO_REUSEADDR without listening, or SO_REUSEPORT)"));
    }
    let at = bound_to(socket).ok_or_else(|| refuse("it is not bound to an address of IPv4 or IPv6"))?;
    if domain == libc::AF_INET6 && at.ip().is_unspecified() && !is(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)? {
        return Err(refuse("it is for IPv4 too; set IPV6_V6ONLY, and have another one for that"));
    }
    if at.port() == 0 {
        return Err(refuse("it is not bound to a port"));
    }
    if at.ip().is_ipv6() && at.ip().is_loopback() {
        return Err(refuse("nothing comes to a guest from ::1; bind it to 127.0.0.1, or to all addresses"));
    }
    Ok(HostPort { protocol, at })
}

/// An option that is a number, of four bytes or eight.
fn option_of(socket: i32, level: i32, name: i32) -> io::Result<u64> {
    let mut value = [0_u8; 8];
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: writes no more than `length` bytes to `value`, and then its own to `length`; both live through the call.
    let got = unsafe { libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    let [a, b, c, d, ..] = value;
    match length {
        4 => Ok(u32::from_ne_bytes([a, b, c, d]).into()),
        8 => Ok(u64::from_ne_bytes(value)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn bound_to(socket: &OwnedFd) -> Option<SocketAddr> {
    let address = rustix::net::getsockname(socket).ok()?;
    SocketAddr::try_from(address).ok()
}
