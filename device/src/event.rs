//! Event descriptors: the worker's own, and those that a frontend sends as kick, call and error.
//!
//! A frontend may send anything in their place. They are made non-blocking when they arrive, and whatever does not
//! behave like an eventfd ends the backend rather than stalling it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

/// Takes over a descriptor that a frontend sent.
pub(crate) fn adopt(file: File) -> io::Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
    Ok(file.into())
}

/// Adds one to the event. An event that is pending already takes no more, which is no error.
pub(crate) fn signal(event: impl AsFd) -> io::Result<()> {
    match rustix::io::write(event, &1u64.to_ne_bytes()) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes the event back.
pub(crate) fn consume(event: impl AsFd) -> io::Result<()> {
    let mut value = [0; 8];
    match rustix::io::read(event, &mut value) {
        Ok(8) | Err(Errno::AGAIN) => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not an eventfd")),
        Err(error) => Err(error.into()),
    }
}
