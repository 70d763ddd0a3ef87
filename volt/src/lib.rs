//! `volt`: the command people type, and what it becomes.
//!
//! It may open what the user names, start Volt's programs and talk to its services. It never sees guest memory, and
//! passes the guest's console on without reading it. Its processes, and how long each is there:
//!
//! ```text
//! volt run ──────── supervisor ──────────────────────────────────┐  the VM's end, or a signal
//!    ├─ fork ────── janitor ─────────────────────────────────────┼──┐  sockets and cgroup removed after it
//!    ├─ exec ────── keeper ── services ──────────────────────────┼──┼── ··· ─┐  half a minute after the
//!    │                        (unless they are there already)    │  │        ┴  last link, of whichever VM
//!    └─ fork ────── launcher ────────────────────────────────────┤  its supervisor's end
//!                      ├─ exec ─ vmm-core ──────┤├──────────────┤   a boot of the guest: a reset
//!                      └─ exec ─ vhost-…-backend ┤├─────────────┤   replaces them all
//! ```
//!
//! The janitor is there before there is anything to clear away, and the launcher last before the supervisor confines itself. Each
//! sees another's end by its closed socket or pidfd, however that came. A short command (`volt list`) is a client: it starts a
//! keeper where a service is missing, and has no other helper. `volt doctor` has a `vmm-core` look at KVM, and ends it if it does not
//! answer.
//!
//! | module | subject |
//! |---|---|
//! | `cli`, `config`, `cmdline` | what is typed, a VM's configuration, a kernel's command line: read and checked |
//! | `commands`, `doctor`, `vm` | the commands: the short ones, `volt doctor`, `volt run` |
//! | `host` | what is the host's and not one VM's: paths, users, services, the keeper |
//! | `helper`, `filters`, `output` | becoming a helper process; lists of system calls; what people see |
//! | `shell` | commands for people to copy |
//!
//! Errors are the wire's [`ipc::Fault`] throughout: each is made where it happens, for people, with what was tried and what to
//! do. A third of them are a service's own words, passed on; those that are told apart are, by their code; and the line that a
//! terminal shows begins with that code. So a type of volt's own would be a fault under another name: code, what was tried, why, remedy.

mod cli;
mod cmdline;
mod commands;
mod config;
mod doctor;
mod filters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod helper;
mod host;
mod output;
mod shell;
mod vm;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    config::VmConfig,
};

/// Does what this process's arguments ask for, and ends it with the code that tells how that went. Called first, with one thread.
pub fn main() -> ! {
    // Whoever started this may have it ignored, and then no child could be waited for.
    // SAFETY: no handler is set, and there is one thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // What is made here is this user's alone, or gets its mode by name.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A file that may not grow any more is an error to be told of, not a reason to be killed.
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Run(args) => VmConfig::new(args).and_then(|config| vm::run(cli.confinement, &config)),
        Command::Keep(args) => host::keeper::main(cli.confinement, args),
        Command::Doctor(args) => doctor::main(cli.confinement, args),
        other => commands::main(cli.confinement, other),
    };
    confine::exit(result.unwrap_or_else(|fault| {
        output::say(fault);
        1
    }))
}
