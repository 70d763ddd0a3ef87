//! What Volt's services have in common: arguments, start and confinement, the threads that own a state, serving, the end.
//!
//! A service is a process with a main thread, which speaks Cap'n Proto with clients and does nothing else, and one thread or more that each own
//! a [`State`] and do what clients ask for. Its life has these steps, each a type that only the one before gives:
//!
//! | step | what happens | what a service adds |
//! |---|---|---|
//! | [`main`] | arguments are read; at the end the line that says why, and the exit code | its own arguments, beside [`Options`] |
//! | [`Wide`] | the sockets are there; no byte of a client is read | what it opens now, and what its [`Sandbox`](confine::Sandbox) keeps of that |
//! | [`Starting`] | the process is confined | its [threads](Starting::thread), each with a filter |
//! | [`Serving`] | all threads are narrow and have their states | a bootstrap capability for each client |
//!
//! A program is that and no more:
//!
//! ```no_run
//! # use confine::{Filter, base}; use ipc::Lane; use service::{Error, Options, State};
//! #[derive(clap::Parser)]
//! struct Arguments {
//!     #[command(flatten)]
//!     options: Options,
//! }
//!
//! struct Names(Vec<String>);
//!
//! impl State for Names {
//!     fn renew(&mut self) -> Result<(), service::Lost> {
//!         Err("nothing else has the names".into())
//!     }
//! }
//!
//! # fn bootstrap(_: service::Owner<Names>) -> capnp::capability::Client { unimplemented!() }
//! fn run(arguments: &Arguments) -> Result<(), Error> {
//!     let mut starting = arguments.options.begin(&schema::programs::NETMGR)?.confine::<Error>()?;
//!     let filter = Filter::new("names").with(&base::thread()).with(&base::heap()).with(&base::signal());
//!     let names = starting.thread("names", &filter, || Ok(Names(Vec::new())))?;
//!     let serving = starting.enter()?;
//!     serving.serve(Lane::new(), move |peer| Ok(bootstrap(names.of(peer))), std::future::pending())
//! }
//!
//! service::main(&schema::programs::NETMGR, run)
//! ```
//!
//! *After a panic* on a thread that owns a state, that state is in doubt: whatever panicked may have changed a half of it. So it is made anew
//! from where it is kept ([`State::renew`]); whoever asked for what panicked is told that it did, and everybody else is served on. Where it
//! cannot be made anew the thread ends, and with it the process, which is started again and takes over what is held. A panic on the main
//! thread ends the connection that it is about, and no other (`ipc`).

mod listen;
mod options;
mod owner;
mod start;
mod steps;

use std::{io, path::PathBuf};

pub use options::{Options, StateDir};
pub use owner::{Allowance, Answer, Inbox, Owner, State, Stopped, Unserved, owner};
pub use start::{Serving, Starting, Wide, filter};

/// Why a state is not to be had any more.
pub type Lost = Box<dyn std::error::Error + Send + Sync>;

/// Why a service cannot start or go on. (Why a *request* fails is an [`ipc::Fault`].)
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be had.
    #[error("Cannot use the state directory {}; make it a directory that this user may write to, or name another with --state-dir", .0.display())]
    StateDir(PathBuf, #[source] io::Error),
    /// The sockets cannot be served.
    #[error("Cannot serve")]
    Serve(#[from] ipc::Error),
    /// The sandbox could not be entered.
    #[error("Cannot confine this process")]
    Confine(#[from] confine::Error),
    /// The runtime cannot be had.
    #[error("Cannot start the event loop")]
    Runtime(#[source] io::Error),
    /// It panicked before it had its state.
    #[error("The {0} thread did not begin; report this as a defect")]
    NotBegun(&'static str),
    /// It has no state any more.
    #[error(
        "Cannot go on, as the {thread} thread has ended; start this service again, which takes over what is kept and held"
    )]
    Ended {
        /// Which.
        thread: &'static str,
        /// Why.
        #[source]
        why: Lost,
    },
}

/// A service's `main`: reads the arguments, runs it, and ends the process; says on stderr why, if it fails.
pub fn main<A: clap::Parser, E: std::error::Error>(
    program: &schema::programs::Process,
    run: impl FnOnce(&A) -> Result<(), E>,
) -> ! {
    let served = run(&A::parse());
    if let Err(error) = &served {
        confine::say!("{}: {}", program.name, ipc::chain(error));
    }
    confine::exit(served.is_err().into())
}
