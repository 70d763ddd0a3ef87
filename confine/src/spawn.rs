//! Starts a program with exactly the fds it is given.
//!
//! Touches processes and the fds it was handed. The child gets an empty environment, a session of its own, default
//! signal handling, and no fd that was not given to it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::child::{Child, readable};
use crate::error::Error;

/// How long the kernel may take to execute the program.
pub const EXEC_DEADLINE: Duration = Duration::from_secs(10);

/// The steps that a child may report as failed, by their place in this list.
const STEPS: [&str; 6] = [
    "start a session",
    "bind its life to its parent's",
    "set up its standard streams",
    "hand over its fds",
    "close other fds",
    "execute it",
];

/// One past the last capability that a kernel may know: they are bits of 64.
const CAPABILITIES: libc::c_ulong = 64;

/// A program about to be started.
#[derive(Debug)]
#[must_use = "nothing is started before `spawn`"]
pub struct Spawn {
    program: PathBuf,
    /// The program itself, where its path cannot be reached.
    file: Option<OwnedFd>,
    args: Vec<Vec<u8>>,
    fds: Vec<OwnedFd>,
    null: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    die_with_parent: bool,
    isolated: bool,
}

impl Spawn {
    /// A program at a path; nothing is searched for.
    pub fn new(program: &Path) -> Spawn {
        Spawn {
            program: program.to_path_buf(),
            file: None,
            args: Vec::new(),
            fds: Vec::new(),
            null: None,
            stdout: None,
            stderr: None,
            die_with_parent: false,
            isolated: false,
        }
    }

    /// An open program (`O_PATH` is enough), started without any path: for whoever sees no file. It has to be static.
    /// `null` is an open `/dev/null`, `name` what errors and the program's own `argv[0]` say.
    pub fn from_fd(name: &Path, program: OwnedFd, null: OwnedFd) -> Spawn {
        Spawn { file: Some(program), null: Some(null), ..Spawn::new(name) }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Spawn {
        self.args.push(arg.as_ref().as_bytes().to_vec());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Spawn {
        for arg in args {
            self.arg(arg);
        }
        self
    }

    /// Hands an fd over, and says which number it will have in the child: 3, 4 and so on.
    pub fn fd(&mut self, fd: OwnedFd) -> RawFd {
        self.fds.push(fd);
        number(self.fds.len() + 2)
    }

    /// Standard output; without this `/dev/null`. Standard input always is.
    pub fn stdout(&mut self, fd: OwnedFd) -> &mut Spawn {
        self.stdout = Some(fd);
        self
    }

    /// Standard error; without this the caller's own.
    pub fn stderr(&mut self, fd: OwnedFd) -> &mut Spawn {
        self.stderr = Some(fd);
        self
    }

    /// Has the kernel kill the child when the *thread* that calls [`spawn`](Spawn::spawn) ends: call it from one that
    /// lives as long as the process.
    pub fn die_with_parent(&mut self) -> &mut Spawn {
        self.die_with_parent = true;
        self
    }

    /// Starts it as the first process of a pid namespace, in a user namespace in which no id is mapped and with no
    /// capability in any set: it can name no other process, nor can what it may have started outlive it. Needs no right.
    pub fn isolated(&mut self) -> &mut Spawn {
        self.isolated = true;
        self
    }

    /// Starts it. Returns once the program was executed.
    ///
    /// # Errors
    ///
    /// Where the program cannot be executed, an argument holds a NUL byte, or fds or processes run out.
    pub fn spawn(self) -> Result<Child, Error> {
        let failed = |step, errno: Errno| {
            let is_there = self.file.is_some() || self.program.exists();
            Error::Spawn { program: self.program.clone(), step, remedy: remedy(errno, is_there), source: errno.into() }
        };
        let text = |bytes: &[u8]| {
            let source = io::ErrorKind::InvalidInput.into();
            let step = "pass an argument that holds a NUL byte";
            let remedy = "leave that byte out";
            CString::new(bytes).map_err(|_| Error::Spawn { program: self.program.clone(), step, remedy, source })
        };

        // The child's numbers are 3.. for its fds, one for the report and one for the program. All that is dealt out is
        // first copied to above those, so no copy in the child can land on one that is still to be dealt.
        let report_at = number(self.fds.len() + 3);
        let above = |fd: BorrowedFd<'_>| {
            fcntl_dupfd_cloexec(fd, report_at.saturating_add(2)).map_err(|errno| failed("prepare its fds", errno))
        };
        let null = match &self.null {
            Some(null) => above(null.as_fd())?,
            None => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| failed("open /dev/null", errno))?,
        };
        let file = self.file.as_ref().map(|file| above(file.as_fd())).transpose()?;
        let stdin = above(null.as_fd())?;
        let stdout = above(self.stdout.as_ref().unwrap_or(&null).as_fd())?;
        // SAFETY: 2 is open for the life of a Rust program; it is only copied.
        let own_stderr = unsafe { BorrowedFd::borrow_raw(2) };
        let stderr = above(self.stderr.as_ref().map_or(own_stderr, |fd| fd.as_fd()))?;
        let fds = self.fds.iter().map(|fd| above(fd.as_fd())).collect::<Result<Vec<_>, _>>()?;
        let (answer, report) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed("make a pipe", errno))?;
        // Each once only: the parent's end closes with the parent, and the child's when the program was executed.
        let raised = |fd: OwnedFd| above(fd.as_fd());
        let (answer, report) = (raised(answer)?, raised(report)?);
        let program = text(self.program.as_os_str().as_bytes())?;
        let args = self.args.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
        let argv = std::iter::once(&program).chain(&args).map(|arg| arg.as_ptr()).chain([ptr::null()]).collect();
        let plan = Plan {
            program: &program,
            file: file.as_ref().map(AsRawFd::as_raw_fd),
            argv,
            streams: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
            fds: fds.iter().map(AsRawFd::as_raw_fd).collect(),
            answer: answer.as_raw_fd(),
            report: report.as_raw_fd(),
            report_at,
            die_with_parent: self.die_with_parent,
            isolated: self.isolated,
        };
        let child = plan.fork().map_err(|errno| failed("fork", errno))?;
        drop(report);

        if !readable(answer.as_fd(), EXEC_DEADLINE).map_err(|errno| failed("wait for it", errno))? {
            return Err(failed("execute it in time", Errno::TIMEDOUT));
        }
        let mut message = [0_u8; 8];
        match retry_on_intr(|| rustix::io::read(&answer, &mut message)) {
            // The program was executed, which closed the pipe.
            Ok(0) => Ok(child),
            Ok(_) => {
                let [a, b, c, d, step, ..] = message;
                let errno = Errno::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]));
                Err(failed(STEPS.get(usize::from(step)).copied().unwrap_or("start it"), errno))
            }
            Err(errno) => Err(failed("hear from it", errno)),
        }
    }
}

/// What to do where a program could not be started. The kernel says that there is no such file also of one that is there, and
/// names an interpreter which is not.
fn remedy(errno: Errno, is_there: bool) -> &'static str {
    match errno {
        Errno::NOENT if is_there => {
            "the file is there, and what it names as its interpreter (a dynamic linker, or behind #!) is not: install it, or Volt's own, static program"
        }
        Errno::NOENT => "check that the file is there",
        Errno::NOEXEC => "it is no program for this machine: install Volt's own",
        Errno::ACCESS | Errno::PERM => "make it executable, on a file system that is not mounted noexec",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files",
        Errno::AGAIN => "raise the limit of processes",
        Errno::NOMEM => "free some memory",
        Errno::TIMEDOUT => "the host is overloaded, try again",
        _ => "see the kernel's log (dmesg)",
    }
}

/// A small count as an fd number.
fn number(count: usize) -> RawFd {
    RawFd::try_from(count).unwrap_or(RawFd::MAX)
}

/// All that the child needs, laid out before the fork: after it, it may not allocate.
struct Plan<'a> {
    program: &'a CString,
    file: Option<RawFd>,
    argv: Vec<*const libc::c_char>,
    streams: [RawFd; 3],
    fds: Vec<RawFd>,
    /// The parent's end of the pipe, and the child's.
    answer: RawFd,
    report: RawFd,
    report_at: RawFd,
    die_with_parent: bool,
    isolated: bool,
}

impl Plan<'_> {
    fn fork(&self) -> Result<Child, Errno> {
        // The caller's signal handlers must not run in the child, so signals wait until it has none.
        // SAFETY: both sets are initialised by the calls that get their addresses.
        let before = unsafe {
            let (mut all, mut before) = std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            before
        };
        let namespaces = if self.isolated { libc::CLONE_NEWUSER | libc::CLONE_NEWPID } else { 0 };
        // SAFETY: the child runs `become_program` only, which uses nothing of the C library's state and never returns.
        let forked = unsafe { Child::fork(namespaces) };
        if matches!(forked, Ok(None)) {
            // SAFETY: this is the child of a fork, and the plan's pointers are valid in its copy of the memory.
            unsafe { self.become_program() }
        }
        // SAFETY: `before` was filled in above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
        forked.and_then(|child| child.ok_or(Errno::AGAIN))
    }

    /// Turns the child of a fork into the program, or reports the step that failed.
    ///
    /// # Safety
    ///
    /// To be called in the child of a fork only. Uses async-signal-safe calls only; `argv` ends with a null.
    unsafe fn become_program(&self) -> ! {
        // SAFETY: the calls take numbers and a message that outlives them.
        unsafe {
            libc::dup3(self.report, self.report_at, libc::O_CLOEXEC);
            let step = self.execute();
            let [a, b, c, d] = (*libc::__errno_location()).to_ne_bytes();
            let message = [a, b, c, d, step, 0, 0, 0];
            libc::write(self.report_at, message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    }

    /// Returns only if a step failed: its place in [`STEPS`], and `errno`.
    ///
    /// # Safety
    ///
    /// As [`become_program`](Plan::become_program).
    unsafe fn execute(&self) -> u8 {
        // SAFETY: the calls take numbers, a set that the call before initialised, and the plan's pointers, which end
        // as execve asks for.
        unsafe {
            // To the kernel directly, as glibc keeps two signals to itself: a zeroed action is the default one.
            let (default, old) = ([0_u64; 4], ptr::null_mut::<libc::c_void>());
            for signal in 1..=64 {
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8); // Not for KILL and STOP.
            }
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut none);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            if libc::setsid() < 0 {
                return 0;
            }
            if self.die_with_parent {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
                    return 1;
                }
                // A parent that ended before the request took effect has closed the other end of the pipe. (Its number,
                // seen from a pid namespace of one's own, would not tell.)
                libc::close(self.answer);
                let mut parent = libc::pollfd { fd: self.report_at, events: 0, revents: 0 };
                if libc::poll(&raw mut parent, 1, 0) != 0 {
                    libc::_exit(127);
                }
            }
            if self.isolated {
                // A new user namespace begins with a full bounding set; EINVAL is past the kernel's last capability.
                // (Of the other sets, an exec by a user that is not mapped leaves nothing.)
                for capability in 0..CAPABILITIES {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                }
            }
            let mut target: RawFd = 0;
            for (group, step) in [(self.streams.as_slice(), 2), (self.fds.as_slice(), 3)] {
                for source in group {
                    if libc::dup2(*source, target) < 0 {
                        return step;
                    }
                    target += 1;
                }
            }
            let mut rest = self.report_at.unsigned_abs().wrapping_add(1);
            if let Some(file) = self.file {
                // Beside the report, and as that closed by the exec.
                if libc::dup3(file, rest.cast_signed(), libc::O_CLOEXEC) < 0 {
                    return 4;
                }
                rest = rest.wrapping_add(1);
            }
            if libc::syscall(libc::SYS_close_range, rest, libc::c_uint::MAX, 0) < 0 {
                return 4;
            }
            let environment: [*const libc::c_char; 1] = [ptr::null()];
            match self.file {
                None => libc::execve(self.program.as_ptr(), self.argv.as_ptr(), environment.as_ptr()),
                Some(_) => {
                    let at = self.report_at.wrapping_add(1);
                    let (argv, environment) = (self.argv.as_ptr(), environment.as_ptr());
                    libc::syscall(libc::SYS_execveat, at, c"".as_ptr(), argv, environment, libc::AT_EMPTY_PATH) as i32
                }
            };
            5
        }
    }
}
