//! The escape suite: takes over threads of unchanged, running programs, and tries from inside what an attacker would.
//!
//! The programs are the very ones that users run. No build of them has code for this: ptrace sets a thread's registers,
//! so what is tried runs under that thread's filters, credentials, namespaces and limits ([`foothold`]). Nothing is
//! concluded from configuration: an attempt succeeded, or the kernel refused it or killed the caller.
//!
//! May touch: processes in the namespaces of the test that runs it. x86-64 only, as root, with a kernel that can suspend
//! seccomp for a tracer (CONFIG_CHECKPOINT_RESTORE).

pub mod attempts;
mod code;
mod devices;
mod files;
pub mod foothold;
mod kernel;
mod limits;
mod network;
mod processes;
pub mod record;
pub mod report;
pub mod scene;
mod terminal;
