//! Two-phase confinement: what every program of the platform calls before it reads a stranger's first byte.
//!
//! Phase 1 is wide: parse arguments, open and map what was inherited. Phase 2 is narrow, for the rest of the
//! process's life, and is a type: [`Sandbox`] → [`Confined`] → [`Narrow`].
//!
//! ```no_run
//! use confine::{Filter, Policy, Sandbox, base};
//! # fn main() -> Result<(), confine::Error> {
//! let confined = Sandbox::new("example", Policy::BestEffort).keep_fd(3).confine()?; // whole process
//! let worker = Filter::new("worker").with(&base::exit()).allow(&[libc::SYS_read]);
//! let handle = confined.spawn("worker", &worker, || { /* runs only after `enter` */ })?;
//! let narrow = confined.enter(&Filter::new("main").with(&base::exit()))?; // main thread; opens the gate
//! # let _ = (narrow, handle); Ok(()) }
//! ```
//!
//! Principles: the defaults are the safe ones, so a program lists what it keeps; nothing widens after
//! [`Confined::enter`]; a layer that the kernel lacks is named, never dropped silently ([`Policy`]).
//!
//! May touch: the calling process's own limits, fds, capabilities, namespaces, user and filters; [`Spawn`] starts children.
//! Never sees: a byte that a guest or a peer wrote.
//!
//! Limits: programs must be started single-threaded; seccomp filters exist for x86_64 and aarch64.

mod capabilities;
mod cgroup;
mod child;
mod confined;
mod error;
mod fds;
mod filter;
mod identity;
mod layer;
mod limits;
mod memory_file;
mod namespaces;
mod paths;
mod policy;
mod reset;
mod runtime;
mod sandbox;
mod say;
mod socket;
mod spawn;

pub mod base;

pub use caps::Capability;
pub use cgroup::{Cgroup, CgroupLimits, MemoryWatch};
pub use child::Child;
pub use confined::{Confined, JoinHandle, Narrow, exit};
pub use error::Error;
pub use fds::inherited;
pub use filter::{Filter, Rule, Syscall};
pub use identity::User;
pub use layer::{Layer, list};
pub use limits::Limit;
pub use memory_file::memory_file;
pub use namespaces::{Root, isolate};
pub use paths::{Enclosure, enclose};
pub use policy::{Policy, landlock_abi, missing};
pub use reset::reset_inherited;
pub use runtime::Heap;
pub use sandbox::Sandbox;
pub use say::say;
pub use socket::UnixSocket;
pub use spawn::{EXEC_DEADLINE, Spawn};

/// The crate whose [`Capability`] names what [`Sandbox::keep_capability`] keeps.
pub use caps;
