//! The macvtap-opener: the process that opens the devices of macvtaps, and can do nothing else. netmgr forks it before it has any client, and has one end
//! of a pair of sockets from then on; the other end is all that the opener has, beside the devices themselves. It ends with netmgr.
//!
//! One message is one device: four bytes with its minor number, for which there come four with 0 and its descriptor, or why there is none (errno). What the
//! opener finds is a folder of device nodes of its own, all of macvtap's major number, in an otherwise empty root: nothing that it can open is anything
//! else. A node below /dev would not do: it is named for the interface's index, which another network namespace has as well, and then leads there.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::Path,
    time::Duration,
};

use confine::{Child, Filter, Heap, Limit, Policy, Root, Rule, Sandbox, User, base};
use rustix::{
    fs::{CWD, Mode, OFlags},
    io::{Errno, retry_on_intr},
    net::{
        self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
    },
};
use schema::programs::OPENER;

use crate::tap;

/// The most macvtaps of a host, whoever made them: minor numbers from 1 on, of which the kernel gives the lowest that is free.
pub const MOST: u32 = 256;
/// Where the opener finds its devices.
const FOLDER: &str = "/macvtap";
/// Bytes of its heap: it needs a path at a time.
const HEAP: usize = 64 << 10;
/// How long netmgr waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How netmgr receives; the filter knows no other way.
pub const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
/// How a device is opened; the filter knows no other way.
const OPEN: OFlags = tap::OPEN.union(OFlags::NOFOLLOW);

/// netmgr's end.
pub struct Opener(OwnedFd);

impl Opener {
    /// Starts the process, while this one has one thread and all its rights; `None` where they do not suffice, as of a plain user.
    ///
    /// # Errors
    /// Where there is no socket or no process to be had.
    pub fn start(policy: Policy, user: Option<User>) -> io::Result<Option<Opener>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let (own, other) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&own, sockopt::Timeout::Recv, Some(PATIENCE))?;
        sockopt::set_socket_timeout(&own, sockopt::Timeout::Send, Some(PATIENCE))?;
        // SAFETY: this process has one thread, so the child may use all that this one could; it ends by `exit`.
        let fork = |namespaces| unsafe { Child::fork(namespaces) };
        // Without a pid namespace of its own, where a service manager allows none.
        match fork(libc::CLONE_NEWPID).or_else(|_| fork(0))? {
            Some(child) => {
                child.detach();
                Ok(Some(Opener(own)))
            }
            None => {
                drop(own);
                let served = serve(other, policy, user);
                if let Err(error) = &served {
                    confine::say!("{}: {}", OPENER.name, ipc::chain(error));
                }
                confine::exit(served.is_err().into())
            }
        }
    }

    /// The socket, for the sandbox to keep.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Opens the macvtap of that minor number.
    ///
    /// # Errors
    /// Why the opener could not; `ConnectionReset` if it has ended.
    pub fn open(&self, minor: u32) -> io::Result<OwnedFd> {
        retry_on_intr(|| net::send(&self.0, &minor.to_ne_bytes(), SendFlags::NOSIGNAL))?;
        let mut answer = [0; 4];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut handed = RecvAncillaryBuffer::new(&mut space);
        let length =
            retry_on_intr(|| net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut answer)], &mut handed, RECEIVE))?.bytes;
        let descriptor = handed.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        match (length, i32::from_ne_bytes(answer), descriptor) {
            (4, 0, Some(device)) => Ok(device),
            (4, errno, None) if errno != 0 => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// macvtap's major number, if the kernel has the driver: it is another one with each start of the host.
fn major(devices: &str) -> Option<u32> {
    let mut lines = devices.lines().take_while(|line| !line.starts_with("Block"));
    lines.find_map(|line| line.trim().strip_suffix(" macvtap")?.trim().parse().ok())
}

/// What the opener may ask of the kernel.
pub fn filter() -> Filter {
    Filter::new("macvtap-opener")
        .with(&base::close())
        .allow_if(libc::SYS_openat, vec![Rule::eq(2, OPEN.bits())])
        .allow_if(libc::SYS_sendmsg, vec![Rule::eq(2, SendFlags::NOSIGNAL.bits())])
        .allow(&[libc::SYS_recvfrom, libc::SYS_exit_group])
}

/// The process, to its end.
fn serve(socket: OwnedFd, policy: Policy, user: Option<User>) -> Result<(), confine::Error> {
    let major = fs::read_to_string("/proc/devices").ok().as_deref().and_then(major);
    let nodes = major.into_iter().flat_map(|major| (1..=MOST).map(move |minor| (major, minor)));
    let root =
        nodes.fold(Root::empty(), |root, (major, minor)| root.device(&format!("{FOLDER}/{minor}"), major, minor));
    let mut sandbox = Sandbox::new(OPENER.title, policy)
        .heap(Heap::Reserved(HEAP))
        .limit(Limit::OpenFiles, 16)
        .keep_fd(socket.as_raw_fd());
    if let Some(user) = user {
        sandbox = sandbox.user(user);
    }
    let (mut sandbox, alone) = sandbox.root(&root, true)?;
    // Where it has no root of its own, what is at that path is somebody else's.
    if alone && major.is_some() {
        sandbox = sandbox.allow_devices(Path::new(FOLDER));
    }
    let _narrow = sandbox.confine()?.enter(&filter())?;
    let mut request = [0; 4];
    // netmgr has ended, or is no netmgr any more.
    while let Ok((4, _)) = retry_on_intr(|| net::recv(&socket, &mut request[..], RecvFlags::empty())) {
        let minor = u32::from_ne_bytes(request);
        let device = if alone { open(minor) } else { Err(Errno::PERM) };
        if answer(&socket, device).is_err() {
            break;
        }
    }
    Ok(())
}

fn open(minor: u32) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::openat(CWD, format!("{FOLDER}/{minor}"), OPEN, Mode::empty()))
}

fn answer(socket: &OwnedFd, device: Result<OwnedFd, Errno>) -> Result<usize, Errno> {
    let code = device.as_ref().err().map_or(0, |errno| errno.raw_os_error()).to_ne_bytes();
    let descriptors: Vec<_> = device.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut handed = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        handed.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    retry_on_intr(|| net::sendmsg(socket, &[IoSlice::new(&code)], &mut handed, SendFlags::NOSIGNAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn major_number_is_that_of_the_character_device_of_that_name() {
        let devices = "Character devices:\n  1 mem\n246 macvtap\n247 ipvtap\n\nBlock devices:\n  7 loop\n";
        assert_eq!(major(devices), Some(246));
        for none in ["", "246 macvtap2", "Block devices:\n246 macvtap", "macvtap", "x macvtap"] {
            assert_eq!(major(none), None, "{none:?}");
        }
    }

    #[test]
    fn devices_are_opened_by_their_numbers_up_to_the_last_one() {
        let major = fs::read_to_string("/proc/devices").ok().as_deref().and_then(major);
        if !testkit::user::is_root() || major.is_none() {
            return testkit::skip!("device nodes take root, and these the kernel's driver");
        }
        testkit::attempt::attempt(|| {
            let opener = Opener::start(Policy::Strict, None).unwrap().unwrap();
            let refused = |minor: u32| opener.open(minor).unwrap_err().raw_os_error();
            // There is a node, and no such device.
            assert_eq!(refused(MOST), Some(libc::ENODEV));
            for none in [0, MOST + 1, u32::MAX] {
                assert_eq!(refused(none), Some(libc::ENOENT), "{none}");
            }
            // It ends with what it is not asked in the right way, and says so no more.
            rustix::io::write(&opener.0, b"more").unwrap();
            let mut answer = [0; 4];
            rustix::net::recv(&opener.0, &mut answer[..], RecvFlags::empty()).unwrap();
            rustix::io::write(&opener.0, b"x").unwrap();
            opener.open(1).unwrap_err();
        })
        .passes();
    }

    #[test]
    fn opener_has_six_calls_and_none_to_start_or_to_connect_to_anything() {
        let all: Vec<_> = filter().syscalls().collect();
        assert!(all.len() <= 6, "{}", all.len());
        for forbidden in testkit::calls::NEVER_OF_A_SERVICE {
            assert!(!all.contains(&forbidden), "{forbidden}");
        }
    }
}
