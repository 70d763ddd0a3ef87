//! Hears of changes to interfaces, addresses, routes and rules, and has the rtnl thread look at what they are about. Touches two sockets, reads of
//! what comes over them only what it may concern, and asks the kernel for nothing: a look at the network is the rtnl thread's.
//!
//! Most changes are netmgr's own. They are not told from others' (the kernel does not say of all of them whose they are): what is looked at is what is
//! there now of that one interface, which takes as long with a thousand of them.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use rtnetlink::{packet_core::parse_mac, sys};
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, sockopt},
};
use tokio::{io::Interest, time::sleep};

use crate::{
    address::InterfaceAddress,
    attribute::{attributes, number},
    error::Error,
    forwarding::NDA_LLADDR,
    nft::{self, Filter},
};

/// RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_IFADDR and RTNLGRP_IPV6_ROUTE (linux/rtnetlink.h). The fifth tells
/// too that somebody has switched the host's IPv6 on or off on a bridge: the setting itself has no message.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h).
const RULES: u32 = 7;
/// RTPROT_KERNEL: a route that the kernel makes for an address.
const BY_KERNEL: u8 = 2;
/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// And the most, while each look finds something to mend, or cannot mend it: another program that changes it back is not fought with more
/// often, and what could not be done for a reason that may pass is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Messages that are taken before a look, and no more, so that a flood of them does not put it off.
const MESSAGES: usize = 4096;
/// Bytes that may wait to be heard, as the kernel counts them, which takes some 4 KiB for a change to an interface: several hundred ports a second come and go
/// between two looks, with ten changes each, and where one is lost, a look at everything takes its place.
const WAITING: usize = 4 << 20;
/// Bytes of a message before its attributes: its header, and a route's or a neighbour's (`nlmsghdr`, and `rtmsg` or `ndmsg`).
const START: usize = HEADER + 12;
/// Of these its header.
const HEADER: usize = 16;
/// Bytes that are read of a message about interfaces: all of what is said of what a bridge forwards, and the start of others.
const LINK: usize = 256;
/// Bytes that are read of a message about rules: what is longer may concern any table.
const LONGEST: usize = 8 * 1024;
/// As everything on this thread receives (its filter knows no other way).
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);

/// What has changed, as far as it may concern a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Anything: it cannot be told, or is too much.
    pub all: bool,
    /// Something about the interfaces of these indexes.
    pub links: BTreeSet<u32>,
    /// Where bridges send frames to these addresses.
    pub macs: BTreeSet<[u8; 6]>,
    /// Rules.
    pub rules: bool,
    /// Which interfaces came onto which bridges, went from there, or are there.
    pub ports: BTreeSet<(u32, u32)>,
    /// Which addresses came onto the host, or went from it.
    pub addresses: BTreeSet<IpAddr>,
    /// Something of which nothing is known.
    pub lost: bool,
}

impl Changes {
    fn none(&self) -> bool {
        *self == Changes::default()
    }

    /// Notes what a message about interfaces says, of which this is the start.
    ///
    /// The routes that routing daemons bring, a great many, concern nobody: only those that the kernel has made, and those that were put in another
    /// one's place, of which nothing more is said. Nor do the host's neighbours: only what bridges forward.
    fn note(&mut self, start: &[u8]) {
        let Some((head, rest)) = start.split_first_chunk::<START>() else {
            (self.all, self.lost) = (true, true);
            return;
        };
        let [_, _, _, _, kind, kind2, flags, flags2, .., family, _, _, _, i, protocol, j, k, _, _, _, _] = head;
        let (kind, flags) = (u16::from_ne_bytes([*kind, *kind2]), u16::from_ne_bytes([*flags, *flags2]));
        let index = u32::from_ne_bytes([*i, *protocol, *j, *k]);
        match kind {
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                self.all |= *protocol == BY_KERNEL || i32::from(flags) & libc::NLM_F_REPLACE != 0;
            }
            libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH | libc::RTM_GETNEIGH => {
                if i32::from(*family) == libc::AF_BRIDGE {
                    let mac = attributes(rest).find_map(|one| one.ok().filter(|one| one.kind() == NDA_LLADDR));
                    match mac.and_then(|mac| parse_mac(mac.value()).ok()) {
                        Some(mac) => _ = self.macs.insert(mac),
                        None => self.all = true,
                    }
                }
            }
            libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                self.links.insert(index);
                if i32::from(*family) == libc::AF_BRIDGE {
                    // Behind the rest of its header. What has none is no bridge's.
                    let mut all = attributes(rest.get(4..).unwrap_or_default());
                    let bridge = all.find(|one| one.as_ref().map_or(true, |one| one.kind() == libc::IFLA_MASTER));
                    match bridge.map(|one| one.and_then(|one| number(one.value(), "index of a bridge"))) {
                        Some(Ok(bridge)) => _ = self.ports.insert((index, bridge)),
                        Some(Err(_)) => self.lost = true,
                        None => {}
                    }
                }
            }
            libc::RTM_NEWADDR | libc::RTM_DELADDR => {
                self.all = true;
                match start.get(HEADER..).map(InterfaceAddress::read) {
                    Some(Ok(Some(one))) => _ = self.addresses.insert(one.address.ip),
                    Some(Ok(None)) => {}
                    _ => self.lost = true,
                }
            }
            _ => (self.all, self.lost) = (true, true),
        }
    }
}

/// Sockets that the kernel tells of changes.
pub struct Monitor {
    links: OwnedFd,
    /// And the table whose changes are of interest.
    rules: Option<(OwnedFd, String)>,
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<OwnedFd> {
    let mut socket = sys::Socket::new(protocol)?;
    socket.bind(&sys::SocketAddr::new(0, 0))?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    // Where the kernel does not let that be raised, its own limit holds.
    let _ = sockopt::set_socket_recv_buffer_size_force(&socket, WAITING);
    socket.as_fd().try_clone_to_owned()
}

impl Monitor {
    /// Opens them, in phase 1: later no socket can be made.
    pub fn open(filter: Option<&Filter>) -> Result<Monitor, Error> {
        let failed = |what: &str| {
            let tried = format!("tell of changes to {what}");
            move |source| Error::Kernel { tried, source, detail: String::new() }
        };
        let links = open(sys::protocols::NETLINK_ROUTE, &GROUPS).map_err(failed("interfaces"))?;
        let rules = match filter.map(|filter| (open(sys::protocols::NETLINK_NETFILTER, &[RULES]), filter.table())) {
            // Who may not hear of rules may not change any.
            Some((Err(error), _)) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Some((socket, table)) => Some((socket.map_err(failed("rules"))?, table.to_owned())),
            None => None,
        };
        Ok(Monitor { links, rules })
    }

    /// Those of an isolated network's namespace, that somebody has opened.
    pub fn handed(links: OwnedFd, rules: Option<(OwnedFd, &str)>) -> Monitor {
        Monitor { links, rules: rules.map(|(socket, table)| (socket, table.to_owned())) }
    }

    /// The sockets' descriptors, for the sandbox to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        [&self.links].into_iter().chain(self.rules.iter().map(|(socket, _)| socket)).map(AsRawFd::as_raw_fd)
    }

    /// Has a `look` taken at all after each change, and again until all is as it should be; ends when the socket fails, or there is nothing to look at
    /// any more.
    pub async fn watch(self, look: impl AsyncFn(Changes) -> Result<bool, Error>) -> io::Result<Infallible> {
        let links = ipc::watch(self.links, Interest::READABLE)?;
        let rules =
            self.rules.map(|(socket, table)| Ok::<_, io::Error>((ipc::watch(socket, Interest::READABLE)?, table)));
        let rules = rules.transpose()?;
        let rules_changed = async || match &rules {
            Some((socket, table)) => {
                let note = |changes: &mut Changes, message: &[u8]| changes.rules |= nft::concerns(message, table);
                socket.async_io(Interest::READABLE, |socket| take::<LONGEST>(socket, note)).await
            }
            None => std::future::pending().await,
        };
        // What could not be mended at the start is looked at again as well.
        let (mut settled, mut pause) = (false, PAUSE);
        loop {
            let mut changes = Changes { all: true, ..Changes::default() };
            if settled {
                changes = tokio::select! {
                    heard = links.async_io(Interest::READABLE, |socket| take::<LINK>(socket, Changes::note)) => heard?,
                    heard = rules_changed() => heard?,
                };
            }
            settled = match look(changes).await {
                Ok(whole) => whole,
                Err(Error::Revoked(_)) => return Err(io::ErrorKind::NotFound.into()),
                Err(error) => {
                    confine::say!("netmgr: {}", error.fault("see what has changed on this host"));
                    false
                }
            };
            pause = if settled { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            sleep(pause).await;
        }
    }
}

/// Takes what there is; `WouldBlock` if none of it may concern a network. That some was lost, as more came than the socket holds, says as much
/// as any message: everything is looked at.
fn take<const START: usize>(socket: &OwnedFd, note: impl Fn(&mut Changes, &[u8])) -> io::Result<Changes> {
    let mut changes = Changes::default();
    for _ in 0..MESSAGES {
        let mut start = [0; START];
        let buffers = &mut [IoSliceMut::new(&mut start)];
        match rustix::net::recvmsg(socket, buffers, &mut RecvAncillaryBuffer::default(), RECEIVE) {
            Ok(message) => note(&mut changes, start.get(..message.bytes).unwrap_or_default()),
            Err(Errno::NOBUFS) => (changes.all, changes.lost) = (true, true),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if !changes.none() => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use rtnetlink::LinkUnspec;

    use super::*;
    use crate::{
        attribute::attribute,
        rtnl::{Batch, Rtnl},
    };

    /// As many as some hundred ports make that come and go between two looks.
    #[test]
    fn changes_by_the_thousand_are_heard_of_each_and_none_for_all() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let lo = rtnl.link(LinkUnspec::new_with_name("lo")).unwrap().unwrap().index;
            // Of one that is down nobody hears that it is changed.
            rtnl.run(Batch::default().set("bring it up", LinkUnspec::new_with_index(lo).up())).unwrap();
            let monitor = Monitor::open(None).unwrap();
            for n in 0..1500 {
                let named = LinkUnspec::new_with_index(lo).alias(format!("{n}"));
                rtnl.run(Batch::default().set("name it", named)).unwrap();
            }
            let heard = take::<LINK>(&monitor.links, Changes::note).unwrap();
            assert_eq!(heard, Changes { links: [lo].into(), ..Changes::default() });
        };
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn change_concerns_what_it_is_about_and_no_route_of_somebody_s_own() {
        let noted = |message: &[u8]| {
            let mut changes = Changes::default();
            changes.note(message);
            changes
        };
        let message = |kind: u16, flags: u16, protocol: u8| {
            let mut start = [0; START];
            start[4..6].copy_from_slice(&kind.to_ne_bytes());
            start[6..8].copy_from_slice(&flags.to_ne_bytes());
            start[21] = protocol;
            start
        };
        let all = || Changes { all: true, ..Changes::default() };
        for route in [libc::RTM_NEWROUTE, libc::RTM_DELROUTE] {
            assert_eq!(noted(&message(route, 0, BY_KERNEL)), all());
            assert_eq!(noted(&message(route, libc::NLM_F_REPLACE as u16, 3)), all());
            assert!(noted(&message(route, libc::NLM_F_CREATE as u16, 3)).none());
        }
        for neighbour in [libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH] {
            let mut message = message(neighbour, 0, 0);
            assert!(noted(&message).none());
            message[16] = libc::AF_BRIDGE as u8;
            // Of an address that is not said.
            assert_eq!(noted(&message), all());
            let of = [&message[..], &attribute(5, &[1, 0]), &attribute(NDA_LLADDR, &[2, 0, 0, 0, 0, 7])].concat();
            assert_eq!(noted(&of), Changes { macs: [[2, 0, 0, 0, 0, 7]].into(), ..Changes::default() });
            assert_eq!(noted(&of[..of.len() - 5]), all());
        }
        for of_link in [libc::RTM_NEWLINK, libc::RTM_DELLINK] {
            let mut message = message(of_link, 0, 0);
            message[20..24].copy_from_slice(&0x0102_0304_u32.to_ne_bytes());
            let of_link = Changes { links: [0x0102_0304].into(), ..Changes::default() };
            assert_eq!(noted(&message), of_link);
            // Also one as a bridge's port, of which it says which bridge that is, or one that is none.
            message[16] = libc::AF_BRIDGE as u8;
            let of = [&message[..], &[0; 4], &attribute(libc::IFLA_IFNAME, b"tap-web\0")].concat();
            assert_eq!(noted(&of), of_link);
            let of_port = [&of[..], &attribute(libc::IFLA_MASTER, &7_u32.to_ne_bytes())].concat();
            assert_eq!(noted(&of_port), Changes { ports: [(0x0102_0304, 7)].into(), ..of_link.clone() });
            assert_eq!(noted(&of_port[..of_port.len() - 1]), Changes { lost: true, ..of_link });
        }
        let lost = || Changes { lost: true, ..all() };
        for of_address in [libc::RTM_NEWADDR, libc::RTM_DELADDR] {
            let start = &message(of_address, 0, 0)[..HEADER];
            let [v4, v6]: [IpAddr; 2] = ["10.42.0.7", "fd00::7"].map(|address| address.parse().unwrap());
            let of_v4 =
                [start, &[libc::AF_INET as u8, 24, 0, 0, 1, 0, 0, 0], &attribute(libc::IFA_LOCAL, &[10, 42, 0, 7])];
            let IpAddr::V6(bytes) = v6 else { panic!("{v6}") };
            let of_v6 =
                [start, &[libc::AF_INET6 as u8, 64, 0, 0, 1, 0, 0, 0], &attribute(libc::IFA_ADDRESS, &bytes.octets())];
            for (of, address) in [(of_v4.concat(), v4), (of_v6.concat(), v6)] {
                assert_eq!(noted(&of), Changes { addresses: [address].into(), ..all() });
                assert_eq!(noted(&of[..of.len() - 1]), lost());
            }
        }
        for other in [0, 0xffff] {
            assert_eq!(noted(&message(other, 0, 3)), lost(), "{other}");
        }
        // What is cut off may be anything.
        for end in 0..START {
            assert_eq!(noted(&message(libc::RTM_NEWROUTE, 0, 3)[..end]), lost(), "{end}");
        }
    }
}
