//! Hears of changes to interfaces and addresses, and has the worker look at what there is now. Touches one socket, reads nothing of what
//! comes over it, and asks the kernel for nothing: a look at the network is the worker's.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use rtnetlink::sys;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags},
};
use tokio::{io::Interest, time::sleep};

use crate::{error::Error, worker::Worker};

/// RTNLGRP_LINK and RTNLGRP_IPV4_IFADDR (linux/rtnetlink.h).
const GROUPS: [u32; 2] = [1, 5];
/// The least time between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// And the most, while each look finds something to mend: another program that changes it back is not fought with more often.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Messages that are taken before a look, and no more, so that a flood of them does not put it off.
const MESSAGES: usize = 4096;
/// As everything on this thread receives (its filter knows no other way).
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);

/// A socket that the kernel tells of changes.
pub struct Monitor(OwnedFd);

impl Monitor {
    /// Opens it, in phase 1: later no socket can be made.
    pub fn open() -> Result<Monitor, Error> {
        let open = || {
            let mut socket = sys::Socket::new(sys::protocols::NETLINK_ROUTE)?;
            socket.bind(&sys::SocketAddr::new(0, 0))?;
            GROUPS.into_iter().try_for_each(|group| socket.add_membership(group))?;
            socket.as_fd().try_clone_to_owned()
        };
        let failed =
            |source| Error::Kernel { tried: "tell of changes to interfaces".into(), source, detail: String::new() };
        open().map(Monitor).map_err(failed)
    }

    /// The socket's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Has all looked at after each change, until the socket fails.
    pub async fn watch(self, worker: &Worker) -> io::Result<()> {
        let socket = ipc::watch(self.0, Interest::READABLE)?;
        let mut pause = PAUSE;
        loop {
            socket.async_io(Interest::READABLE, take).await?;
            let settled = match worker.ask(|manager| manager.mend()).await {
                Ok(mended) => !mended,
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

/// Takes what there is. That some was lost, as more came than the socket holds, says as much as any message: everything is looked at.
fn take(socket: &OwnedFd) -> io::Result<()> {
    let mut heard = false;
    for _ in 0..MESSAGES {
        let mut start = [0; 16];
        let buffers = &mut [IoSliceMut::new(&mut start)];
        match rustix::net::recvmsg(socket, buffers, &mut RecvAncillaryBuffer::default(), RECEIVE) {
            Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => heard = true,
            Err(Errno::AGAIN) if heard => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
