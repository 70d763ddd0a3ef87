//! `volt`: the command people type, and the supervisor of one VM.
//!
//! It may open what the user names, start Volt's programs and talk to its services. It never sees guest memory, and
//! passes the guest's console on without reading it.

mod cli;
mod cmdline;
mod commands;
mod config;
mod doctor;
mod filters;
mod helper;
mod host;
mod output;
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
