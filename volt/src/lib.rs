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
mod host;
mod vm;

use std::fmt::Display;

use clap::Parser;

use crate::cli::{Cli, Command};

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
        Command::Run(args) => vm::run::run(cli.confinement, args),
        Command::Keep(args) => host::keeper::main(cli.confinement, args),
        Command::Doctor(args) => doctor::main(cli.confinement, args),
        other => commands::main(cli.confinement, other),
    };
    confine::exit(result.unwrap_or_else(|fault| {
        say(fault);
        1
    }))
}

/// A line for people.
fn say(line: impl Display) {
    confine::say!("volt: {}", printable(&line.to_string()));
}

/// A text as a terminal may see it. What a user names, a service answers or a kernel image says of itself may hold anything.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
