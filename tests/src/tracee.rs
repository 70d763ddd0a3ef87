//! A thread of a running, unchanged program, stopped and looked at from outside: ptrace(2) for x86-64, made safe.
//!
//! The kernel ties a tracee to the *thread* that seized it: nothing here can be sent to another one. When that thread
//! ends, its tracees run on, or die with it where [`Options::kill_with_tracer`] was asked for.
//!
//! Only for tests: no program of the platform refers to ptrace but to forbid it.

use std::{
    io::{self, Write},
    marker::PhantomData,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A thread's registers.
pub use libc::user_regs_struct as Registers;

/// What to report beside stops that were asked for, and how the tracee is treated.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// New threads and children are seized as well, stopped before their first instruction, and reported as
    /// [`Stop::New`] by the one that made them.
    pub follow: bool,
    /// Stop after a successful `execve`: [`Stop::Exec`]. (Without it a seized thread runs on.)
    pub exec: bool,
    /// Stop on the way out, when the exit status is settled: [`Stop::Exiting`].
    pub exit: bool,
    /// The tracee's seccomp filters rest while it is traced. Needs CAP_SYS_ADMIN, CONFIG_CHECKPOINT_RESTORE, and a
    /// tracer without a filter.
    pub suspend_seccomp: bool,
    /// The tracee is killed when the tracer ends, however that happens.
    pub kill_with_tracer: bool,
}

impl Options {
    fn bits(self) -> usize {
        let follow = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK;
        let all = [
            (true, libc::PTRACE_O_TRACESYSGOOD),
            (self.follow, follow),
            (self.exec, libc::PTRACE_O_TRACEEXEC),
            (self.exit, libc::PTRACE_O_TRACEEXIT),
            (self.suspend_seccomp, libc::PTRACE_O_SUSPEND_SECCOMP),
            (self.kill_with_tracer, libc::PTRACE_O_EXITKILL),
        ];
        all.into_iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit as usize)
    }
}

/// Why a tracee stands still, or that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the beginning or the end of a system call: see [`Tracee::syscall`].
    Syscall,
    /// As [`Tracee::interrupt`] asked, or, a new one, before its first instruction.
    Interrupted,
    /// All threads of its process were stopped by this signal; [`Tracee::listen`] keeps it so.
    Group(i32),
    /// This signal is about to be delivered: hand it to the next [`Tracee::run`] to have it delivered.
    Signal(i32),
    /// It made a thread or a process, which is seized and has this number.
    New(i32),
    /// It executed a program. A thread that was not its process's first has that one's number from now on.
    Exec,
    /// It is about to end; the wait status of its end.
    Exiting(i32),
    /// It is gone, and its number may be another's.
    Exited(i32),
    /// It was killed by this signal, and its number may be another's.
    Killed(i32),
}

/// What a tracee asks of the kernel, or got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syscall {
    /// About to be made. Nothing has looked at it yet, no seccomp filter either.
    Entry {
        /// The audit architecture: a 32-bit entry shows here.
        arch: u32,
        /// Its number.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// Made: a result, or an error number below zero.
    Exit(i64),
    /// The tracee does not stand at a system call.
    None,
}

/// How a tracee goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until something else than a system call happens to it.
    Event,
    /// Until its next beginning or end of a system call.
    Syscall,
}

/// A seized thread. Dropping it leaves it as it is.
#[derive(Debug)]
pub struct Tracee {
    tid: i32,
    /// ptrace knows the calling thread only.
    _this_thread: PhantomData<*const ()>,
}

impl Tracee {
    /// Seizes a running thread; it runs on.
    pub fn seize(tid: i32, options: Options) -> io::Result<Tracee> {
        let tracee = Tracee::seized(tid);
        tracee.request(libc::PTRACE_SEIZE, 0, options.bits())?;
        Ok(tracee)
    }

    /// One that was seized with the one that made it ([`Stop::New`]), or that [`next`] named.
    pub fn seized(tid: i32) -> Tracee {
        Tracee { tid, _this_thread: PhantomData }
    }

    /// Its number.
    pub fn tid(&self) -> i32 {
        self.tid
    }

    /// Asks for a stop, [`Stop::Interrupted`]. A system call that it waits in is interrupted, and made anew unless its
    /// registers are changed.
    pub fn interrupt(&self) -> io::Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0)
    }

    /// Changes the options of one that stands still.
    pub fn set_options(&self, options: Options) -> io::Result<()> {
        self.request(libc::PTRACE_SETOPTIONS, 0, options.bits())
    }

    /// Lets one that stands still go on, with a signal to be delivered or 0.
    pub fn run(&self, until: Until, signal: i32) -> io::Result<()> {
        let request = if until == Until::Syscall { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        self.request(request, 0, usize::try_from(signal).unwrap_or_default())
    }

    /// Leaves one in its [`Stop::Group`], but reports what comes next.
    pub fn listen(&self) -> io::Result<()> {
        self.request(libc::PTRACE_LISTEN, 0, 0)
    }

    /// Lets go of one that stands still: it runs on untraced.
    pub fn detach(self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, 0)
    }

    /// Waits until it stops or is gone, at most `limit`.
    pub fn wait(&self, limit: Duration) -> io::Result<Stop> {
        poll(self.tid, limit).map(|(_, stop)| stop)
    }

    /// The registers of one that stands still.
    pub fn registers(&self) -> io::Result<Registers> {
        // SAFETY: integers, of which all values are valid.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, (&raw mut registers).addr())?;
        Ok(registers)
    }

    /// Sets the registers of one that stands still.
    pub fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        self.request(libc::PTRACE_SETREGS, 0, (&raw const *registers).addr())
    }

    /// The system call that one which stands still is at the beginning or end of.
    pub fn syscall(&self) -> io::Result<Syscall> {
        // `struct ptrace_syscall_info`: op, arch, instruction and stack pointers, then a union.
        let mut info = [0_u64; 12];
        self.request(libc::PTRACE_GET_SYSCALL_INFO, size_of_val(&info), (&raw mut info).addr())?;
        let [head, _, _, number, a, b, c, d, e, f, ..] = info;
        Ok(match head.to_le_bytes()[0] {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                Syscall::Entry { arch: (head >> 32) as u32, number, arguments: [a, b, c, d, e, f] }
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => Syscall::Exit(number.cast_signed()),
            _ => Syscall::None,
        })
    }

    /// Copies from its memory; fails where not all of it is mapped and readable.
    pub fn read(&self, address: u64, to: &mut [u8]) -> io::Result<()> {
        let (local, remote) = (part(to.as_mut_ptr().addr(), to.len()), part(to_usize(address)?, to.len()));
        // SAFETY: `local` is `to`, exclusively borrowed; the kernel checks the other process's range.
        let done = unsafe { libc::process_vm_readv(self.tid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(done, to.len())
    }

    /// Copies to its memory; fails where not all of it is mapped and writable.
    pub fn write(&self, address: u64, from: &[u8]) -> io::Result<()> {
        let (local, remote) = (part(from.as_ptr().addr(), from.len()), part(to_usize(address)?, from.len()));
        // SAFETY: `local` is `from`, only read; the kernel checks the other process's range.
        let done = unsafe { libc::process_vm_writev(self.tid, &raw const local, 1, &raw const remote, 1, 0) };
        whole(done, from.len())
    }

    /// A request whose addresses, if it has any, are of objects that outlive the call and are as large as it takes.
    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        // SAFETY: only this module's functions call it, as said above; what it does to the tracee is no matter of
        // this process's memory.
        let done = unsafe { libc::ptrace(request, self.tid, address, data) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The command as a process that [`start`] can seize before it begins: a shell that waits for a line first. What it has as
/// standard input from then on `input` says, a redirection of the shell's.
pub fn gated(command: &Command, input: &str) -> Command {
    let mut gated = Command::new("/bin/sh");
    let wait = format!("read -r _ && exec \"$0\" \"$@\" {input}");
    gated.args(["-c", &wait]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => gated.env(key, value),
            None => gated.env_remove(key),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        gated.current_dir(dir);
    }
    gated
}

/// Starts a [`gated`] command, traced from its first instruction on.
pub fn start(gated: &mut Command, options: Options) -> io::Result<(Child, Tracee)> {
    let mut child = gated.stdin(Stdio::piped()).spawn()?;
    let tracee = Tracee::seize(child.id().cast_signed(), options)?;
    // Now it is watched, it may begin.
    child.stdin.take().map_or(Ok(()), |mut gate| gate.write_all(b"\n"))?;
    Ok((child, tracee))
}

/// Waits until any tracee of this thread stops or is gone, at most `limit`. Children that this thread started and that
/// ended are reaped by it too.
pub fn next(limit: Duration) -> io::Result<(i32, Stop)> {
    poll(-1, limit)
}

/// There is no wait with a deadline for a tracee, so: look, yield, and after a while sleep in between.
fn poll(tid: i32, limit: Duration) -> io::Result<(i32, Stop)> {
    const EAGER: Duration = Duration::from_micros(300);
    const NAP: Duration = Duration::from_micros(50);
    let begin = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG) };
        if pid > 0 {
            return Ok((pid, stop(pid, status)?));
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        match begin.elapsed() {
            past if past >= limit => return Err(io::ErrorKind::TimedOut.into()),
            past if past < EAGER => std::thread::yield_now(),
            _ => std::thread::sleep(NAP),
        }
    }
}

fn stop(pid: i32, status: i32) -> io::Result<Stop> {
    if libc::WIFEXITED(status) {
        return Ok(Stop::Exited(libc::WEXITSTATUS(status)));
    }
    if libc::WIFSIGNALED(status) {
        return Ok(Stop::Killed(libc::WTERMSIG(status)));
    }
    let signal = libc::WSTOPSIG(status);
    let message = || {
        let mut message = 0_u64;
        Tracee::seized(pid).request(libc::PTRACE_GETEVENTMSG, 0, (&raw mut message).addr())?;
        i32::try_from(message).map_err(io::Error::other)
    };
    Ok(match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => Stop::New(message()?),
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exiting(message()?),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        other => return Err(io::Error::other(format!("ptrace event {other} was not asked for"))),
    })
}

fn part(address: usize, len: usize) -> libc::iovec {
    libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: len }
}

fn to_usize(address: u64) -> io::Result<usize> {
    usize::try_from(address).map_err(io::Error::other)
}

fn whole(done: isize, len: usize) -> io::Result<()> {
    match usize::try_from(done) {
        Ok(done) if done == len => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A program that waits for its input.
    fn waiting() -> (Child, Tracee) {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // Its answer shows that it was executed, to the end.
        child.stdin.as_mut().unwrap().write_all(b".").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let options = Options { kill_with_tracer: true, exit: true, follow: true, exec: true, ..Options::default() };
        let tracee = Tracee::seize(child.id().cast_signed(), options).unwrap();
        (child, tracee)
    }

    #[test]
    fn a_seized_program_shows_its_calls_and_its_end() {
        let (mut child, tracee) = waiting();
        tracee.interrupt().unwrap();
        while tracee.wait(LIMIT).unwrap() != Stop::Interrupted {
            tracee.run(Until::Event, 0).unwrap();
        }
        tracee.run(Until::Syscall, 0).unwrap();
        drop(child.stdin.take());
        let mut last = Syscall::None;
        let end = loop {
            match tracee.wait(LIMIT).unwrap() {
                Stop::Syscall => last = tracee.syscall().unwrap(),
                end @ (Stop::Exited(_) | Stop::Killed(_)) => break end,
                Stop::Signal(signal) => {
                    tracee.run(Until::Syscall, signal).unwrap();
                    continue;
                }
                _ => {}
            }
            tracee.run(Until::Syscall, 0).unwrap();
        };
        assert_eq!(end, Stop::Exited(0));
        assert!(matches!(last, Syscall::Entry { number, .. } if number == libc::SYS_exit_group as u64), "{last:?}");
    }

    #[test]
    fn memory_is_read_and_written_and_what_is_not_mapped_is_an_error() {
        let (mut child, tracee) = waiting();
        tracee.interrupt().unwrap();
        assert_eq!(tracee.wait(LIMIT).unwrap(), Stop::Interrupted);
        let stack = tracee.registers().unwrap().rsp;
        tracee.write(stack - 4096, b"volt").unwrap();
        let mut back = [0; 4];
        tracee.read(stack - 4096, &mut back).unwrap();
        assert_eq!(&back, b"volt");
        assert!(tracee.read(8, &mut back).is_err() && tracee.write(8, &back).is_err());
        child.kill().unwrap();
        assert!(matches!(tracee.wait(LIMIT).unwrap(), Stop::Exiting(_) | Stop::Killed(libc::SIGKILL)));
    }

    #[test]
    fn a_command_is_traced_before_it_begins() {
        let mut command = Command::new("/bin/true");
        command.env("VOLT_TRACED", "1").current_dir("/");
        let options = Options { exec: true, kill_with_tracer: true, ..Options::default() };
        let (_child, tracee) = start(&mut gated(&command, "</dev/null"), options).unwrap();
        assert_eq!(tracee.wait(LIMIT).unwrap(), Stop::Exec);
        let of = |file: &str| std::fs::read(format!("/proc/{}/{file}", tracee.tid())).unwrap();
        assert_eq!(of("cmdline"), b"/bin/true\0");
        assert!(of("environ").split(|byte| *byte == 0).any(|value| value == b"VOLT_TRACED=1"));
        tracee.run(Until::Event, 0).unwrap();
        assert_eq!(tracee.wait(LIMIT).unwrap(), Stop::Exited(0));
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (mut child, tracee) = waiting();
        let error = tracee.wait(Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        child.kill().unwrap();
    }
}
