//! The terminal and the guest's serial console: two threads that copy bytes, and may do nothing else.
//!
//! A terminal is raw, so that all that is typed is the guest's, Ctrl-C among it; one key is ours, and the next one says what is
//! wanted. Other input is passed on as it is.

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    rc::Rc,
    time::Duration,
};

use crate::{error::Error, filters, output::say, vm::terminal::Terminal};
use confine::{Confined, Filter, JoinHandle, base};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FileType,
    io::Errno,
};

/// How long the last of the guest's output may take to reach whoever reads ours.
const DRAIN: Duration = Duration::from_secs(2);

/// What a guest's output may take of a file that is kept in memory. It is charged to whoever writes it, which is this process and not the VM.
const IN_MEMORY: u64 = 64 << 20;

/// How long until a job in the background looks again whether the terminal is its own, or until the kernel has what it lacks.
const BACKGROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// Ctrl-], as telnet and virsh have it.
const ESCAPE: u8 = 0x1d;

/// A command to the supervisor, by the key behind the escape key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyCommand {
    /// To press the power button.
    Stop = b's' as isize,
    /// To end the VM at once.
    Kill = b'k' as isize,
}

impl KeyCommand {
    /// The command of that key, typed or written down.
    pub fn of(key: u8) -> Option<KeyCommand> {
        [KeyCommand::Stop, KeyCommand::Kill].into_iter().find(|command| *command as u8 == key.to_ascii_lowercase())
    }
}

/// How long a file that this process writes to may become. One in memory must not take all of it, however much the guest prints; one on a
/// disk is whoever's it is who named it.
pub fn longest_file() -> u64 {
    let length = |fd: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(fd).ok()?;
        FileType::from_raw_mode(stat.st_mode).is_file().then(|| stat.st_size.cast_unsigned())
    };
    let (out, err) = (rustix::stdio::stdout(), rustix::stdio::stderr());
    match length(out) {
        Some(there) if disk::is_in_memory(out).unwrap_or(true) => {
            say(format_args!(
                "standard output is a file in memory: it takes {} MiB more of the console, and then what is printed is lost until it is cut shorter; name a file on a disk to keep more",
                IN_MEMORY >> 20
            ));
            there.max(length(err).unwrap_or(0)).saturating_add(IN_MEMORY)
        }
        _ => u64::MAX,
    }
}

/// The supervisor's end of the console.
pub struct Console {
    /// Kept for the cores: each boot of the guest gets a duplicate.
    core_end: UnixStream,
    output: Option<JoinHandle<()>>,
    /// The terminal that is the guest's now.
    pub terminal: Option<Rc<Terminal>>,
    /// Where [`KeyCommand`]s come from, a byte each.
    commands: Option<OwnedFd>,
}

impl Console {
    /// Connects standard input and output with the console of the VM `name`. The threads begin once `confined` has been entered.
    pub fn start(confined: &Confined, name: &str) -> Result<Console, Error> {
        let pair = || UnixStream::pair().map_err(no_descriptor);
        let (ours, core_end) = pair()?;
        // A guest that takes no input must not keep the escape key from being read.
        ours.set_nonblocking(true).map_err(no_descriptor)?;
        let copy_in = ours.try_clone().map_err(no_descriptor)?;
        let filter = Filter::new("console").with(&base::thread()).with(&base::close()).with(&filters::poll());
        let filter = filter.allow(&[libc::SYS_read, libc::SYS_write]);
        let of = name.to_owned();
        let output = confined
            .spawn("console-out", &filter, move || copy_out(ours.as_fd(), rustix::stdio::stdout(), &of))
            .map_err(Error::Console)?;
        let terminal = Terminal::take();
        let (keys, commands) = if terminal.is_some() { Some(pair()?).unzip() } else { (None, None) };
        if let Some(commands) = &commands {
            commands.set_nonblocking(true).map_err(no_descriptor)?;
            say(format_args!("this terminal is the console of {name}; Ctrl-] is the way out: press it for help"));
        }
        let of = name.to_owned();
        let input = move || match keys {
            Some(keys) => type_in(rustix::stdio::stdin(), copy_in.as_fd(), keys.as_fd(), &of),
            None => copy_in_whole(rustix::stdio::stdin(), copy_in.as_fd()),
        };
        confined.spawn("console-in", &filter, input).map_err(Error::Console)?;
        Ok(Console {
            core_end,
            output: Some(output),
            terminal: terminal.map(Rc::new),
            commands: commands.map(OwnedFd::from),
        })
    }

    /// Where [`KeyCommand`]s come from, a byte each.
    pub fn commands(&mut self) -> Option<OwnedFd> {
        self.commands.take()
    }

    /// The end that a core gets.
    pub fn core_end(&self) -> Result<OwnedFd, Error> {
        self.core_end.try_clone().map(OwnedFd::from).map_err(no_descriptor)
    }

    /// Waits until what the guest wrote has been written out, but not for ever: the reader may have stopped reading.
    pub fn finish(mut self) {
        let _ = self.core_end.shutdown(Shutdown::Both);
        if let Some(output) = self.output.take() {
            let _written = output.finishes_within(DRAIN);
        }
    }
}

fn no_descriptor(source: io::Error) -> Error {
    Error::NoDescriptor { tried: "set up the console", source }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}

/// Whether nobody reads there any more. Whatever else a write fails with may pass: a disk that is full, a quota, a limit of a
/// file's size, a device that hangs.
fn is_end(errno: Errno) -> bool {
    matches!(errno, Errno::PIPE | Errno::BADF)
}

/// A kernel's word for people, without the allocation that the C library's texts take: these threads may not ask for memory.
fn word(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC => "no space left on device",
        Errno::DQUOT => "disk quota exceeded",
        Errno::FBIG => "file too large (ulimit -f)",
        Errno::IO => "input/output error",
        _ => "the kernel refuses it",
    }
}

/// A line for people, put together on the stack.
fn tell(line: std::fmt::Arguments<'_>) {
    let mut buffer = [0u8; 256];
    let mut left = &mut buffer[..];
    // What does not fit is cut off.
    let _cut = writeln!(left, "volt: {line}");
    let used = 256 - left.len();
    let _unread = rustix::io::write(rustix::stdio::stderr(), buffer.get(..used).unwrap_or_default());
}

/// Reads what is there; nothing at the end.
fn read<'a>(from: BorrowedFd<'_>, buffer: &'a mut [u8]) -> &'a [u8] {
    loop {
        match rustix::io::read(from, &mut *buffer) {
            Ok(n) => return buffer.get(..n).unwrap_or(&[]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(from, PollFlags::IN),
            // The terminal is another job's now: SIGTTIN is blocked, so that this does not stop the VM.
            Err(Errno::IO) => rest(),
            Err(errno) if ipc::passes(errno) => rest(),
            Err(_) => return &[],
        }
    }
}

/// Writes all of it. Whoever gave us this descriptor may have made it non-blocking.
fn write(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), (Errno, usize)> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or(&[]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(to, PollFlags::OUT),
            Err(Errno::NOBUFS) => rest(),
            Err(errno) => return Err((errno, bytes.len())),
        }
    }
    Ok(())
}

fn rest() {
    let _ = rustix::event::poll(&mut [], Some(&BACKGROUND));
}

fn wait(fd: BorrowedFd<'_>, events: PollFlags) {
    let _ = rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, events)], None);
}

/// Copies the guest's output until nobody reads it, or the console ends. What cannot be written is dropped, counted and said; the
/// next is tried again.
fn copy_out(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &str) {
    let mut buffer = [0u8; 16 << 10];
    let mut lost = 0;
    loop {
        let bytes = read(from, &mut buffer);
        let written = if bytes.is_empty() { Ok(()) } else { write(to, bytes) };
        if lost > 0 && written.is_ok() {
            tell(format_args!("bytes of the console of {name} were lost: {lost}"));
            lost = 0;
        }
        match written {
            Ok(()) if bytes.is_empty() => return,
            Ok(()) => {}
            Err((errno, _)) if is_end(errno) => return,
            Err((errno, rest)) => {
                if lost == 0 {
                    tell(format_args!(
                        "the console of {name} cannot be written now: {}. It is tried again",
                        word(errno)
                    ));
                }
                lost += rest;
            }
        }
    }
}

/// Copies input that is no terminal's, until it ends.
fn copy_in_whole(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    let mut buffer = [0u8; 16 << 10];
    loop {
        let bytes = read(from, &mut buffer);
        if bytes.is_empty() || write(to, bytes).is_err() {
            return;
        }
    }
}

/// Passes on what is typed, and tells commands. Keys that a guest has no room for are lost, as on a real line.
fn type_in(from: BorrowedFd<'_>, to: BorrowedFd<'_>, commands: BorrowedFd<'_>, name: &str) {
    let mut buffer = [0u8; 1024];
    let mut escaped = false;
    loop {
        let bytes = read(from, &mut buffer);
        if bytes.is_empty() {
            return;
        }
        let mut typed = [0u8; 1024];
        let mut places = typed.iter_mut();
        for key in bytes.iter().copied() {
            match (std::mem::take(&mut escaped), key) {
                (false, ESCAPE) => {
                    escaped = true;
                    tell(format_args!(
                        "Ctrl-] and then: s stops {name}, k ends it at once, Ctrl-] is typed itself; any other key goes on"
                    ));
                }
                (false, key) | (true, key @ ESCAPE) => places.next().into_iter().for_each(|place| *place = key),
                (true, key) => {
                    if let Some(command) = KeyCommand::of(key) {
                        // Full where many lie there unread already.
                        let _told = rustix::io::write(commands, &[command as u8]);
                    }
                }
            }
        }
        let left = places.len();
        let mut rest = typed.get(..1024 - left).unwrap_or_default();
        while let Ok(n @ 1..) = rustix::io::write(to, rest) {
            rest = rest.get(n..).unwrap_or(&[]);
        }
    }
}
