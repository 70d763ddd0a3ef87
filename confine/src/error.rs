//! The crate's errors: what was tried, on what, why it failed and what the user can do.

use std::io;
use std::path::PathBuf;

use crate::layer::{Layer, list};

/// Why a process could not be confined, or a child not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Policy `strict` met a kernel or a user that cannot give every layer.
    #[error(
        "Policy strict refuses to start without: {}. Mend that, or allow less with --confinement best-effort",
        list(.0)
    )]
    Missing(Vec<Layer>),
    /// A policy's name was not understood.
    #[error("Confinement policy '{0}' is not known: use strict or best-effort")]
    UnknownPolicy(String),
    /// `confine` was called when the process had a second thread, which would have stayed wide.
    #[error("Cannot confine a process that has more than one thread: confine before starting any")]
    Threads,
    /// An fd that was to be kept is not there.
    #[error("Cannot keep fd {0}: it is not open; whoever starts this program has to pass it")]
    FdNotOpen(i32),
    /// A path that was to stay reachable could not be opened.
    #[error("Cannot keep {path} reachable: check that it exists and that this user may search its parents")]
    Path {
        /// The path as given.
        path: PathBuf,
        /// Why the kernel refused.
        source: io::Error,
    },
    /// A path that was to stay reachable is of the wrong kind.
    #[error("Cannot keep {path} reachable as a {wanted}: it is something else")]
    PathKind {
        /// The path as given.
        path: PathBuf,
        /// `directory` or `file`.
        wanted: &'static str,
    },
    /// Landlock is there but refused the rules.
    #[error(
        "Cannot restrict paths and network with Landlock, though the kernel offers it; an outer sandbox may forbid it"
    )]
    Landlock(#[from] landlock::RulesetError),
    /// A capability that was to be kept is not held.
    #[error("Cannot keep {0}: this process does not hold it; start as root, or with it as an ambient capability")]
    CapabilityNotHeld(caps::Capability),
    /// A directory could not be given to the user that is to have it.
    #[error("Cannot hand {path} over to user {uid}: it has to be root's or that user's; see who owns it, and chown it")]
    HandOver {
        /// The directory.
        path: PathBuf,
        /// Who was to have it.
        uid: u32,
        /// Why not.
        source: io::Error,
    },
    /// The kernel gives no namespaces.
    #[error(
        "Cannot make namespaces: allow them to this user where the host does not: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0"
    )]
    NoNamespaces(#[source] io::Error),
    /// The kernel gives namespaces, and no mounts in them.
    #[error(
        "Cannot make a root of its own: an outer sandbox (AppArmor's, a container's) forbids mounts, allow them there"
    )]
    NoRoot(#[source] io::Error),
    /// No cgroup with limits can be had.
    #[error("Cannot make a cgroup with limits: {0}")]
    NoCgroup(String),
    /// One step of the confinement was refused by the kernel.
    #[error("Cannot {tried}: {remedy}")]
    Step {
        /// What was tried.
        tried: &'static str,
        /// What the user can do.
        remedy: &'static str,
        /// Why the kernel refused.
        source: io::Error,
    },
    /// A filter does not compile: a fault of the program that wrote it.
    #[error("Cannot build the seccomp filter of role '{role}': fewer syscalls or rules are needed")]
    Filter {
        /// The role the filter is for.
        role: &'static str,
        /// What the compiler said.
        source: seccompiler::BackendError,
    },
    /// The kernel refused a filter.
    #[error("Cannot install the seccomp filter of role '{role}': an outer sandbox may forbid it")]
    Install {
        /// The role the filter is for.
        role: &'static str,
        /// What the kernel said.
        source: seccompiler::Error,
    },
    /// A thread could not be started.
    #[error("Cannot start thread '{name}': raise the limit on processes or free memory")]
    Thread {
        /// The thread's name.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A thread did not report that its filter is in place.
    #[error("Thread '{0}' did not install its filter within {1} s: the machine is overloaded, try again")]
    ThreadMute(String, u64),
    /// A child could not be started.
    #[error("Cannot start {program}: failed to {step}; {remedy}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The step that failed.
        step: &'static str,
        /// What the user can do.
        remedy: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A child could not be signalled or waited for.
    #[error("Cannot {tried} process {pid}: it may not be this process's child any more")]
    Child {
        /// What was tried.
        tried: &'static str,
        /// The child.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the `Step` error of a refused system call.
pub(crate) fn step(tried: &'static str, remedy: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| Error::Step { tried, remedy, source: errno.into() }
}
