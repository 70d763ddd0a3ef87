//! Network namespaces of isolated networks. Each is held by a bind mount in the state directory, whose file says beside that the network is one: after a reboot
//! that is an empty file, and the namespace is made anew. `netmgr` is handed sockets of it with each definition, as one that has been started again knows of none.
//! In the wide phase, and on threads of their own, which end within; nothing is read from anybody.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::{Mode, OFlags},
    mount::MountFlags,
    net::{
        self, AddressFamily, Protocol, SocketFlags, SocketType,
        netlink::{self, SocketAddrNetlink},
        sockopt,
    },
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use schema::names::is_network;
use serde::Deserialize;

use crate::{
    error::Error,
    host::{lock::take_lock, paths::Paths},
};

/// The folder of the mounts, below the state directory.
const FOLDER: &str = "netns";
/// In the state directory.
const LOCK: &str = "networks.lock";
/// Of the file system that namespaces' files are on (linux/magic.h).
const NSFS: i64 = 0x6e73_6673;
/// Bytes that the rules of a network may take when they are sent (`netmgr`'s longest batch).
const RULES: usize = 8 << 20;
/// RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR and _IPV6_ROUTE (linux/rtnetlink.h).
const LINK_CHANGES: [i32; 6] = [1, 3, 5, 7, 9, 11];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const RULE_CHANGES: [i32; 1] = [7];

/// What is handed over of a network's namespace, as `Namespace` of schema/host.capnp has it.
pub struct Handed {
    /// The network.
    pub name: String,
    /// In its order.
    pub sockets: [OwnedFd; 4],
}

/// What of a definition is to be known before `ipamd`, for which all else about it is, has seen it.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Definition {
    network: String,
    r#type: String,
}

impl Definition {
    /// Reads it; nothing of what is none.
    pub fn read(text: &str) -> Definition {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The network's name, if it may be one.
    pub fn network(&self) -> Option<&str> {
        is_network(&self.network).then_some(self.network.as_str())
    }

    /// Whether it is to be isolated.
    pub fn is_isolated(&self) -> bool {
        self.r#type == "isolated"
    }
}

/// Where the namespace of a network is mounted.
pub fn path(paths: &Paths, network: &str) -> PathBuf {
    paths.state.join(FOLDER).join(network)
}

/// Whether that network is known as an isolated one.
pub fn is(paths: &Paths, network: &str) -> bool {
    is_network(network) && fs::symlink_metadata(path(paths, network)).is_ok_and(|found| found.is_file())
}

/// All that are known, and have a namespace.
pub fn all(paths: &Paths) -> Result<Vec<Handed>, Error> {
    let folder = paths.state.join(FOLDER);
    let names = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.and_then(|names| names.map(|name| Ok(name?.file_name())).collect::<io::Result<Vec<_>>>()),
    };
    let names = names.map_err(|source| Error::OwnUnreadable { path: folder, source })?;
    let names = names.iter().filter_map(|name| name.to_str()).filter(|name| is(paths, name));
    let mut all = Vec::new();
    for name in names {
        // One that has none has no ports either.
        if let Some(namespace) = found(&path(paths, name)).map_err(|source| failed("open", name, source))? {
            all.push(opened(name, &namespace)?);
        }
    }
    Ok(all)
}

/// The namespace of a network that is known as an isolated one: made again where it has gone, as with a reboot.
pub fn open(paths: &Paths, network: &str) -> Result<Option<Handed>, Error> {
    if !is(paths, network) {
        return Ok(None);
    }
    let path = path(paths, network);
    let tried = |source| failed("open", network, source);
    let namespace = match found(&path).map_err(tried)? {
        Some(namespace) => namespace,
        None => {
            // Of two at once, one makes it.
            let _lock = take_lock(&paths.state.join(FOLDER))?;
            if found(&path).map_err(tried)?.is_none() {
                make(&path).map_err(|source| failed("make", network, source))?;
            }
            found(&path).map_err(tried)?.ok_or_else(|| tried(io::ErrorKind::NotFound.into()))?
        }
    };
    opened(network, &namespace).map(Some)
}

/// Keeps out all others who define isolated networks, or remove any network, as long as it is open: a file, as whoever has a folder open can look out of that.
pub fn lock(paths: &Paths) -> Result<OwnedFd, Error> {
    let path = paths.state.join(LOCK);
    let made = File::options().append(true).create(true).mode(0o600).open(&path);
    made.map_err(|source| Error::Unwritable { path: path.clone(), source })?;
    take_lock(&path)
}

/// Has a network be known as an isolated one; whether it was not before.
pub fn note(paths: &Paths, network: &str) -> Result<bool, Error> {
    let path = path(paths, network);
    let folder = fs::create_dir_all(paths.state.join(FOLDER));
    let noted = folder.and_then(|()| File::options().write(true).create_new(true).mode(0o600).open(&path));
    match noted {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Unwritable { path, source }),
    }
}

/// Why something about the namespace of a network failed.
pub fn failed(tried: &'static str, network: &str, source: io::Error) -> Error {
    Error::Namespace { tried, network: network.to_owned(), source }
}

/// The namespace that is mounted there, if one is.
pub fn found(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        file => file?,
    };
    Ok((rustix::fs::fstatfs(&file)?.f_type == NSFS).then_some(file))
}

/// Does something on a thread that ends with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
    })
}

/// Makes a namespace whose kernel has no IPv6 of its own and forwards nothing, and mounts it there.
fn make(path: &Path) -> io::Result<()> {
    on_a_thread(|| {
        // SAFETY: of what this thread shares with others it takes nothing but the network namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        for (setting, value) in [
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
            ("ipv4/conf/all/forwarding", "0"),
            ("ipv4/conf/default/forwarding", "0"),
        ] {
            match fs::write(Path::new("/proc/sys/net").join(setting), value) {
                // A kernel without IPv6.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(rustix::mount::mount("/proc/thread-self/ns/net", path, c"", MountFlags::BIND, None)?)
    })
}

fn opened(network: &str, namespace: &OwnedFd) -> Result<Handed, Error> {
    let sockets = on_a_thread(|| {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let rules = Some(netlink::NETFILTER);
        let (rtnetlink, nfnetlink) = (asks(None)?, asks(rules)?);
        sockopt::set_socket_send_buffer_size_force(&nfnetlink, RULES)?;
        Ok([rtnetlink, nfnetlink, hears(None, &LINK_CHANGES)?, hears(rules, &RULE_CHANGES)?])
    });
    let sockets = sockets.map_err(|source| failed("enter", network, source))?;
    Ok(Handed { name: network.to_owned(), sockets })
}

fn socket(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?)
}

/// One that says why the kernel refuses something, and lists what it is asked for alone.
fn asks(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = socket(protocol)?;
    for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK, libc::NETLINK_GET_STRICT_CHK] {
        match set(&socket, option, 1) {
            // Before Linux 4.20.
            Err(error) if error.raw_os_error() != Some(libc::ENOPROTOOPT) => return Err(error),
            _ => {}
        }
    }
    Ok(socket)
}

/// One that is told of changes.
fn hears(protocol: Option<Protocol>, groups: &[i32]) -> io::Result<OwnedFd> {
    let socket = socket(protocol)?;
    net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    groups.iter().try_for_each(|group| set(&socket, libc::NETLINK_ADD_MEMBERSHIP, *group))?;
    Ok(socket)
}

fn set(socket: &OwnedFd, option: i32, value: i32) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: reads one int, which lives through the call.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, (&raw const value).cast(), size) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_says_its_network_and_whether_that_is_isolated_and_what_is_none_says_neither() {
        for (text, network, isolated) in [
            (r#"{"type":"isolated","network":"iso0","subnet":"10.0.0.0/24"}"#, Some("iso0"), true),
            (r#"{"type":"bridged","network":"iso0"}"#, Some("iso0"), false),
            (r#"{"network":"iso0"}"#, Some("iso0"), false),
            (r#"{"type":"isolated"}"#, None, true),
            (r#"{"type":"isolated","network":"../iso0"}"#, None, true),
            (r#"{"type":"isolated","network":""}"#, None, true),
            (r#"{"type":"isolated","network":"all"}"#, None, true),
            (r#"{"type":"isolated","network":7}"#, None, false),
            (r#"{"type":["isolated"],"network":"iso0"}"#, None, false),
            ("", None, false),
            ("{", None, false),
            ("[]", None, false),
        ] {
            let definition = Definition::read(text);
            assert_eq!((definition.network(), definition.is_isolated()), (network, isolated), "{text}");
        }
    }
}
