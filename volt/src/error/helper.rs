//! Why a process that `volt` has forked to help it does not.

use std::{io, time::Duration};

use rustix::io::Errno;

/// Why a janitor or a launcher does not do what it is there for.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// By itself, or somebody killed it.
    #[error("the {0} has ended; where it could, it said why")]
    Ended(&'static str),
    /// Somebody has stopped or frozen it, or it waits for the host.
    #[error("the {who} did not answer within {} s: it is stopped, or the host is overloaded", limit.as_secs())]
    Late { who: &'static str, limit: Duration },
    /// What it has been sent lies there unread.
    #[error("the {0} takes no more requests: it is stopped")]
    Full(&'static str),
    /// What it is to remove was removed by another.
    #[error("its sockets have gone")]
    NoSockets,
    /// A request that no packet holds.
    #[error("its arguments are over {bytes} bytes, or its descriptors over {fds}")]
    TooLong { bytes: usize, fds: usize },
    /// A program that it does not have.
    #[error("it is no program of a VM")]
    NoProgram,
    /// The helper's own words.
    #[error("{0}")]
    Refused(String),
    /// Another packet than the one that was asked for.
    #[error("the {0}'s answer is no answer")]
    NoAnswer(&'static str),
    /// The kernel's word.
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

impl From<Errno> for HelperError {
    fn from(errno: Errno) -> HelperError {
        HelperError::Kernel(errno.into())
    }
}
