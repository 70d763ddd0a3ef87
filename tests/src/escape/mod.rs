//! The escape suite: takes over threads of unchanged, running programs, and tries from inside what an attacker would.
//!
//! The programs are the very ones that users run. No build of them has code for this: ptrace sets a thread's registers,
//! so what is tried runs under that thread's filters, credentials, namespaces and limits ([`foothold`]). Nothing is
//! concluded from configuration: an attempt succeeded, or the kernel refused it or killed the caller.
//!
//! What a clone may do more than its thread errs on the safe side: it is a process of one thread, for which a few calls are
//! less restricted, and it was made although its thread may not. What it may do less: nothing that is known. Still, one call of
//! each thread's own is tried as well ([`report::kill`]), to see that clones tell the truth.
//!
//! Limits: what a program does with the messages of a peer who was taken over is for the tests of that program; a bug of the
//! kernel's is not looked for; a success that needs several descriptors or much patience is not found.
//!
//! May touch: processes in the namespaces of the test that runs it. x86-64 only, as root, with a kernel that can suspend
//! seccomp for a tracer (CONFIG_CHECKPOINT_RESTORE).

pub mod attempts;
mod caught;
mod code;
mod devices;
mod files;
pub mod foothold;
mod kernel;
mod limits;
mod network;
mod proc;
mod processes;
pub mod record;
pub mod report;
pub mod scene;
mod terminal;
