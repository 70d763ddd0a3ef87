//! Runs a program with all that it starts under ptrace, and notes for every thread of Volt's programs which system calls
//! its seccomp filter allows and which of those it makes. The programs are the real ones, unchanged.
//!
//! Two things are done to them, both of which happen to real processes as well: they get no vDSO (as on hosts whose
//! clock has none), so that reading the clock is a system call; and a process that sits in a timed wait is stopped and
//! continued, if its filter has `restart_syscall`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    fs::{self, File},
    io::{Read, Seek},
    path::Path,
    process::Command,
    rc::Rc,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use schema::programs::{self, Process};

use super::{
    bpf::{self, Instruction},
    names::name,
};
use crate::tracee::{self, Options, Stop, Syscall, Tracee, Until};

/// Linux's auxv(3) keys: where the vDSO is, and one that says nothing.
const AT_SYSINFO_EHDR: u64 = 33;
const AT_IGNORE: u64 = 1;
/// The longest filter that the kernel takes.
const MOST_INSTRUCTIONS: usize = 4096;
/// How long a waiting process is left in peace, and then stopped, to see it resume its wait.
const PAUSE: Duration = Duration::from_millis(3);
/// How long its other threads are held up meanwhile, so that what it waits for does not come.
const HOLD: Duration = Duration::from_millis(12);
/// How often one process is stopped at most.
const POKES: u32 = 8;

/// The threads of one name in one kind of process.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Role {
    /// The process, as the table of processes has it.
    pub process: &'static Process,
    /// The thread's name, without a number at its end; `main` for a process's first.
    pub thread: String,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.process.name, self.thread)
    }
}

/// What a role's filters allow, and what of it was seen.
#[derive(Default, Debug)]
pub struct Calls {
    /// Allowed to one thread at least.
    pub allowed: BTreeSet<u32>,
    /// Made by one at least, or by a program that one started under the same filter.
    pub used: BTreeSet<u32>,
}

/// What all runs have shown.
#[derive(Default)]
pub struct Seen {
    /// By role.
    pub roles: BTreeMap<Role, Calls>,
    /// Calls that a filter ended a process for.
    pub refused: BTreeSet<String>,
    /// What a thread's own filter allows and one that it was started under does not.
    pub cut: BTreeSet<String>,
}

/// A filter that a thread is under, with those that it was under before.
struct Installed {
    role: Role,
    program: Vec<Instruction>,
    /// What it allows.
    allowed: BTreeSet<u32>,
}

impl Installed {
    /// One that only answers some calls in the kernel's stead, and leaves all others to the filter beside it.
    fn leaves_the_rest(&self) -> bool {
        self.allowed.contains(&bpf::LAST_NUMBER)
    }
}

/// One thread of any traced process.
#[derive(Clone, Default)]
struct Thread {
    /// The program of ours that it runs.
    program: Option<Rc<str>>,
    filters: Vec<Rc<Installed>>,
    /// What it is about to install.
    installing: Option<Rc<Installed>>,
    /// Its process.
    process: i32,
}

struct Tracer<'a> {
    seen: &'a Mutex<Seen>,
    threads: HashMap<i32, Thread>,
    /// Threads that stopped before their maker told of them.
    early: HashSet<i32>,
    pokes: HashMap<i32, u32>,
    poker: Sender<i32>,
    /// Until when threads of a process are held up, but for the one that waits.
    holds: HashMap<i32, (Instant, i32)>,
    /// Those that stand still for it, with the signal that each is to get.
    held: Vec<(i32, i32, Instant)>,
}

/// What was seen so far.
pub fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `command` to its end, and adds what Volt's processes did to `seen`, to which several may add at a time.
pub fn run(command: &Command, seen: &Mutex<Seen>, limit: Duration) -> Result<()> {
    let mut output = tempfile()?;
    let options = Options { follow: true, exec: true, exit: true, kill_with_tracer: true, ..Options::default() };
    let mut gated = tracee::gated(command, "</dev/null");
    gated.stdout(output.try_clone()?).stderr(output.try_clone()?);
    // Where a check failed, its message says.
    gated.env("RUST_BACKTRACE", "0").env("RUST_LIB_BACKTRACE", "0");
    let (_child, first) = tracee::start(&mut gated, options).context("Cannot trace a child")?;
    let pid = first.tid();
    let (poker, poked) = channel();
    let pokes = thread::spawn(move || poked.iter().for_each(stop_and_continue));
    let threads = HashMap::from([(pid, Thread::default())]);
    let mut tracer = Tracer {
        seen,
        threads,
        early: HashSet::new(),
        pokes: HashMap::new(),
        poker,
        holds: HashMap::new(),
        held: Vec::new(),
    };
    let status = tracer.follow(pid, Instant::now() + limit);
    let _ends_the_rest = tracer.end();
    drop(tracer);
    let _ = pokes.join();
    let status = status?;
    if status != Stop::Exited(0) {
        let mut said = String::new();
        output.rewind()?;
        output.read_to_string(&mut said)?;
        println!("{said}");
    }
    ensure!(status == Stop::Exited(0), "It ended with {status:?}; what it said is above");
    Ok(())
}

fn tempfile() -> Result<File> {
    let fd = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(fd))
}

fn stop_and_continue(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    thread::sleep(PAUSE);
    let stopped = kill_process(pid, Signal::STOP);
    thread::sleep(PAUSE);
    if stopped.is_ok() {
        let _gone = kill_process(pid, Signal::CONT);
    }
}

impl Tracer<'_> {
    /// Lets everything run until process `first` has ended.
    fn follow(&mut self, first: i32, deadline: Instant) -> Result<Stop> {
        loop {
            let now = Instant::now();
            let due = self.held.iter().map(|(_, _, until)| *until).min().unwrap_or(deadline);
            let (tid, stop) = match tracee::next(due.saturating_duration_since(now)) {
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut && now < deadline => {
                    self.release(Instant::now());
                    continue;
                }
                next => next.context("It did not end in time")?,
            };
            self.release(now);
            match stop {
                Stop::Exited(_) | Stop::Killed(_) => {
                    self.threads.remove(&tid);
                    self.early.remove(&tid);
                    if tid == first {
                        return Ok(stop);
                    }
                }
                _ => self.stopped(tid, stop)?,
            }
        }
    }

    /// Lets those go on whose hold is over.
    fn release(&mut self, now: Instant) {
        for (tid, signal, _) in self.held.extract_if(.., |(_, _, until)| *until <= now).collect::<Vec<_>>() {
            self.go_on(tid, signal);
        }
    }

    /// Ends what is left over: daemons.
    fn end(&mut self) -> Result<()> {
        for pid in self.threads.keys().filter_map(|tid| Pid::from_raw(*tid)) {
            let _gone = kill_process(pid, Signal::KILL);
        }
        loop {
            match tracee::next(Duration::from_secs(10))? {
                (tid, Stop::Exited(_) | Stop::Killed(_)) => drop(self.threads.remove(&tid)),
                (tid, _) => drop(Tracee::seized(tid).detach()),
            }
        }
    }

    /// A thread stands still: sees why, and lets it go on. A thread that is gone meanwhile is no error.
    fn stopped(&mut self, tid: i32, stop: Stop) -> Result<()> {
        if !self.threads.contains_key(&tid) {
            self.early.insert(tid);
            return Ok(());
        }
        let tracee = Tracee::seized(tid);
        let mut signal = 0;
        match stop {
            Stop::New(child) => {
                let mut like = self.threads.get(&tid).cloned().unwrap_or_default();
                like.process = status(child, "Tgid").and_then(|process| process.parse().ok()).unwrap_or(child);
                self.threads.insert(child, like);
                if self.early.remove(&child) {
                    self.go_on(child, 0);
                }
            }
            Stop::Exec => self.executed(&tracee),
            Stop::Syscall => self.syscall(&tracee)?,
            Stop::Signal(number) => signal = number,
            Stop::Group(_) => {
                let _gone = tracee.listen();
                return Ok(());
            }
            // A traced process that has ended is its parent's to wait for only when its tracer has done so. Let go of
            // before that, it ends as if nobody had looked.
            Stop::Exiting(_) => {
                self.threads.remove(&tid);
                let _gone = tracee.detach();
                return Ok(());
            }
            Stop::Interrupted | Stop::Exited(_) | Stop::Killed(_) => {}
        }
        match self.threads.get(&tid).and_then(|thread| self.holds.get(&thread.process)) {
            Some((until, waiting)) if *waiting != tid && *until > Instant::now() && stop == Stop::Syscall => {
                self.held.push((tid, signal, *until));
            }
            _ => self.go_on(tid, signal),
        }
        Ok(())
    }

    fn go_on(&self, tid: i32, signal: i32) {
        let ours = self.threads.get(&tid).is_some_and(|thread| thread.program.is_some());
        let _gone = Tracee::seized(tid).run(if ours { Until::Syscall } else { Until::Event }, signal);
    }

    fn executed(&mut self, tracee: &Tracee) {
        let tid = tracee.tid();
        let program = program(tid);
        if program.is_some() {
            let _left_as_it_is = hide_vdso(tracee);
        }
        let thread = self.threads.entry(tid).or_default();
        (thread.program, thread.process) = (program, tid);
    }

    fn syscall(&mut self, tracee: &Tracee) -> Result<()> {
        let Some(thread) = self.threads.get_mut(&tracee.tid()) else { return Ok(()) };
        match tracee.syscall() {
            Ok(Syscall::Entry { number, arguments, .. }) => {
                let number = u32::try_from(number)?;
                let may_restart = note(thread, &mut lock(self.seen), number, arguments)?;
                if may_restart && is_timed_wait(number, arguments) {
                    self.poke(tracee.tid());
                } else if let Some(program) = filter_of(tracee, number, arguments) {
                    let role = role(tracee.tid(), thread.program.as_deref().unwrap_or_default())?;
                    let allowed = bpf::allowed(&program)?;
                    thread.installing = Some(Rc::new(Installed { role, program, allowed }));
                }
            }
            Ok(Syscall::Exit(result)) => {
                let Some(installed) = thread.installing.take().filter(|_| result == 0) else { return Ok(()) };
                let mut seen = lock(self.seen);
                let mut allowed = installed.allowed.clone();
                if only_asks_whether_open(&installed.program)? {
                    allowed.remove(&(libc::SYS_fcntl as u32));
                }
                for earlier in &thread.filters {
                    let role = &installed.role;
                    let cut = allowed.extract_if(.., |number| !earlier.allowed.contains(number));
                    // That a filter has to allow what the one beside it answers is no mistake.
                    if !earlier.leaves_the_rest() {
                        seen.cut.extend(cut.map(|number| format!("{role}: {}", name(number))));
                    } else {
                        cut.for_each(drop);
                    }
                }
                if !installed.leaves_the_rest() {
                    seen.roles.entry(installed.role.clone()).or_default().allowed.extend(allowed);
                }
                thread.filters.push(installed);
            }
            Ok(Syscall::None) | Err(_) => {}
        }
        Ok(())
    }

    fn poke(&mut self, tid: i32) {
        let Some(process) = self.threads.get(&tid).map(|thread| thread.process) else { return };
        let pokes = self.pokes.entry(process).or_default();
        let now = Instant::now();
        if *pokes < POKES && self.holds.get(&process).is_none_or(|(until, _)| *until < now) {
            *pokes += 1;
            self.holds.insert(process, (now + HOLD, tid));
            let _ = self.poker.send(process);
        }
    }
}

/// Notes a call that is about to be made under filters; whether `restart_syscall` was not yet seen under one of them. (One
/// that waits and does not have it is found so.)
fn note(thread: &Thread, seen: &mut Seen, number: u32, arguments: [u64; 6]) -> Result<bool> {
    let restart = libc::SYS_restart_syscall as u32;
    let mut may_restart = false;
    for Installed { role, program, .. } in thread.filters.iter().map(|filter| &**filter) {
        if !bpf::survives(program, number, arguments)? {
            let arguments = arguments.map(|argument| format!("{argument:#x}")).join(", ");
            seen.refused.insert(format!("{role}: {}({arguments})", name(number)));
        }
        let calls = seen.roles.entry(role.clone()).or_default();
        calls.used.insert(number);
        may_restart |= !calls.used.contains(&restart);
    }
    Ok(may_restart)
}

/// Whether of `fcntl` a filter allows F_GETFD alone: debug builds of std check by it that what they close is open, and
/// release builds of ours do not have it.
fn only_asks_whether_open(program: &[Instruction]) -> Result<bool> {
    let allows = |command| bpf::allows(program, libc::SYS_fcntl as u32, [0, command, 0, 0, 0, 0]);
    let commands = [0..1, 2..64, 1024..1100].into_iter().flatten();
    Ok(allows(libc::F_GETFD as u64)? && !commands.map(allows).collect::<Result<Vec<_>>>()?.contains(&true))
}

/// Whether a call waits, and no longer than some time.
fn is_timed_wait(number: u32, [_, second, third, fourth, ..]: [u64; 6]) -> bool {
    let command = second as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    match libc::c_long::from(number) {
        libc::SYS_futex => matches!(command, libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) && fourth != 0,
        libc::SYS_poll => third as i32 > 0,
        libc::SYS_clock_nanosleep => true,
        _ => false,
    }
}

/// The filter that a call is about to install.
fn filter_of(tracee: &Tracee, number: u32, [first, second, third, ..]: [u64; 6]) -> Option<Vec<Instruction>> {
    let installs = match libc::c_long::from(number) {
        libc::SYS_seccomp => first == u64::from(libc::SECCOMP_SET_MODE_FILTER) && second == 0,
        libc::SYS_prctl => first == libc::PR_SET_SECCOMP as u64 && second == u64::from(libc::SECCOMP_MODE_FILTER),
        _ => false,
    };
    if !installs {
        return None;
    }
    // `struct sock_fprog`: a count, and behind some padding an address.
    let mut head = [0; 16];
    tracee.read(third, &mut head).ok()?;
    let [a, b, _, _, _, _, _, _, address @ ..] = head;
    let count = usize::from(u16::from_ne_bytes([a, b]));
    let mut bytes = vec![0; count.min(MOST_INSTRUCTIONS) * Instruction::SIZE];
    tracee.read(u64::from_ne_bytes(address), &mut bytes).ok()?;
    Some(Instruction::read_all(&bytes))
}

/// The program of ours that a process runs. One of many commands (`volt`) goes by its first argument as well.
fn program(pid: i32) -> Option<Rc<str>> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = programs::programs().find(|name| exe.file_name().is_some_and(|exe| exe == *name))?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = line.split(|byte| *byte == 0).nth(1).filter(|word| !word.is_empty() && !word.starts_with(b"-"));
    let command = command.map(|word| format!("{name} {}", String::from_utf8_lossy(word)));
    Some(command.unwrap_or_else(|| name.to_owned()).into())
}

fn role(tid: i32, program: &str) -> Result<Role> {
    let (program, command) = program.split_once(' ').unwrap_or((program, ""));
    let pid: i32 = status(tid, "Tgid").and_then(|pid| pid.parse().ok()).unwrap_or(tid);
    let title = status(pid, "Name").unwrap_or_default();
    let process = programs::find(program, &title, command);
    let process =
        process.with_context(|| format!("{program} {command} filters itself as {title:?}, which no table has"))?;
    let name = if tid == pid { "main".into() } else { status(tid, "Name").unwrap_or_default() };
    Ok(Role { process, thread: name.trim_end_matches(|end: char| end.is_ascii_digit()).to_owned() })
}

/// A field of a thread's status.
fn status(tid: i32, field: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc").join(tid.to_string()).join("status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Takes the vDSO out of what a program that was just executed is told of its surroundings: behind its arguments and
/// its environment, each a list of addresses that ends with 0, come pairs of a key and a value (System V ABI, 3.4.1).
fn hide_vdso(tracee: &Tracee) -> std::io::Result<()> {
    let mut at = tracee.registers()?.rsp;
    let mut next = || {
        at += 8;
        let mut word = [0; 8];
        tracee.read(at, &mut word).map(|()| (at, u64::from_ne_bytes(word)))
    };
    for _list in ["arguments", "environment"] {
        while next()?.1 != 0 {}
    }
    loop {
        match (next()?, next()?) {
            ((_, 0), _) => return Ok(()),
            ((key, AT_SYSINFO_EHDR), _) => return tracee.write(key, &AT_IGNORE.to_ne_bytes()),
            _ => {}
        }
    }
}
