//! A connected Unix socket as the two byte streams that capnp-rpc wants: buffered, with the bytes of each message and each
//! written message reported to the connection's [`Meter`]. Sees bytes only.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use futures::io::{AsyncRead, AsyncWrite, BufReader, BufWriter};
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    lack::{Lack, is_crowd, passes},
    meter::Meter,
};

/// Bytes of each buffer: most messages in one system call.
const BUFFER: usize = 8192;

/// A connected, non-blocking SOCK_STREAM socket.
pub(crate) struct Socket {
    fd: AsyncFd<OwnedFd>,
    /// A duplicate that is watched for room to write, while there is none: were the socket itself watched for that, each
    /// message that the peer reads would wake this process.
    full: RefCell<Option<AsyncFd<OwnedFd>>>,
}

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Socket> {
        Ok(Socket { fd: watch(fd, Interest::READABLE)?, full: RefCell::default() })
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.fd, how)?)
    }

    fn duplicate(&self, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
        watch(self.fd.get_ref().try_clone()?, interest)
    }

    /// Returns when the peer has closed its side, without reading what it sent before.
    pub(crate) async fn hung_up(&self) {
        // A registration of its own: waiting here must not use up the readiness that the reader waits for.
        let Ok(watched) = self.duplicate(Interest::READABLE) else {
            // No descriptor to spare: the peer's end is then seen only when reading goes on.
            return std::future::pending().await;
        };
        while let Ok(mut guard) = watched.readable().await {
            if guard.ready().is_read_closed() {
                return;
            }
            guard.clear_ready();
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Has the runtime watch a non-blocking descriptor (a socket, a pidfd, a signalfd); to be called on a [`crate::run`].
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register` asks that the descriptor stays the one that was registered for as long as the `AsyncFd` lives. The
    // `AsyncFd` owns it, an `OwnedFd` has one number for life, and nothing in this crate takes it back out.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// How everything in this crate receives and sends: with one call each, and the same flags, so that filters need no
/// other ones.
pub(crate) const RECEIVE: RecvFlags = RecvFlags::DONTWAIT.union(RecvFlags::CMSG_CLOEXEC);
pub(crate) const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Reads what is there. Descriptors that come with it are refused by the kernel, as there is no room for them.
fn receive(socket: impl AsFd, buf: &mut [u8]) -> Result<usize, Errno> {
    let mut none = RecvAncillaryBuffer::default();
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut none, RECEIVE).map(|message| message.bytes)
}

/// Writes as much as goes at once.
pub(crate) fn send(socket: impl AsFd, buf: &[u8]) -> Result<usize, Errno> {
    rustix::net::sendmsg(socket, &[IoSlice::new(buf)], &mut SendAncillaryBuffer::default(), SEND)
}

/// One direction of a connection's socket.
struct Half {
    socket: Rc<Socket>,
    lack: Lack,
}

impl Half {
    fn new(socket: &Rc<Socket>, meter: &Meter) -> Half {
        Half { socket: socket.clone(), lack: Lack::new(meter.limits.stall) }
    }
}

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Half { socket, lack } = self.get_mut();
        loop {
            ready!(lack.poll_rest(cx));
            let mut ready = ready!(socket.fd.poll_read_ready(cx))?;
            match receive(&**socket, buf) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) if passes(e) && lack.again() => {}
                Err(e) => return Poll::Ready(Err(e.into())),
                Ok(read) => {
                    lack.over();
                    // A short read emptied the socket, and epoll tells when it fills again (edge-triggered): to note that
                    // now saves the system call that would find it empty. The end of the stream is not forgotten by it.
                    if read < buf.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(read));
                }
            }
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Half { socket, lack } = self.get_mut();
        let mut full = socket.full.borrow_mut();
        loop {
            ready!(lack.poll_rest(cx));
            match send(&**socket, buf) {
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(e) if passes(e) && lack.again() => continue,
                result => {
                    *full = None;
                    lack.over();
                    return Poll::Ready(result.map_err(io::Error::from));
                }
            }
            let watched = match full.take() {
                Some(watched) => full.insert(watched),
                None => match socket.duplicate(Interest::WRITABLE) {
                    Ok(watched) => full.insert(watched),
                    // There may be room in the socket before there is one for another descriptor.
                    Err(e) if Errno::from_io_error(&e).is_some_and(is_crowd) && lack.again() => continue,
                    Err(e) => return Poll::Ready(Err(e)),
                },
            };
            lack.over();
            ready!(watched.poll_write_ready(cx))?.clear_ready();
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.shutdown(Shutdown::Write))
    }
}

/// The incoming bytes. capnp-futures reads exactly one message's worth at a time from it.
pub(crate) struct Incoming {
    inner: BufReader<Half>,
    meter: Rc<Meter>,
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.meter.bytes_read(read);
        Poll::Ready(Ok(read))
    }
}

/// The outgoing bytes. capnp-futures flushes once after each message.
pub(crate) struct Outgoing {
    inner: BufWriter<Half>,
    meter: Rc<Meter>,
}

impl Outgoing {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.meter.unwritable();
        }
        result
    }
}

impl AsyncWrite for Outgoing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        Poll::Ready(self.note(result))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        if result.is_ok() {
            self.meter.message_written();
        }
        Poll::Ready(self.note(result))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// Both directions of `socket`.
pub(crate) fn split(socket: &Rc<Socket>, meter: &Rc<Meter>) -> (Incoming, Outgoing) {
    let incoming = BufReader::with_capacity(BUFFER, Half::new(socket, meter));
    let outgoing = BufWriter::with_capacity(BUFFER, Half::new(socket, meter));
    (Incoming { inner: incoming, meter: meter.clone() }, Outgoing { inner: outgoing, meter: meter.clone() })
}
