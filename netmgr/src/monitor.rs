//! Hears of changes to interfaces, addresses, routes and rules, and has the rtnl thread look at what there is now. Touches two sockets, reads of
//! what comes over them only whether it may concern a network, and asks the kernel for nothing: a look at the network is the rtnl thread's.

use std::{
    convert::Infallible,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use rtnetlink::sys;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags},
};
use service::Owner;
use tokio::{io::Interest, time::sleep};

use crate::{
    error::Error,
    manager::Manager,
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
/// Bytes that are read of a message: its header, and a route's or a neighbour's (`nlmsghdr`, and `rtmsg` or `ndmsg`).
const START: usize = 16 + 12;
/// Bytes that are read of a message about rules: what is longer may concern any table.
const LONGEST: usize = 8 * 1024;
/// As everything on this thread receives (its filter knows no other way).
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);

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

    /// The sockets' descriptors, for the sandbox to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        [&self.links].into_iter().chain(self.rules.iter().map(|(socket, _)| socket)).map(AsRawFd::as_raw_fd)
    }

    /// Has all looked at after each change, and again until all is as it should be; ends when the socket fails.
    pub async fn watch(self, manager: &Owner<Manager>) -> io::Result<Infallible> {
        let links = ipc::watch(self.links, Interest::READABLE)?;
        let rules =
            self.rules.map(|(socket, table)| Ok::<_, io::Error>((ipc::watch(socket, Interest::READABLE)?, table)));
        let rules = rules.transpose()?;
        let rules_changed = async || match &rules {
            Some((socket, table)) => {
                let take = |socket: &OwnedFd| take::<LONGEST>(socket, |message| nft::concerns(message, table));
                socket.async_io(Interest::READABLE, take).await
            }
            None => std::future::pending().await,
        };
        // What could not be mended at the start is looked at again as well.
        let (mut settled, mut pause) = (false, PAUSE);
        loop {
            if settled {
                tokio::select! {
                    heard = links.async_io(Interest::READABLE, |socket| take::<START>(socket, may_concern)) => heard?,
                    heard = rules_changed() => heard?,
                }
            }
            settled = match manager.ask(|manager| manager.mend()).await {
                Ok(whole) => whole,
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
fn take<const START: usize>(socket: &OwnedFd, concerns: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut heard = false;
    for _ in 0..MESSAGES {
        let mut start = [0; START];
        let buffers = &mut [IoSliceMut::new(&mut start)];
        match rustix::net::recvmsg(socket, buffers, &mut RecvAncillaryBuffer::default(), RECEIVE) {
            Ok(message) => heard |= concerns(start.get(..message.bytes).unwrap_or_default()),
            Err(Errno::NOBUFS) => heard = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if heard => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether a change is one that may be to a network. The routes that routing daemons bring, a great many, are not: only those that the
/// kernel has made, and those that were put in another one's place, of which nothing more is said. Nor are the host's neighbours: only what
/// bridges forward.
fn may_concern(start: &[u8]) -> bool {
    let Some([_, _, _, _, kind, kind2, flags, flags2, .., family, _, _, _, _, protocol, _, _, _, _, _, _]) =
        start.first_chunk::<START>()
    else {
        return true;
    };
    let (kind, flags) = (u16::from_ne_bytes([*kind, *kind2]), u16::from_ne_bytes([*flags, *flags2]));
    match kind {
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            *protocol == BY_KERNEL || i32::from(flags) & libc::NLM_F_REPLACE != 0
        }
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH | libc::RTM_GETNEIGH => i32::from(*family) == libc::AF_BRIDGE,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_concerns_a_network_unless_it_is_a_route_of_somebody_s_own() {
        let message = |kind: u16, flags: u16, protocol: u8| {
            let mut start = [0; START];
            start[4..6].copy_from_slice(&kind.to_ne_bytes());
            start[6..8].copy_from_slice(&flags.to_ne_bytes());
            start[21] = protocol;
            start
        };
        for route in [libc::RTM_NEWROUTE, libc::RTM_DELROUTE] {
            assert!(may_concern(&message(route, 0, BY_KERNEL)));
            assert!(may_concern(&message(route, libc::NLM_F_REPLACE as u16, 3)));
            assert!(!may_concern(&message(route, libc::NLM_F_CREATE as u16, 3)));
        }
        for neighbour in [libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH] {
            let mut message = message(neighbour, 0, 0);
            assert!(!may_concern(&message));
            message[16] = libc::AF_BRIDGE as u8;
            assert!(may_concern(&message));
        }
        for other in [libc::RTM_NEWLINK, libc::RTM_DELLINK, libc::RTM_NEWADDR, libc::RTM_DELADDR, 0, 0xffff] {
            assert!(may_concern(&message(other, 0, 3)), "{other}");
        }
        // What is cut off may be anything.
        for end in 0..START {
            assert!(may_concern(&message(libc::RTM_NEWROUTE, 0, 3)[..end]), "{end}");
        }
    }
}
