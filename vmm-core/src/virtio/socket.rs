//! Reading what a backend sent, on either of its sockets: without waiting, and without a descriptor, for which there is no room.

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};

/// Reads what is there without waiting; `Some(0)` is the end, `None` says that descriptors came along.
pub(super) fn read_some(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut none = RecvAncillaryBuffer::default();
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut none, flags)?;
    Ok((!got.flags.contains(ReturnFlags::CTRUNC)).then_some(got.bytes))
}

/// What the kernel lacks just now comes back.
pub(super) fn rest_a_moment() {
    // An interrupted rest is a shorter one.
    let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 }));
}
