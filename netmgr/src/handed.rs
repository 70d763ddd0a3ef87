//! What a caller hands over to have its network namespace configured: a descriptor of that, and a socket to the rtnetlink that is its own. Touches
//! these two; makes no other namespace its own, ever.
//!
//! Both are a stranger's. Nothing is asked of the namespace's descriptor that whoever serves its file system would have to answer. The socket's own
//! namespace comes from the kernel (`SIOCGSKNS`), and is the one that is used. What goes over the socket goes to nobody by name: then the kernel carries
//! it out only if the one who opened the socket has the right to, and not by netmgr's right alone, so that nobody configures by netmgr what he could not.
//! Its owner has it still, and may read answers, or have them not come: that costs him his port, and nobody else anything.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    fs::{AtFlags, StatxFlags},
    net::{self, AddressFamily, SocketAddrAny, netlink::SocketAddrNetlink, sockopt},
};

use crate::{
    error::Error,
    netlink::{Failure, Request, Socket},
};

/// What the `libc` crate lacks for some of its targets (linux/sockios.h): the namespace of a socket.
pub const SIOCGSKNS: u32 = 0x894c;

/// How a file is looked at; the filter knows no other way. Nothing is asked of whoever serves its file system.
pub const LOOK: AtFlags = AtFlags::EMPTY_PATH.union(AtFlags::STATX_DONT_SYNC);

/// Which network namespace it is: the number of its file in the kernel's own file system of namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u32, u32);

impl Identity {
    fn of(namespace: impl AsFd) -> io::Result<Identity> {
        let stat = rustix::fs::statx(namespace, c"", LOOK, StatxFlags::INO)?;
        Ok(Identity(stat.stx_ino, stat.stx_dev_major, stat.stx_dev_minor))
    }

    /// That of a socket.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Identity> {
        Identity::of(namespace_of(socket)?)
    }
}

fn namespace_of(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: SIOCGSKNS takes no argument, and gives a new descriptor or none.
    let namespace = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCGSKNS as libc::Ioctl) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// A namespace that is not netmgr's own, and a socket that was opened in it, on which nothing waits.
pub struct Handed {
    namespace: OwnedFd,
    socket: Socket,
}

impl Handed {
    /// Checks what was handed over to a netmgr in the namespace `own`.
    pub fn check(namespace: OwnedFd, socket: OwnedFd, own: Identity) -> Result<Handed, Error> {
        let refuse = |what: &str, why: &str| Error::argument("descriptor", what, why);
        let no_socket = |why: io::Error| refuse("netlink", &format!("it is no socket ({why})"));
        let family = sockopt::socket_domain(&socket).map_err(|why| no_socket(why.into()))?;
        let protocol = sockopt::socket_protocol(&socket).map_err(|why| no_socket(why.into()))?;
        if family != AddressFamily::NETLINK || protocol.is_some() {
            return Err(refuse("netlink", "it must be a socket of AF_NETLINK and NETLINK_ROUTE"));
        }
        let peer: Option<SocketAddrAny> = net::getpeername(&socket).map_err(|why| no_socket(why.into()))?;
        let peer = peer.and_then(|peer| SocketAddrNetlink::try_from(peer).ok());
        if peer.is_none_or(|peer| (peer.pid(), peer.groups()) != (0, 0)) {
            return Err(refuse("netlink", "it is connected to another process, and not to the kernel"));
        }
        let of_socket = namespace_of(&socket).map_err(|why| match why.raw_os_error() {
            Some(libc::EPERM) => Error::NoRight("ask for the network namespace of a socket".into()),
            _ => no_socket(why),
        })?;
        let looked =
            |which| Identity::of(which).map_err(|why| refuse("netns", &format!("nothing is known of it ({why})")));
        let identity = looked(of_socket.as_fd())?;
        if looked(namespace.as_fd())? != identity {
            return Err(refuse("netns", "it is not the network namespace that the socket `netlink` was opened in"));
        }
        if identity == own {
            return Err(refuse(
                "netns",
                "it is the network namespace of the bridges, and a container has one of its own",
            ));
        }
        let socket = Socket::handed(socket);
        if !socket.is_idle() {
            return Err(refuse("netlink", "something waits to be read on it: give one that was not used yet"));
        }
        Ok(Handed { namespace: of_socket, socket })
    }

    /// The namespace.
    pub fn namespace(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }

    /// Asks for several things within, each with what it is, and what may fail without consequence; gives `each` what is said.
    pub fn ask(
        &mut self,
        asked: Vec<(String, bool, Request)>,
        each: impl FnMut(crate::message::Message),
    ) -> Result<(), Error> {
        let (tried, requests): (Vec<_>, Vec<_>) =
            asked.into_iter().map(|(tried, needed, request)| ((tried, needed), request)).unzip();
        let answers = self.socket.exchange(requests, each).map_err(|failure| match failure {
            Failure::Io(source) => Error::Unheard(source.to_string()),
            Failure::Deadline => Error::Unheard("no answer is there".into()),
            Failure::Lost => Error::Unheard("an answer was lost".into()),
            Failure::Malformed(why) => Error::Unheard(why.into()),
        })?;
        answers.into_iter().zip(tried).try_for_each(|(answer, (tried, needed))| match answer {
            Err(refusal) if needed => {
                let source = io::Error::from_raw_os_error(refusal.errno);
                Err(Error::Within { tried, source })
            }
            _ => Ok(()),
        })
    }
}
