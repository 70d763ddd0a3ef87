//! The far side of the serial port: a bounded buffer that vCPUs fill and a thread of its own that empties it into the console's
//! socket, so that nobody's slow reading ever holds up a guest; and the way back, as fast as the guest takes it. Sees what the
//! guest prints, and passes it on without looking.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use confine::{Filter, Rule, base};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::events::{clear, signal};
use crate::serial::{Com1, Line};

/// Bytes of guest output that wait for the console at most.
pub const BUFFER: usize = 64 << 10;
/// How long output is gathered before it is written: a guest prints byte by byte.
const GATHER: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
/// How long a console may take to read the last words of a VM that has ended.
const LAST_WORDS: Duration = Duration::from_millis(500);
const CHUNK: usize = 4096;

struct Output {
    bytes: VecDeque<u8>,
    /// The thread knows that there are bytes.
    told: bool,
    /// Nobody reads any more.
    closed: bool,
}

/// Shared by the serial port and the console's thread.
pub struct Console {
    output: Mutex<Output>,
    dropped: AtomicU64,
    finish: AtomicBool,
    wants_room: AtomicBool,
    wake: OwnedFd,
}

impl Line for Console {
    /// Where there is no room it counts as dropped.
    fn output(&self, byte: u8) {
        let mut output = self.lock();
        if output.closed || output.bytes.len() >= BUFFER {
            drop(output);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        output.bytes.push_back(byte);
        if !std::mem::replace(&mut output.told, true) {
            drop(output);
            self.wake();
        }
    }

    fn input_taken(&self) {
        if self.wants_room.swap(false, Ordering::AcqRel) {
            self.wake();
        }
    }
}

impl Console {
    /// `wake`, an eventfd, wakes the console's thread.
    pub fn new(wake: OwnedFd) -> Console {
        // All of the buffer at once: vCPU threads may not allocate.
        let output = Output { bytes: VecDeque::with_capacity(BUFFER), told: false, closed: false };
        Console {
            output: Mutex::new(output),
            dropped: AtomicU64::new(0),
            finish: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            wake,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        signal(&self.wake);
    }

    /// Bytes that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Ends the thread once it has written what is left, or half a second has passed.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Release);
        self.wake();
    }

    /// Moves waiting output into `chunk`, up to `CHUNK` bytes.
    fn take(&self, chunk: &mut Vec<u8>) {
        let mut output = self.lock();
        let count = output.bytes.len().min(CHUNK.saturating_sub(chunk.len()));
        chunk.extend(output.bytes.drain(..count));
        if output.bytes.is_empty() {
            output.told = false;
        }
    }

    fn close(&self) {
        let mut output = self.lock();
        output.closed = true;
        let lost = output.bytes.len() as u64;
        output.bytes.clear();
        drop(output);
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    /// The console's thread. `socket` must not block. Returns after `finish`.
    pub fn run(&self, socket: OwnedFd, com1: &Com1) {
        let mut pending = Vec::with_capacity(CHUNK);
        let (mut readable, mut writable) = (true, true);
        let mut deadline: Option<Instant> = None;
        loop {
            let finishing = self.finish.load(Ordering::Acquire);
            if finishing {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                if Instant::now() >= deadline {
                    return;
                }
            }
            if writable {
                self.take(&mut pending);
                if let Err(error) = write_some(&socket, &mut pending) {
                    // What the kernel does not take just now is lost; the rest is tried again.
                    self.dropped.fetch_add(pending.len() as u64, Ordering::Relaxed);
                    pending.clear();
                    if is_end(error) {
                        writable = false;
                        self.close();
                    }
                }
            }
            let blocked = !pending.is_empty();
            if finishing && !blocked && self.lock().bytes.is_empty() {
                return;
            }
            if !blocked && !self.lock().bytes.is_empty() {
                continue; // More than a chunk was waiting.
            }

            let room = if readable { com1.input_room() } else { 0 };
            if readable && room == 0 {
                self.wants_room.store(true, Ordering::Release);
                // The guest may have read between the two.
                if com1.input_room() > 0 {
                    continue;
                }
            }
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::IN, room > 0);
            interest.set(PollFlags::OUT, blocked);
            let wake = PollFd::new(&self.wake, PollFlags::IN);
            let console = PollFd::new(&socket, interest);
            // Without an interest the console is left out: its hang-up would be reported for ever.
            let mut fds = [wake, console];
            let fds = if interest.is_empty() { &mut fds[..1] } else { &mut fds[..] };
            let timeout = finishing.then_some(Timespec { tv_sec: 0, tv_nsec: 10_000_000 });
            if poll(fds, timeout.as_ref()).is_err() {
                continue; // A signal.
            }
            let seen = |index: usize| fds.get(index).is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty());
            let (woken, console_ready) = (seen(0), seen(1));
            if woken {
                clear(&self.wake);
                if !finishing {
                    // An interrupted rest is a shorter one.
                    let _ = poll(&mut [], Some(&GATHER));
                }
            }
            if console_ready && room > 0 {
                readable = self.input(&socket, com1, room);
            }
        }
    }

    /// Passes on what the console has sent, up to `room` bytes. False once it will send no more.
    fn input(&self, socket: &OwnedFd, com1: &Com1, room: usize) -> bool {
        let mut bytes = [0; 64];
        let Some(place) = bytes.get_mut(..room.min(64)) else { return true };
        match rustix::io::read(socket, place) {
            Ok(0) => false,
            Ok(count) => {
                com1.input(bytes.get(..count).unwrap_or_default());
                true
            }
            Err(errno) => !is_end(errno),
        }
    }
}

/// Whether nobody is there any more. All else passes: memory that the kernel lacks comes back.
fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::BADF)
}

/// Writes as much as the socket takes now, and removes it from `bytes`.
fn write_some(socket: impl AsFd, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&socket, bytes) {
            Ok(0) => return Err(Errno::PIPE),
            Ok(count) => drop(bytes.drain(..count.min(bytes.len()))),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What the console's thread may ask of the kernel: to read and write its socket, and an eventfd.
pub fn filter(socket: RawFd) -> Filter {
    let on_socket = || Rule::eq(0, socket.unsigned_abs());
    Filter::new("console")
        .with(&base::thread())
        .with(&base::clock())
        .with(&base::close()) // the socket, at the end
        .with(&base::signal())
        .allow(&[libc::SYS_ppoll])
        .allow_if(libc::SYS_read, vec![on_socket(), Rule::eq64(2, 8)])
        .allow_if(libc::SYS_write, vec![on_socket()])
}
