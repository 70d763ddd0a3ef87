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
//! keeper where a service is missing, and has no other helper; one that defines or removes an isolated network goes on as the child of an unpinner, which
//! the process that was typed becomes. `volt doctor` has a `vmm-core` look at KVM, and ends it if it does not
//! answer.
//!
//! | module | subject |
//! |---|---|
//! | `cli`, `config`, `cmdline` | what is typed, a VM's configuration, a kernel's command line: read and checked |
//! | `commands`, `doctor`, `install`, `vm` | the commands: the short ones, `volt doctor`, `volt install`, `volt run` |
//! | `cni` | the program `volt-cni`: containers on Volt's networks |
//! | `host` | what is the host's and not one VM's: paths, users, services, the keeper |
//! | `helper`, `filters`, `output` | becoming a helper process; lists of system calls; what people see |
//! | `error`, `shell` | what can go wrong, and what to do about it; commands for people to copy |
//!
//! What goes wrong is an `error::Error`, with a variant for each kind: a flag, a file, a name that is taken, a helper or a service that is not
//! there; what a service has said itself is passed on in one of them. It becomes the wire's [`ipc::Fault`] (code, what was tried, why, remedy)
//! where it leaves the process, and nowhere before: as a line for people (`main`, `helper::end`, the keeper's log), and in what the VM's
//! control socket answers (`vm::control`) and says of the end (`vm::run`).

mod cli;
mod cmdline;
mod cni;
mod commands;
mod config;
mod doctor;
mod error;
mod filters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod helper;
mod host;
mod install;
mod output;
mod shell;
mod vm;

use clap::Parser;

use crate::{
    cli::{Cli, Command},
    config::VmConfig,
};

/// The CNI plugin, of the program `volt-cni`.
pub fn cni() -> ! {
    // SAFETY: no handler is set, and there is one thread.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    cni::main()
}

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
        Command::Install(args) => install::install(cli.confinement, args),
        Command::Uninstall(args) => install::uninstall(args),
        other => commands::main(cli.confinement, other),
    };
    confine::exit(result.unwrap_or_else(|error| {
        output::say(error.fault());
        1
    }))
}
