//! Cap'n Proto vats over Unix sockets: how Volt's programs talk to one another.
//!
//! Principles:
//! * *A capability is the authority.* A peer gets the bootstrap capability it is given, once, and nothing by name; it can let go of it for
//!   good ([`Connection::narrow`]). Who may connect at all is said in one place ([`Clients`]); [`Peer`] (SO_PEERCRED) comes to the bootstrap
//!   function, and goes into the objects that need it.
//! * *Releasing is `Drop`.* When a peer releases a capability, or goes, the server object behind it is dropped. Its `Drop` gives back what it stood for.
//! * *A change never stops half-way.* A call that is cancelled is cut off at its next await; what must not be cut off runs on a thread that owns what is
//!   changed (crate `service`, with the [`mailbox`] of here).
//! * *Nobody waits for ever.* [`Connection::call`] ends by its deadline and at the connection's end. Everything within this crate has a deadline.
//! * *One connection cannot hurt another.* Each has its own RPC system, its own task and its own [`Limits`]; a panic in one ends that one.
//! * *File descriptors travel beside the RPC*, on the [`Lane`], by tokens (`schema/fd_lane.capnp`).
//!
//! Limits: capnp-rpc is level 1 and `!Send`: one thread, [`run`]. It has no membranes, so revocation is up to the server objects.
//! Asking the *pipeline* of a call that was answered for a capability panics if the answer has none there: with a peer you do
//! not trust, take capabilities from the answer. A promise that resolves to another promise ends the connection. capnp-rpc 0.27
//! never answers a call that was cancelled, and both sides keep a small entry for it until the connection ends: poll with
//! calls that return rather than with calls that are cut off.

mod book;
mod clients;
mod connection;
mod endpoint;
mod error;
mod fault;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod lack;
mod lane;
mod lane_socket;
mod limits;
mod meter;
mod metered;
mod nearby;
mod places;
mod queue;
mod random;
mod retry;
mod rpc;
mod serve;
mod stream;
mod turns;

pub use clients::Clients;
pub use connection::{Connection, call};
pub use endpoint::{Endpoint, LinkSocket, is_served};
pub use error::Error;
pub use fault::{Code, Fault, chain, count, text};
pub use folder::{private_folder, private_folder_for};
pub use lack::passes;
pub use lane::{Lane, Token};
pub use limits::{Limits, OPEN_FILES, Peer};
pub use nearby::look_at;
pub use queue::{Gone, Receiver, Refused, Sender, mailbox, queue};
pub use random::random;
pub use retry::retry;
pub use serve::{Idle, serve, serve_lane_link, serve_link, serve_until};
pub use stream::watch;
pub use turns::{ClientId, Room};

/// What futures of this crate run on: sockets, timers and `tokio::task::spawn_local`, on the thread that made it, which
/// is the only one. A program that confines itself makes it before, and runs it after.
#[derive(Debug)]
pub struct Runtime(tokio::runtime::LocalRuntime);

impl Runtime {
    /// Makes one. Fails where descriptors run out.
    pub fn new() -> std::io::Result<Runtime> {
        let options = tokio::runtime::LocalOptions::default();
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build_local(options).map(Runtime)
    }

    /// Runs `f`. Starts no thread. Tasks that still run when `f` is done are dropped.
    pub fn run<T>(self, f: impl Future<Output = T>) -> T {
        self.0.block_on(f)
    }
}

/// Makes a [`Runtime`] and runs `f` on it.
pub fn run<T>(f: impl Future<Output = T>) -> std::io::Result<T> {
    Runtime::new().map(|runtime| runtime.run(f))
}
