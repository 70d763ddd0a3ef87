//! The loop of one worker thread, and the mailbox through which the protocol thread starts and stops its rings.
//!
//! A worker alone owns its rings: there is no lock on the data path, and a ring that the protocol thread has stopped is
//! gone from the worker before the frontend is told so.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::EventfdFlags;

use crate::error::{BoxError, Error};
use crate::event;
use crate::ring::{Ring, Setup};

/// How long a worker may take to answer. A disk that hangs longer than this has lost its frontend's patience too.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whether a worker has seen to everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do until something happens; kicks are enabled where they are needed for that.
    Idle,
    /// The worker stopped for fairness's sake: it is called again at once.
    More,
}

/// The part of a device that moves data: one thread, with rings of its own.
pub trait Worker: Send + 'static {
    /// How many rings one worker serves.
    const RINGS: usize;

    /// What to wait for beside the rings' kicks, with `poll`'s flags; asked anew before each wait.
    fn source(&self) -> Option<(BorrowedFd<'_>, i16)> {
        None
    }

    /// A ring was stopped: what was kept for its driver is of no use any more.
    fn stopped(&mut self, _ring: usize) {}

    /// Serves the rings: a bounded amount of work, after which it is called again. A ring that is stopped or disabled is
    /// `None`. Called when a ring was kicked or started, or the source is ready.
    ///
    /// # Errors
    /// What the device cannot go on after. Nothing that a guest does may be among them. It ends the process.
    fn run(&mut self, rings: &mut [Option<Ring>]) -> Result<Progress, BoxError>;
}

/// What the protocol thread asks of a worker; ring numbers are the worker's own.
#[derive(Debug)]
enum Request {
    Start(usize, Box<Setup>),
    Stop(usize),
}

#[derive(Debug)]
enum Answer {
    Started(Result<(), &'static str>),
    Stopped(Option<u16>),
}

#[derive(Debug, Default)]
struct Slot {
    request: Option<Request>,
    answer: Option<Answer>,
}

/// One request at a time from the protocol thread to a worker, answered synchronously.
#[derive(Debug)]
pub(crate) struct Mailbox {
    slot: Mutex<Slot>,
    answered: Condvar,
    event: OwnedFd,
}

impl Mailbox {
    pub fn new() -> Result<Mailbox, Error> {
        let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::System { what: "make an eventfd", source: errno.into() })?;
        Ok(Mailbox { slot: Mutex::default(), answered: Condvar::new(), event })
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, request: Request) -> Result<Answer, Error> {
        let mut slot = self.lock();
        slot.request = Some(request);
        slot.answer = None;
        event::signal(&self.event).map_err(|source| Error::System { what: "wake a worker", source })?;
        let (mut slot, _) = self
            .answered
            .wait_timeout_while(slot, DEADLINE, |slot| slot.answer.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        slot.answer.take().ok_or(Error::WorkerStuck(DEADLINE.as_secs()))
    }

    /// Hands a ring to the worker, which serves it from here on.
    pub fn start(&self, ring: usize, setup: Setup) -> Result<Result<(), &'static str>, Error> {
        match self.ask(Request::Start(ring, Box::new(setup)))? {
            Answer::Started(result) => Ok(result),
            Answer::Stopped(_) => Ok(Err("internal: the worker answered something else")),
        }
    }

    /// Takes a ring from the worker. When this returns, the worker does not touch it any more; the number is the
    /// available index to go on from.
    pub fn stop(&self, ring: usize) -> Result<Option<u16>, Error> {
        match self.ask(Request::Stop(ring))? {
            Answer::Stopped(base) => Ok(base),
            Answer::Started(_) => Ok(None),
        }
    }

    /// The worker's side: does what is asked.
    fn serve_request(&self, worker: &mut impl Worker, rings: &mut [Option<Ring>]) -> Result<(), BoxError> {
        event::consume(&self.event)?;
        let mut slot = self.lock();
        let Some(request) = slot.request.take() else {
            return Ok(());
        };
        let answer = match request {
            Request::Start(index, setup) => Answer::Started(match rings.get_mut(index) {
                Some(ring) => Ring::new(*setup).map(|new| *ring = Some(new)),
                None => Err("internal: no such ring"),
            }),
            Request::Stop(index) => {
                worker.stopped(index);
                Answer::Stopped(rings.get_mut(index).and_then(Option::take).map(|ring| ring.base()))
            }
        };
        slot.answer = Some(answer);
        self.answered.notify_one();
        Ok(())
    }
}

/// Serves the mailbox and the rings for ever.
///
/// # Errors
/// Only what the process should end for.
pub(crate) fn serve<W: Worker>(mut worker: W, mailbox: &Mailbox) -> Result<std::convert::Infallible, BoxError> {
    let mut rings: Vec<Option<Ring>> = (0..W::RINGS).map(|_| None).collect();
    let mut polled: Vec<libc::pollfd> = Vec::with_capacity(W::RINGS + 2);
    let mut more = false;
    loop {
        polled.clear();
        polled.push(watch(mailbox.event.as_raw_fd(), libc::POLLIN));
        for ring in &rings {
            let kick = ring.as_ref().and_then(Ring::kick);
            polled.push(kick.map_or(watch(-1, 0), |kick| watch(kick.as_raw_fd(), libc::POLLIN)));
        }
        let source = worker.source();
        polled.push(source.map_or(watch(-1, 0), |(fd, events)| watch(fd.as_raw_fd(), events)));
        poll(&mut polled, !more)?;

        let mut ready = polled.iter().map(|entry| entry.revents);
        if ready.next().is_some_and(|revents| revents != 0) {
            mailbox.serve_request(&mut worker, &mut rings)?;
            // Rings may be others now; what else is ready will be so again.
            more = true;
            continue;
        }
        for (ring, revents) in rings.iter().zip(&mut ready) {
            if let (Some(kick), true) = (ring.as_ref().and_then(Ring::kick), revents != 0) {
                event::consume(kick).map_err(|error| format!("Cannot read a ring's kick eventfd: {error}"))?;
                more = true;
            }
        }
        if let Some(revents) = ready.next() {
            if revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
                return Err("The device's own descriptor failed: what is behind it is gone".into());
            }
            more |= revents != 0;
        }
        if more {
            more = worker.run(&mut rings)? == Progress::More;
        }
    }
}

fn watch(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// (`ppoll`: a stopped and continued process begins it anew, where `poll` takes another call for that.)
fn poll(fds: &mut [libc::pollfd], wait: bool) -> Result<(), BoxError> {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let limit = if wait { std::ptr::null() } else { &raw const now };
    // SAFETY: the pointer and the length are of one exclusively borrowed slice; the others are null or outlive the call.
    let count = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, limit, std::ptr::null()) };
    if count >= 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::Interrupted {
        for entry in fds {
            entry.revents = 0;
        }
        return Ok(());
    }
    Err(format!("Cannot wait for the rings: {error}").into())
}
