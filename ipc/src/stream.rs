//! A connected Unix socket as the two byte streams that capnp-rpc wants: buffered, with the bytes of each message and each
//! written message reported to the connection's [`Meter`]. Sees bytes only.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use futures::io::{AsyncRead, AsyncWrite, BufReader, BufWriter};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

use crate::meter::Meter;

/// Bytes of each buffer: most messages in one system call.
const BUFFER: usize = 8192;

/// One side of a connection's socket.
struct Half(Rc<UnixStream>);

impl AsyncRead for Half {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncWrite for Half {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write)?;
        Poll::Ready(Ok(()))
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
        if let Err(e) = &result {
            self.meter.end(capnp::Error::disconnected(format!("failed to write: {e}")));
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
pub(crate) fn split(socket: &Rc<UnixStream>, meter: &Rc<Meter>) -> (Incoming, Outgoing) {
    let incoming = BufReader::with_capacity(BUFFER, Half(socket.clone()));
    let outgoing = BufWriter::with_capacity(BUFFER, Half(socket.clone()));
    (Incoming { inner: incoming, meter: meter.clone() }, Outgoing { inner: outgoing, meter: meter.clone() })
}

/// Has the runtime watch a descriptor: a non-blocking socket, or another that can be polled, such as a pidfd.
pub fn watch(socket: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `register` asks that the descriptor stays the one that was registered for as long as the `AsyncFd` lives. The
    // `AsyncFd` owns it, an `OwnedFd` has one number for life, and nothing in this crate takes it back out.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Returns when the peer has closed its side, without reading what it sent before.
pub(crate) async fn hung_up(socket: &UnixStream) {
    // A registration of its own, on a duplicate: waiting here must not use up the readiness that the reader waits for.
    let watched = socket.as_fd().try_clone_to_owned().and_then(|fd| watch(fd, Interest::READABLE));
    let Ok(watched) = watched else {
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
