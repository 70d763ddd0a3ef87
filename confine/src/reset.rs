//! A start that inherits nothing: for a process that serves others, or outlives whoever started it, and belongs to the host.
//!
//! fork and exec hand on far more than a program's arguments, and each of it would make all that a service does depend on whoever
//! happened to come first. This is the list, in [`ATTRIBUTES`]. The rest is dealt with where a program is started
//! ([`Spawn`](crate::Spawn): descriptors, environment, what signals do and which are blocked, the session, and with it the
//! terminal, the process group and the scheduler's autogroup; alternate stacks, timers, a parent's death signal, pending
//! signals and the children's reaper are not handed on), or where it confines itself ([`Sandbox`](crate::Sandbox): capabilities,
//! dumpability).
//!
//! What cannot be undone stays: seccomp filters, `no_new_privs`, Landlock, an LSM's profile, the bounding set, memory that may never
//! become executable, speculation controls, core scheduling, resctrl groups, and the reaper above that was meant for the caller's
//! orphans. So do namespaces and the root directory on purpose: they say which network, and which paths, are meant.
//!
//! Touches the calling process, and, as root, the cgroup of services.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, chdir, geteuid, getrlimit, setpriority_process, setrlimit};

use crate::cgroup;

/// What it is called, and how it is set anew.
type Attribute = (&'static str, fn() -> io::Result<()>);

/// What a process sets anew, in this order.
const ATTRIBUTES: [Attribute; 21] = [
    // First: a set of processors depends on it.
    ("cgroups", cgroups),
    ("processors", processors),
    ("scheduling", scheduling),
    ("bounds of the processors' speed", speed),
    ("I/O priority", io_priority),
    ("where memory lies", memory_policy),
    ("timers' slack", || prctl(libc::PR_SET_TIMERSLACK, 50_000)),
    ("resource limits", limits),
    ("out-of-memory score", oom_score),
    ("what signals do", signals),
    ("personality", personality),
    ("user and groups", identity),
    ("what a change of user does", || unless_default(libc::PR_GET_SECUREBITS, libc::PR_SET_SECUREBITS)),
    ("keyrings", keyrings),
    ("whether there are huge pages", || prctl(libc::PR_SET_THP_DISABLE, 0)),
    ("whether memory is merged with others'", || unless_default(PR_GET_MEMORY_MERGE, PR_SET_MEMORY_MERGE)),
    ("how memory is taken", || unless_default(PR_GET_IO_FLUSHER, PR_SET_IO_FLUSHER)),
    ("what broken memory does", || prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_CLEAR)),
    ("what a dump holds", || write_if_there("coredump_filter", "0x33")),
    ("who logged in", login),
    ("directory", || Ok(chdir("/")?)),
];

/// Sets anew, as far as this user may, what the calling process was given by whoever started it: as if the host had. Gives what
/// could not be, and why. To be called while there is one thread.
pub fn reset_inherited() -> Vec<String> {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let failed = ATTRIBUTES.into_iter().filter_map(|(what, set)| Some((what, set().err()?)));
    failed.map(|(what, why)| format!("{what} ({why})")).collect()
}

/// Not in libc yet (linux/prctl.h).
const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;
const PR_SET_MEMORY_MERGE: libc::c_int = 67;
const PR_GET_MEMORY_MERGE: libc::c_int = 68;

fn cgroups() -> io::Result<()> {
    if !geteuid().is_root() {
        return Err(io::Error::other("needs root"));
    }
    cgroup::enter_services()
}

/// As many as there are: the kernel leaves out those that there are not.
fn processors() -> io::Result<()> {
    let all = [u8::MAX; 1024];
    // SAFETY: the kernel reads the set, which outlives the call.
    done(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) })
}

/// sched_setattr(2).
#[repr(C)]
#[derive(Default)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

impl Scheduling {
    fn set(self) -> io::Result<()> {
        let size = u32::try_from(size_of::<Scheduling>()).unwrap_or(0);
        let attributes = Scheduling { size, ..self };
        // SAFETY: the kernel reads as many bytes as `size` says, of a structure that outlives the call.
        done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
    }
}

/// The ordinary class, without slices or a reset of its own, and not nice.
fn scheduling() -> io::Result<()> {
    Scheduling::default().set()?;
    // A process that is nicer than that already: sched_setattr may have refused nothing.
    Ok(setpriority_process(None, 0)?)
}

/// A kernel that has no such bounds says so.
fn speed() -> io::Result<()> {
    const KEEP: u64 = 0x08 | 0x10; // SCHED_FLAG_KEEP_ALL
    const BOUNDS: u64 = 0x20 | 0x40; // SCHED_FLAG_UTIL_CLAMP
    // The largest number takes a bound away.
    let none = Scheduling { flags: KEEP | BOUNDS, util_min: u32::MAX, util_max: u32::MAX, ..Scheduling::default() };
    if_there(none.set())
}

fn io_priority() -> io::Result<()> {
    const PROCESS: libc::c_int = 1; // IOPRIO_WHO_PROCESS
    // SAFETY: takes numbers.
    done(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, 0) })
}

fn memory_policy() -> io::Result<()> {
    // SAFETY: the default policy (0) takes no set of nodes.
    if_there(done(unsafe { libc::syscall(libc::SYS_set_mempolicy, 0, std::ptr::null::<libc::c_ulong>(), 0) }))
}

/// What the kernel gives the first process, but for the size of dumps and the number of open files, which are what distributions
/// have. The programs lower them from there.
fn limits() -> io::Result<()> {
    let most = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let files = most.unwrap_or(1 << 19).min(1 << 19);
    let (none, all) = (Some(0), None);
    let mut failed = Ok(());
    for (resource, current, maximum) in [
        (Resource::Cpu, all, all),
        (Resource::Fsize, all, all),
        (Resource::Data, all, all),
        (Resource::Stack, Some(8 << 20), all),
        (Resource::Core, none, all),
        (Resource::Rss, all, all),
        (Resource::Nproc, all, all),
        (Resource::Nofile, Some(1024), Some(files)),
        (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
        (Resource::As, all, all),
        (Resource::Locks, all, all),
        (Resource::Sigpending, Some(1 << 16), Some(1 << 16)),
        (Resource::Msgqueue, Some(800 << 10), Some(800 << 10)),
        (Resource::Nice, none, none),
        (Resource::Rtprio, none, none),
        (Resource::Rttime, all, all),
    ] {
        let wanted = Rlimit { current, maximum };
        if let Err(errno) = setrlimit(resource, wanted) {
            // Who may not raise it goes as far as it is.
            let hard = getrlimit(resource).maximum;
            let least = |value: Option<u64>| [value, hard].into_iter().flatten().min();
            let _refused = setrlimit(resource, Rlimit { current: least(current), maximum: least(maximum) });
            failed = Err(errno.into());
        }
    }
    failed
}

/// Before VMs, which have more, and before programs that nothing depends on; who may not have that is like any other program.
fn oom_score() -> io::Result<()> {
    let write = |score: &str| fs::write("/proc/self/oom_score_adj", score);
    write("-500").or_else(|error| {
        let like_others = write("0");
        if geteuid().is_root() { Err(error) } else { like_others }
    })
}

/// None is ignored but those that Rust's programs, and ours, ignore themselves: writing to nobody, and past a file's limit.
fn signals() -> io::Result<()> {
    const IGNORED: u64 = 1; // SIG_IGN
    for signal in (1..=64).filter(|signal| ![libc::SIGPIPE, libc::SIGXFSZ].contains(signal)) {
        let (mut now, default) = ([0_u64; 4], [0_u64; 4]);
        // To the kernel directly, as the C library keeps two signals to itself.
        // SAFETY: the kernel writes an action of four words, and reads one; both outlive the calls.
        unsafe {
            let (none, now) = (std::ptr::null_mut::<u64>(), now.as_mut_ptr());
            done(libc::syscall(libc::SYS_rt_sigaction, signal, none, now, 8))?;
            if *now == IGNORED {
                done(libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8))?;
            }
        }
    }
    Ok(())
}

fn personality() -> io::Result<()> {
    // SAFETY: takes a number. What is mapped already stays as it is; what is executed next is not.
    if unsafe { libc::personality(0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Root's groups may be whoever's who became root; a plain user's are that user's.
fn identity() -> io::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// A session keyring of its own, and no other place for what the kernel is asked for.
fn keyrings() -> io::Result<()> {
    const JOIN_SESSION: libc::c_int = 1; // KEYCTL_JOIN_SESSION_KEYRING
    const SET_DEFAULT: libc::c_int = 14; // KEYCTL_SET_REQKEY_KEYRING
    // SAFETY: without a name it makes one that has none; the rest are numbers.
    let (joined, set) = unsafe {
        let joined = libc::syscall(libc::SYS_keyctl, JOIN_SESSION, std::ptr::null::<libc::c_char>());
        let joined = if_there(done(joined));
        (joined, if_there(done(libc::syscall(libc::SYS_keyctl, SET_DEFAULT, 0))))
    };
    joined.and(set)
}

/// The audit user: whoever logged in, and started this, need not have asked for what it does.
fn login() -> io::Result<()> {
    const NOBODY: &str = "4294967295";
    match fs::read_to_string("/proc/self/loginuid") {
        Ok(user) if user.trim() != NOBODY => write_if_there("loginuid", NOBODY),
        _ => Ok(()),
    }
}

fn write_if_there(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/self").join(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

fn prctl(option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let value = libc::c_ulong::try_from(value).unwrap_or(0);
    // SAFETY: these options take numbers.
    done(unsafe { libc::prctl(option, value, 0_usize, 0_usize, 0_usize) }.into())
}

/// Sets to zero, which may take a right, what is not.
fn unless_default(get: libc::c_int, set: libc::c_int) -> io::Result<()> {
    // SAFETY: these options take numbers.
    let now = unsafe { libc::prctl(get, 0_usize, 0_usize, 0_usize, 0_usize) };
    if now > 0 { prctl(set, 0) } else { Ok(()) }
}

fn done(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a kernel does not have it cannot have handed on.
fn if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
        other => other,
    }
}
