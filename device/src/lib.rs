//! What vhost-user device backends share: the protocol's backend side, the guest's memory, rings and their workers.
//!
//! A backend is a program that implements [`Device`] and [`Worker`] and calls [`run`]:
//!
//! ```text
//!   main thread      vhost-user messages (protocol)  ──mailbox──▶  worker threads: rings, guest memory, disk or TAP
//!   control thread   DeviceBackend over Cap'n Proto (only with --control-fd)
//! ```
//!
//! Principles:
//! * Phase 1 (arguments, inherited descriptors) is wide; then the process is confined and every thread has its filter;
//!   only then the first byte from the frontend or the guest is read.
//! * A worker alone owns its rings. The protocol thread takes them away before it answers GET_VRING_BASE.
//! * What the guest writes can cost the guest its ring, never the process. What the frontend gets wrong, and what a
//!   worker cannot go on after, ends the process: one line on stderr, exit status 1. A frontend that hangs up, or a
//!   control link that ends, is an orderly end: exit status 0.
//!
//! It stands on the `vhost` crate's request handler and on `virtio-queue`, and not on `vhost-user-backend`, for these reasons:
//! * that crate starts its threads itself and has no place where one could be given its filter before the frontend's first byte;
//! * it waits for the rest of a message without a deadline;
//! * it adds up the addresses of a region that ADD_MEM_REG brings unchecked, and `vhost` validates none there;
//! * it maps memory without a look at the size or the seals of the file;
//! * a worker's error ends that thread alone, and nobody is told.
//!
//! Limits: split rings of at most [`ring::MAX_RING_SIZE`] entries, modern drivers (VIRTIO_F_VERSION_1), at most
//! [`memory::MAX_REGIONS`] memory regions in a table or [`memory::MAX_SLOTS`] one by one, no dirty logging, no in-flight
//! tracking yet.

mod connection;
mod control;
mod error;
mod event;
mod filters;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod memory;
mod options;
mod protocol;
pub mod ring;
mod segments;
mod sigbus;
mod stats;
#[cfg(any(test, fuzzing))]
mod testing;
mod worker;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use confine::{Filter, Heap, Limit, Narrow, Sandbox};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

pub use connection::inherited;
pub use error::{BoxError, Error};
pub use options::Options;
pub use ring::{Chain, Popped, Ring};
pub use segments::{IoVecs, MAX_SEGMENTS, Segments};
pub use stats::{RingStats, Stats};
pub use worker::{Progress, Worker};

use connection::FrontendSocket;
use protocol::Handler;
use worker::Mailbox;

/// A virtio device: what it offers, and what its threads may do. The protocol thread owns it.
///
/// Order of calls: `features`, `fds`, `sandbox` and `workers` in phase 1; `config` and `set_features` after the process was
/// confined, in any order.
pub trait Device: Send + 'static {
    /// The part that moves data.
    type Worker: Worker;

    /// The program's name, for its messages.
    const PROGRAM: &'static str;
    /// Virtio device ID (Virtio 1.2, section 5).
    const VIRTIO_ID: u32;

    /// The device's own feature bits. Those of rings and transport are added.
    fn features(&self) -> u64;

    /// The device's configuration space. The rest, up to the protocol's 256 bytes, is zero.
    fn config(&self) -> &[u8];

    /// The driver took these features. Called when no ring runs.
    ///
    /// # Errors
    /// Ends the process.
    fn set_features(&mut self, features: u64) -> Result<(), BoxError>;

    /// The descriptors that the device and its workers hold; all others are closed.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Limits of the device's own.
    fn sandbox(&self, sandbox: Sandbox) -> Sandbox {
        sandbox
    }

    /// System calls that `set_features` makes.
    fn protocol_filter(&self) -> Filter {
        Filter::new("device")
    }

    /// System calls that a worker makes, beside those to wait, to signal and to end.
    fn worker_filter(&self) -> Filter;

    /// The workers, each for the next `Worker::RINGS` rings. Called once.
    fn workers(&mut self) -> Vec<Self::Worker>;
}

/// Runs a backend to its end, which is the process's: the exit status is 0 after the frontend hung up, else 1 with one
/// line on stderr.
pub fn run<D: Device>(options: &Options, device: Result<D, BoxError>) -> ! {
    run_then_exit::<D, _>(|| device.and_then(|device| serve(options, device).map_err(BoxError::from)))
}

/// One line: the error and what caused it.
fn report(program: &str, error: &(dyn std::error::Error + 'static)) {
    confine::say!("{program}: {}", ipc::chain(error));
}

fn serve<D: Device>(options: &Options, mut device: D) -> Result<(), Error> {
    let frontend = options.frontend()?;
    let control = options.control_fd.map(|fd| inherited("--control-fd", fd, "a connected socket")).transpose()?;
    let workers = device.workers();
    let stats = Arc::new(Stats {
        virtio_id: D::VIRTIO_ID,
        features: device.features() | protocol::COMMON_FEATURES,
        acked: 0.into(),
        connected: false.into(),
        rings: (0..workers.len() * D::Worker::RINGS).map(|_| Arc::default()).collect(),
    });

    let mut sandbox = Sandbox::new(D::PROGRAM, options.confinement)
        .keep_fd(frontend.fd().as_raw_fd())
        .heap(Heap::Reserved(schema::limits::DEVICE_HEAP))
        // As much as the guest has; the kernel has given it away already.
        .limit(Limit::AddressSpace, u64::MAX);
    for fd in device.fds() {
        sandbox = sandbox.keep_fd(fd.as_raw_fd());
    }
    if let Some(control) = &control {
        sandbox = sandbox.keep_fd(control.as_raw_fd());
    }
    sigbus::install_handler(D::PROGRAM).map_err(|source| Error::System { what: "prepare for SIGBUS", source })?;
    let confined = device.sandbox(sandbox).confine()?;

    let filter = filters::worker(&device.worker_filter());
    let mut mailboxes = Vec::with_capacity(workers.len());
    for (index, worker) in workers.into_iter().enumerate() {
        let mailbox = Arc::new(Mailbox::new()?);
        mailboxes.push(Arc::clone(&mailbox));
        confined.spawn(&format!("worker{index}"), &filter, move || {
            run_then_exit::<D, _>(|| worker::serve(worker, &mailbox))
        })?;
    }
    if let Some(control) = control {
        let stats = Arc::clone(&stats);
        let prepare = move || control::prepare(control);
        let serve = move |prepared| run_then_exit::<D, _>(|| control::serve(prepared, stats));
        confined.spawn_prepared("control", &filters::control(), prepare, serve)?;
    }
    let filter = filters::protocol(frontend.is_listening()).with(&device.protocol_filter());
    let narrow = confined.enter(&filter)?;
    let handler = Handler::new(device, Arc::clone(&stats), options.sealing(), mailboxes);
    converse(narrow, frontend, &stats, handler)
}

/// Serves the one frontend until it hangs up.
fn converse<D: Device>(
    _narrow: Narrow,
    frontend: FrontendSocket,
    stats: &Stats,
    handler: Handler<D>,
) -> Result<(), Error> {
    talk(frontend.connection()?, stats, handler)
}

fn talk<D: Device>(socket: UnixStream, stats: &Stats, handler: Handler<D>) -> Result<(), Error> {
    let system = |source| Error::System { what: "duplicate the frontend's socket", source };
    let peek = socket.try_clone().map_err(system)?;
    stats.connected.store(true, Ordering::Relaxed);
    let handler = Arc::new(Mutex::new(handler));
    let mut requests = BackendReqHandler::from_stream(socket, Arc::clone(&handler));
    let outcome = loop {
        match connection::next_message(&peek) {
            Ok(Some(connection::SET_VRING_ENABLE)) if lock(&handler).takes_early_enable() => {
                match enable_early(&peek, &mut lock(&handler)) {
                    Ok(()) => continue,
                    Err(error) => break Err(error),
                }
            }
            Ok(Some(request)) if !protocol::is_known(request) => break Err(Error::Unknown(request)),
            Ok(Some(_)) => {}
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
        match requests.handle_request() {
            Ok(()) => {}
            Err(VhostError::Disconnected | VhostError::SocketBroken(_)) => break Ok(()),
            Err(error) => {
                let failure = lock(&handler).failure.take();
                break Err(failure.unwrap_or(Error::Protocol(error)));
            }
        }
    };
    // What is under way reaches the disk or the wire before the process ends.
    lock(&handler).shut_down().and(outcome)
}

fn lock<D: Device>(handler: &Mutex<Handler<D>>) -> MutexGuard<'_, Handler<D>> {
    handler.lock().unwrap_or_else(PoisonError::into_inner)
}

fn enable_early<D: Device>(socket: &UnixStream, handler: &mut Handler<D>) -> Result<(), Error> {
    let message = connection::read_enable(socket)?;
    handler.enable(message.ring, message.enable)?;
    connection::answer_enable(socket, &message, handler.has_reply_ack())
}

/// Runs a thread's body. The process ends with it: orderly if it returns at all, else with a line.
fn run_then_exit<D: Device, T>(body: impl FnOnce() -> Result<T, BoxError>) -> ! {
    let status = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(_)) => 0,
        Ok(Err(error)) => {
            report(D::PROGRAM, &*error);
            1
        }
        Err(_) => 1, // the panic's own message is the line
    };
    confine::exit(status)
}
