//! What can go wrong before the guest runs. Whatever happens later ends the VM with an exit reason instead.

use std::io;

/// Why `vmm-core` could not start. The message says what was tried, on what, and what to do; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command-line argument is missing, malformed or out of range.
    #[error("Bad argument {argument}: {why}")]
    Argument {
        /// The flag.
        argument: String,
        /// What is wrong with it and what would be right.
        why: String,
    },
    /// An inherited descriptor is not open, or not what it has to be.
    #[error("Descriptor {fd} given as {argument} {why}")]
    Descriptor {
        /// The flag.
        argument: String,
        /// Its number.
        fd: i32,
        /// What it is not.
        why: &'static str,
    },
    /// An inherited descriptor is not a socket of the kind that it has to be.
    #[error("Descriptor {fd} given as {argument} is not {}", confine::UnixSocket::Stream.name())]
    Socket {
        /// The flag.
        argument: String,
        /// Its number.
        fd: i32,
        /// What it is.
        source: io::Error,
    },
    /// KVM refused a step.
    #[error("KVM could not {step}; check that the host's KVM works and is recent enough (Linux 5.15)")]
    Kvm {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: kvm_ioctls::Error,
    },
    /// KVM lacks what the machine is built on.
    #[error("The host's KVM lacks {0}; run a newer host kernel")]
    KvmLacks(&'static str),
    /// Guest RAM could not be made.
    #[error("Cannot {step} {size} bytes of guest RAM; give the VM less memory or free some")]
    Memory {
        /// The step.
        step: &'static str,
        /// Bytes.
        size: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something does not fit into guest RAM.
    #[error("{what} does not fit: {why}; give the VM more memory")]
    Fit {
        /// What.
        what: &'static str,
        /// The figures.
        why: String,
    },
    /// Reading the kernel or initrd, or writing guest RAM, failed.
    #[error("Cannot {step}")]
    Load {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel image is not one that can be booted, in any guest.
    #[error("The kernel image cannot be booted: {why}. {remedy}")]
    Kernel {
        /// What is wrong with it.
        why: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Confinement failed.
    #[error(transparent)]
    Confine(#[from] confine::Error),
    /// A virtio device could not be made.
    #[error("Cannot make virtio device {index}: {why}")]
    Device {
        /// Its place in the argument list, from 0.
        index: usize,
        /// Why.
        why: String,
    },
    /// A host resource (eventfd, thread, runtime) could not be had.
    #[error("Cannot {step}; the host is short of descriptors, threads or memory")]
    Host {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The VM ended because of a failure.
    #[error("The VM ended: {0}")]
    Failed(String),
}

impl Error {
    /// For `map_err` on KVM calls.
    pub(crate) fn kvm(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
        move |source| Error::Kvm { step, source }
    }

    /// For `map_err` on loads.
    pub(crate) fn load<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Error {
        move |source| Error::Load { step, source: source.into() }
    }

    /// For `map_err` on host resources.
    pub(crate) fn host<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Error {
        move |source| Error::Host { step, source: source.into() }
    }
}
