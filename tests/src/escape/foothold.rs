//! A thread that was taken over: what an attacker who runs code in it can have the kernel do.
//!
//! The thread's own registers are set to system calls of the attacker's choice. Most refusals kill, so each attempt is
//! made by a clone of the thread, which has the same filters, Landlock domain, credentials, namespaces and descriptors.
//! Only the making of the clone, which most threads may not ask for, has the filters at rest; the attempt has them in
//! force, but for where it is the question what the other layers hold alone.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use testkit::wait::PATIENCE;

use crate::tracee::{Options, Registers, Stop, Syscall, Tracee, Until};

/// After this long a system call that sleeps is taken to wait, and thereby to have been let through; one that runs (a
/// guest, say) after a longer time; and one that waits for the kernel itself after the longest.
const SLEEPS: Duration = Duration::from_millis(200);
const RUNS: Duration = Duration::from_secs(1);
const STANDS: Duration = Duration::from_secs(5);
/// Below the stack pointer: what the thread itself may use there (the ABI's red zone), and room for what calls take.
const RED_ZONE: u64 = 128;
const ROOM: u64 = 32 << 10;

/// `syscall`, and the entry of 32-bit programs, whose numbers are others.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const INT_80: [u8; 2] = [0xcd, 0x80];

/// What the kernel did about an injected system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned this; an error number is below zero.
    Returned(i64),
    /// It killed the caller: SIGSYS is seccomp's answer.
    Killed(i32),
    /// It took it, and waits for something.
    Waits,
}

/// Why an attempt came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Killed by a signal: SIGSYS is seccomp's answer.
    Killed(i32),
    /// Refused with this error number.
    Refused(i32),
    /// There is nothing to try it on: no such descriptor in this process, say.
    Absent,
    /// The harness failed; says nothing about the program.
    Broken(String),
}

impl From<io::Error> for Held {
    fn from(error: io::Error) -> Held {
        Held::Broken(error.to_string())
    }
}

/// Which layers an attempt meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layers {
    /// All of them.
    All,
    /// All but seccomp.
    WithoutSeccomp,
}

/// What a clone has in common with its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// A copy of the memory: nothing that is done there matters to the program.
    Copy,
    /// The memory itself: KVM answers nobody else.
    Same,
}

/// A thread that stands still until it is dropped or [`release`](Foothold::release)d.
pub struct Foothold {
    thread: Tracee,
    pid: i32,
    before: Registers,
    /// Where a `syscall` instruction is in the program's text.
    gate: u64,
    /// Signals that came meanwhile.
    signals: Vec<i32>,
}

fn options(layers: Layers) -> Options {
    let suspend_seccomp = layers == Layers::WithoutSeccomp;
    Options { follow: true, exec: true, exit: false, suspend_seccomp, kill_with_tracer: false }
}

/// Whether this kernel lets this process have another one's seccomp filters rest.
pub fn supported() -> io::Result<()> {
    let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
    let seized = Tracee::seize(child.id().cast_signed(), options(Layers::WithoutSeccomp));
    child.kill()?;
    child.wait()?;
    seized.map(|_| ())
}

impl Foothold {
    /// Takes over a thread of a process.
    pub fn take(pid: i32, tid: i32) -> Result<Foothold> {
        let gate = gate(pid)?;
        let thread = Tracee::seize(tid, options(Layers::All)).with_context(|| format!("Cannot seize {tid}"))?;
        thread.interrupt()?;
        let mut signals = Vec::new();
        loop {
            match thread.wait(PATIENCE)? {
                Stop::Interrupted => break,
                Stop::Signal(signal) => {
                    signals.push(signal);
                    thread.run(Until::Event, 0)?;
                }
                other => bail!("{tid} met {other:?} instead of standing still"),
            }
        }
        Foothold::of(thread, pid, gate, signals)
    }

    /// Takes over the one thread of a process that is traced and stands behind a system call.
    pub fn hold(pid: i32) -> Result<Foothold> {
        Foothold::of(Tracee::seized(pid), pid, gate(pid)?, Vec::new())
    }

    fn of(thread: Tracee, pid: i32, gate: u64, signals: Vec<i32>) -> Result<Foothold> {
        thread.set_options(options(Layers::WithoutSeccomp)).context("Seccomp cannot be suspended")?;
        let before = thread.registers()?;
        Ok(Foothold { thread, pid, before, gate, signals })
    }

    /// Has a clone of the thread make one attempt, with a limit of processes of its own.
    pub fn attempt<T>(
        &mut self,
        layers: Layers,
        memory: Memory,
        processes: u64,
        act: impl FnOnce(&mut Hand) -> Result<T, Held>,
    ) -> Result<Result<T, Held>> {
        let flags = if memory == Memory::Same { libc::CLONE_VM as u64 } else { 0 };
        let mut clone = None;
        let name = self.inject(libc::SYS_clone, &[flags, 0, 0, 0, 0], &mut clone)?;
        let (Outcome::Returned(name @ 1..), Some(clone)) = (name, clone) else {
            bail!("No clone of thread {} could be made: {name:?}", self.thread.tid());
        };
        ensure!(clone.wait(PATIENCE)? == Stop::Interrupted, "A clone did not stop where it began");
        let mut hand = Hand { tracee: clone, base: self.before, gate: self.gate, free: self.floor(), spent: false };
        let result = hand.begin(layers, processes).and_then(|()| act(&mut hand));
        kill(&hand.tracee)?;
        // Its parent is the thread's process, which knows nothing of it.
        self.inject(libc::SYS_wait4, &[name.cast_unsigned(), 0, libc::__WALL as u64, 0], &mut None)?;
        match result {
            Err(Held::Broken(why)) => bail!(why),
            result => Ok(result),
        }
    }

    /// Has the thread itself make a call, with every layer in force. If that kills it, its process is gone.
    pub fn last_call(mut self, number: libc::c_long, arguments: &[u64]) -> Result<Outcome> {
        self.thread.set_options(options(Layers::All))?;
        let outcome = self.inject(number, arguments, &mut None)?;
        if matches!(outcome, Outcome::Returned(_)) {
            self.release()?;
        }
        Ok(outcome)
    }

    /// Lets the thread go on as if nothing had happened.
    pub fn release(self) -> Result<()> {
        self.thread.set_options(options(Layers::All))?;
        let mut registers = self.before;
        // A call that was interrupted is made anew. The kernel does that only for whoever is still in that call.
        let number = registers.orig_rax.cast_signed();
        if number >= 0 && matches!(registers.rax.cast_signed(), -514..=-512 | -516) {
            registers.rax = registers.orig_rax;
            registers.rip -= 2;
        }
        registers.orig_rax = u64::MAX;
        self.thread.set_registers(&registers)?;
        let (pid, tid) = (self.pid, self.thread.tid());
        self.thread.detach()?;
        for signal in self.signals {
            // SAFETY: takes no pointer.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
        }
        Ok(())
    }

    fn floor(&self) -> u64 {
        (self.before.rsp - RED_ZONE) & !0xf
    }

    fn inject(&mut self, number: libc::c_long, arguments: &[u64], new: &mut Option<Tracee>) -> Result<Outcome> {
        let registers = with_call(self.before, self.gate, number, arguments);
        Ok(run_call(&self.thread, &registers, &mut self.signals, new)?)
    }
}

/// An attacker's hand in a clone: makes system calls, one after another.
pub struct Hand {
    tracee: Tracee,
    base: Registers,
    gate: u64,
    /// Below this address is room on the stack.
    free: u64,
    /// It is dead, has become another program, or waits in the kernel.
    spent: bool,
}

impl Hand {
    /// Makes a system call.
    pub fn call(&mut self, number: libc::c_long, arguments: &[u64]) -> Result<u64, Held> {
        self.reach(number, arguments, &[])
    }

    /// Makes a system call. Where it is refused for one of these reasons, whoever asks *may*: only what was asked for
    /// was nonsense, so that nothing comes of it.
    pub fn reach(&mut self, number: libc::c_long, arguments: &[u64], harmless: &[i32]) -> Result<u64, Held> {
        self.at(self.gate, number, arguments, harmless)
    }

    /// Makes a call the way of 32-bit programs.
    pub fn call_32(&mut self, number: libc::c_long, arguments: [u64; 3]) -> Result<u64, Held> {
        let gate = self.gate;
        // Over the clone's own copy of the text, which is not writable: ptrace may.
        let path = format!("/proc/{}/mem", self.tracee.tid());
        let memory = fs::File::options().write(true).open(path)?;
        std::os::unix::fs::FileExt::write_all_at(&memory, &INT_80, gate)?;
        let [rbx, rcx, rdx] = arguments;
        self.base = Registers { rbx, rcx, rdx, ..self.base };
        self.at(gate, number, &[], &[])
    }

    /// Puts bytes into its memory and gives their address.
    pub fn put(&mut self, bytes: &[u8]) -> Result<u64, Held> {
        self.free = (self.free - bytes.len() as u64) & !0xf;
        self.tracee.write(self.free, bytes)?;
        Ok(self.free)
    }

    /// Puts a text that ends with a zero byte.
    pub fn text(&mut self, text: &str) -> Result<u64, Held> {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    /// Makes room of zero bytes.
    pub fn room(&mut self, size: usize) -> Result<u64, Held> {
        self.put(&vec![0; size.min(ROOM as usize)])
    }

    /// An address in its text.
    pub fn gate(&self) -> u64 {
        self.gate
    }

    /// Reads back what the kernel put at an address.
    pub fn get(&mut self, address: u64, size: usize) -> Result<Vec<u8>, Held> {
        let mut bytes = vec![0; size];
        self.tracee.read(address, &mut bytes)?;
        Ok(bytes)
    }

    /// From here on what it does counts.
    fn begin(&mut self, layers: Layers, processes: u64) -> Result<(), Held> {
        let limit = self.put(&[processes.to_ne_bytes(), processes.to_ne_bytes()].concat())?;
        let limited = self.call(libc::SYS_prlimit64, &[0, libc::RLIMIT_NPROC.into(), limit, 0]);
        limited.map_err(|held| Held::Broken(format!("A clone's limit of processes cannot be set: {held:?}")))?;
        Ok(self.tracee.set_options(options(layers))?)
    }

    fn at(&mut self, gate: u64, number: libc::c_long, arguments: &[u64], harmless: &[i32]) -> Result<u64, Held> {
        if self.spent {
            return Err(Held::Broken("An attempt goes on after its end".into()));
        }
        let registers = with_call(self.base, gate, number, arguments);
        let mut new = None;
        let outcome = run_call(&self.tracee, &registers, &mut Vec::new(), &mut new)?;
        if let Some(new) = new {
            self.spent = true;
            kill(&new)?;
            return Ok(0);
        }
        match outcome {
            Outcome::Returned(value @ -4095..=-1) => match i32::try_from(-value) {
                Ok(errno) if !harmless.contains(&errno) => Err(Held::Refused(errno)),
                _ => Ok(0),
            },
            Outcome::Returned(value) => Ok(value.cast_unsigned()),
            Outcome::Waits => {
                self.spent = true;
                Ok(0)
            }
            Outcome::Killed(signal) => {
                self.spent = true;
                Err(Held::Killed(signal))
            }
        }
    }
}

fn with_call(base: Registers, gate: u64, number: libc::c_long, arguments: &[u64]) -> Registers {
    let mut registers = Registers { rip: gate, rax: number.cast_unsigned(), orig_rax: u64::MAX, ..base };
    let places = [
        &mut registers.rdi,
        &mut registers.rsi,
        &mut registers.rdx,
        &mut registers.r10,
        &mut registers.r8,
        &mut registers.r9,
    ];
    for (n, place) in places.into_iter().enumerate() {
        *place = arguments.get(n).copied().unwrap_or(0);
    }
    registers
}

/// Has a tracee that stands still make the call that its registers are set to. `Waits` where it does not come back
/// from it; `new` is what it made, which stands where it began.
fn run_call(
    tracee: &Tracee,
    registers: &Registers,
    signals: &mut Vec<i32>,
    new: &mut Option<Tracee>,
) -> io::Result<Outcome> {
    // What the processor raises for bad memory or instructions, and limits: no handler of the program's shall see it.
    const FATAL: [i32; 7] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS, libc::SIGXFSZ, libc::SIGPIPE];
    tracee.set_registers(registers)?;
    tracee.run(Until::Syscall, 0)?;
    let begin = Instant::now();
    loop {
        let stop = match tracee.wait(SLEEPS) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let limit = match state(tracee.tid())? {
                    Some('S') => Duration::ZERO,
                    // For the kernel itself: rtnetlink's lock, say, while others on this machine make and remove interfaces.
                    Some('D') => STANDS,
                    _ => RUNS,
                };
                if begin.elapsed() > limit {
                    return Ok(Outcome::Waits);
                }
                continue;
            }
            stop => stop?,
        };
        match stop {
            Stop::Syscall => {
                // One that seccomp refuses is seen to come back with its own number before its death.
                if let Syscall::Exit(value) = tracee.syscall()?
                    && !(value.cast_unsigned() == registers.rax && is_doomed(tracee.tid())?)
                {
                    return Ok(Outcome::Returned(value));
                }
            }
            Stop::New(tid) => {
                *new = Some(Tracee::seized(tid));
                // One that made it by vfork waits for its end.
                if registers.rax == libc::SYS_vfork as u64 {
                    return Ok(Outcome::Returned(tid.into()));
                }
            }
            Stop::Exec => return Ok(Outcome::Returned(0)),
            Stop::Signal(signal) if FATAL.contains(&signal) => return Ok(Outcome::Killed(signal)),
            Stop::Signal(signal) => signals.push(signal),
            Stop::Killed(signal) => return Ok(Outcome::Killed(signal)),
            Stop::Exited(_) => return Ok(Outcome::Killed(0)),
            Stop::Interrupted | Stop::Group(_) | Stop::Exiting(_) => {}
        }
        tracee.run(Until::Syscall, 0)?;
    }
}

/// Whether SIGSYS waits to be delivered.
fn is_doomed(tid: i32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap_or_default().trim();
    let pending = u64::from_str_radix(pending, 16).map_err(io::Error::other)?;
    Ok(pending & (1 << (libc::SIGSYS - 1)) != 0)
}

/// The state of a thread that is not on its way out (proc_pid_stat(5)).
fn state(tid: i32) -> io::Result<Option<char>> {
    const PF_EXITING: u32 = 4;
    let stat = fs::read_to_string(format!("/proc/{tid}/stat"))?;
    let mut fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default().split_whitespace();
    let state = fields.next().and_then(|state| state.chars().next());
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u32>().ok()).unwrap_or(PF_EXITING);
    Ok(state.filter(|_| flags & PF_EXITING == 0))
}

/// Ends a tracee, in whatever state it is, and waits for that.
pub(super) fn kill(tracee: &Tracee) -> io::Result<()> {
    // SAFETY: takes no pointer. The number is the tracee's own until its end was waited for.
    unsafe { libc::kill(tracee.tid(), libc::SIGKILL) };
    loop {
        match tracee.wait(PATIENCE) {
            Ok(Stop::Killed(_) | Stop::Exited(_)) => return Ok(()),
            // It was gone before.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The address of a `syscall` instruction, or of what reads as one, in a process's text.
fn gate(pid: i32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let text = maps.lines().find(|line| line.contains(" r-xp ") && line.contains('/'));
    let range = text.and_then(|line| line.split(' ').next()?.split_once('-')).context("A program without text")?;
    let (mut at, end) = (u64::from_str_radix(range.0, 16)?, u64::from_str_radix(range.1, 16)?);
    let process = Tracee::seized(pid);
    let mut page = [0; 4096];
    while at < end {
        process.read(at, &mut page)?;
        if let Some(offset) = page.windows(2).position(|bytes| bytes == SYSCALL) {
            return Ok(at + offset as u64);
        }
        at += page.len() as u64;
    }
    bail!("The program of {pid} makes no system call")
}
