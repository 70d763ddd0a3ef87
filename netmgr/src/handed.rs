//! What a caller hands over to have a network namespace configured: that of a container, as a descriptor of it and a socket to the rtnetlink that is its own;
//! that of an isolated network, as sockets alone. Touches these; makes no other namespace its own, ever.
//!
//! All are a stranger's. Nothing is asked of the namespace's descriptor that whoever serves its file system would have to answer. The socket's own
//! namespace comes from the kernel (`SIOCGSKNS`), and is the one that is used. What goes over the socket goes to nobody by name: then the kernel carries
//! it out only if the one who opened the socket has the right to, and not by netmgr's right alone, so that nobody configures by netmgr what he could not.
//! Its owner has it still, and may read answers, or have them not come: that costs him his port, and nobody else anything.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    fs::{AtFlags, StatxFlags},
    net::{
        self, AddressFamily, Protocol, SocketAddrAny,
        netlink::{self, SocketAddrNetlink},
        sockopt,
    },
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

/// Why a socket is not taken.
pub const USED: &str = "something waits to be read on it: give one that was not used yet";

fn refuse(what: &str, why: &str) -> Error {
    Error::argument("descriptor", what, why)
}

fn looked(what: &str, which: impl AsFd) -> Result<Identity, Error> {
    Identity::of(which).map_err(|why| refuse(what, &format!("nothing is known of it ({why})")))
}

/// Checks that it is a socket to that part of the kernel, and to nobody else; gives the namespace that it was opened in.
fn check_socket(what: &str, socket: &OwnedFd, wanted: Option<Protocol>) -> Result<OwnedFd, Error> {
    let no_socket = |why: io::Error| refuse(what, &format!("it is no socket ({why})"));
    let family = sockopt::socket_domain(socket).map_err(|why| no_socket(why.into()))?;
    let protocol = sockopt::socket_protocol(socket).map_err(|why| no_socket(why.into()))?;
    if family != AddressFamily::NETLINK || protocol != wanted {
        let part = if wanted.is_some() { "NETLINK_NETFILTER" } else { "NETLINK_ROUTE" };
        return Err(refuse(what, &format!("it must be a socket of AF_NETLINK and {part}")));
    }
    let peer: Option<SocketAddrAny> = net::getpeername(socket).map_err(|why| no_socket(why.into()))?;
    let peer = peer.and_then(|peer| SocketAddrNetlink::try_from(peer).ok());
    if peer.is_none_or(|peer| (peer.pid(), peer.groups()) != (0, 0)) {
        return Err(refuse(what, "it is connected to another process, and not to the kernel"));
    }
    namespace_of(socket).map_err(|why| match why.raw_os_error() {
        Some(libc::EPERM) => Error::NoRight("ask for the network namespace of a socket".into()),
        _ => no_socket(why),
    })
}

/// The sockets of an isolated network's namespace.
pub struct Sockets {
    pub rtnetlink: OwnedFd,
    pub nfnetlink: OwnedFd,
    pub link_changes: OwnedFd,
    pub rule_changes: OwnedFd,
}

/// The same, checked: all are of one namespace.
pub struct Place {
    pub sockets: Sockets,
    pub namespace: OwnedFd,
    pub identity: Identity,
}

impl Sockets {
    /// Checks what was handed over.
    pub fn check(self) -> Result<Place, Error> {
        let of_rules = Some(netlink::NETFILTER);
        let namespace = check_socket("rtnetlink", &self.rtnetlink, None)?;
        let identity = looked("rtnetlink", namespace.as_fd())?;
        for (what, socket, wanted) in [
            ("nfnetlink", &self.nfnetlink, of_rules),
            ("linkChanges", &self.link_changes, None),
            ("ruleChanges", &self.rule_changes, of_rules),
        ] {
            if looked(what, check_socket(what, socket, wanted)?.as_fd())? != identity {
                return Err(refuse(what, "it was opened in another network namespace than `rtnetlink`"));
            }
        }
        for (what, socket) in [("linkChanges", &self.link_changes), ("ruleChanges", &self.rule_changes)] {
            let own = net::getsockname(socket).ok().and_then(|own| SocketAddrNetlink::try_from(own).ok());
            if own.is_none_or(|own| own.pid() == 0) {
                return Err(refuse(what, "it is not bound, and the kernel tells it nothing"));
            }
        }
        Ok(Place { sockets: self, namespace, identity })
    }
}

/// A namespace that is not netmgr's own, and a socket that was opened in it, on which nothing waits.
pub struct Handed {
    namespace: OwnedFd,
    socket: Socket,
}

impl Handed {
    /// Checks what was handed over; those in `own` are netmgr's, and no container's.
    pub fn check(namespace: OwnedFd, socket: OwnedFd, own: &[Identity]) -> Result<Handed, Error> {
        let of_socket = check_socket("netlink", &socket, None)?;
        let identity = looked("netns", of_socket.as_fd())?;
        if looked("netns", namespace.as_fd())? != identity {
            return Err(refuse("netns", "it is not the network namespace that the socket `netlink` was opened in"));
        }
        if own.contains(&identity) {
            return Err(refuse(
                "netns",
                "it is the network namespace of the bridges, and a container has one of its own",
            ));
        }
        let socket = Socket::handed(socket);
        if !socket.is_idle() {
            return Err(refuse("netlink", USED));
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
            Failure::Deadline | Failure::Unheard => Error::Unheard("no answer is there".into()),
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
