//! The one error type of this crate. Every variant says what was tried, on what, and what to do about it.

use std::os::fd::RawFd;
use std::path::PathBuf;

/// Any error of a device's own code: it is printed, with its chain of sources, and ends the process.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a backend could not start, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line contradicts itself.
    #[error("{0}")]
    Usage(String),

    /// A descriptor named on the command line is not open, or not of the right kind.
    #[error("{flag}={fd} is not {wanted}: pass the number of a descriptor that this process inherits")]
    Inherited {
        /// The option, with its dashes.
        flag: &'static str,
        /// Its value.
        fd: RawFd,
        /// What it should have been.
        wanted: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },

    /// The socket at the path could not be bound.
    #[error("Cannot listen on {}: check that its folder exists, is writable, and that no other backend listens there", path.display())]
    Listen {
        /// The value of `--socket-path`.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },

    /// A system call on the process's own descriptors failed.
    #[error("Cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },

    /// Confinement could not be entered.
    #[error("Cannot confine the backend")]
    Confine(#[from] confine::Error),

    /// The frontend's memory table cannot be used.
    #[error("Cannot map the guest's memory")]
    Memory(#[from] crate::memory::MemoryError),

    /// The frontend asked for something that contradicts the vhost-user protocol or the ring's state.
    #[error("The frontend's request for ring {index} cannot be met: {why}")]
    Ring {
        /// The vring.
        index: u32,
        /// What is wrong with the request.
        why: &'static str,
    },

    /// The frontend acked feature bits that were not offered.
    #[error("The frontend took feature bits {0:#x} that were not offered")]
    Features(u64),

    /// Features were changed under a running ring.
    #[error("The frontend changed the features while a ring was running: stop the rings first (GET_VRING_BASE)")]
    FeaturesLate,

    /// The device refused the features.
    #[error("The device cannot take the driver's features")]
    Device(#[source] BoxError),

    /// A request of a number that does not belong to what was offered.
    #[error("The vhost-user message was not understood: it is request {0}, which this backend did not offer")]
    Unknown(u32),

    /// A message could not be read, was malformed, or asks for what was not negotiated.
    #[error("The vhost-user message was not understood: {0}")]
    Protocol(vhost::vhost_user::Error),

    /// The frontend began a message and did not end it, or does not read its answers.
    #[error("The frontend left a vhost-user {0} unfinished for {1} s")]
    Stalled(&'static str, u64),

    /// A worker did not answer the protocol thread.
    #[error("A ring's worker did not answer for {0} s: its disk or interface hangs")]
    WorkerStuck(u64),
}
