//! Bench `confine`: what confinement costs a program at its start, on this machine.
//!
//! From a program's exec to its answer to the first question, which a peer put while the program was not yet there: for a
//! service and the core that is Cap'n Proto's Bootstrap, for a backend vhost-user's GET_FEATURES. No question is read before
//! phase 2, so this is exec → phase 2 as a peer sees it, with what a program does next (ipamd opens its database), and with
//! nothing in the programs for the purpose.
//!
//! *Without* confinement the same program runs under a filter that has the kernel answer as if it had neither Landlock nor
//! seccomp (ENOSYS), and that skips the calls which cut capabilities, limits and descriptors (0, nothing done). What is
//! left of `confine` then is a few microseconds of its own code, counted on the side without.

use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::{
    fs::{MemfdFlags, SealFlags, memfd_create},
    io::{FdFlags, fcntl_setfd},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    time::{ClockId, clock_gettime},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use schema::programs::{self, Process, Starter};
use testkit::guest;

use crate::bench::{Row, row};

/// Starts of each program on each side, in turn, so that other work on the machine burdens both alike.
const RUNS: usize = 101;
/// Long enough for any machine that is worth measuring on.
const ANSWER: Duration = Duration::from_secs(10);

/// A Cap'n Proto message, Bootstrap with question id 0 (rpc.capnp), in one segment of five words.
const BOOTSTRAP: [u8; 48] = {
    let mut message = [0; 48];
    message[4] = 5; // words
    message[12] = 1; // Message: one word of data, one pointer
    message[14] = 1;
    message[16] = 8; // Message.bootstrap
    message[28] = 1; // Bootstrap: one word of data, one pointer
    message[30] = 1;
    message
};

/// A vhost-user message: GET_FEATURES, version 1, no payload.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// A program that is about to be started.
struct Start {
    program: &'static str,
    arguments: Vec<String>,
    /// What it inherits, under the numbers that these have here.
    fds: Vec<OwnedFd>,
    /// Where its answer comes.
    peer: UnixStream,
}

/// Takes the figures, in a network namespace of this thread's own.
pub fn measure(programs: &Path) -> Result<Vec<Row>> {
    let dir = std::env::temp_dir().join(format!("volt-bench-confine-{}", std::process::id()));
    let rows = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: it takes the network from this thread alone, whose descriptors stay as they are.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .context("Cannot make a network namespace; run as root")?;
            fs::create_dir_all(&dir)?;
            all(programs, &dir)
        });
        thread.join().unwrap_or_else(|_| bail!("The measuring thread panicked"))
    });
    let _ = fs::remove_dir_all(&dir);
    rows
}

fn all(programs: &Path, dir: &Path) -> Result<Vec<Row>> {
    let off = off()?;
    let kernel = kernel()?;
    let mut rows = Vec::new();
    let confined =
        programs::ALL.into_iter().filter(|process| matches!(process.started_by, Starter::Launcher | Starter::Keeper));
    for process in confined {
        let name = process.program;
        let prepare = || match *process {
            programs::VMM_CORE => core(&kernel),
            programs::BLK_BACKEND => disk(dir),
            programs::NET_BACKEND => card(),
            _ => service(process, dir),
        };
        let time = |off| -> Result<f64> {
            let time = prepare()?.time(programs, off);
            Ok(time.with_context(|| format!("Cannot time the start of {name}"))?.as_secs_f64() * 1e3)
        };
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            with.push(time(None)?);
            without.push(time(Some(&off))?);
        }
        // Of neighbours, as what else the machine does changes over time.
        let cost = with.iter().zip(&without).map(|(with, without)| with - without).collect();
        let [cost, with, without] = [cost, with, without].map(median);
        rows.push(row(format!("{name}: exec to its first answer"), "ms", Some(with), Some((without, "unconfined"))));
        rows.push(row(format!("{name}: cost of confinement"), "ms", Some(cost), None));
    }
    Ok(rows)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Start {
    /// From exec to the first byte of the answer; the program is then killed.
    fn time(self, programs: &Path, off: Option<&[BpfProgram; 2]>) -> Result<Duration> {
        let (mut stamp, stamping) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map(|(read, write)| (fs::File::from(read), write))?;
        let numbers: Vec<RawFd> = self.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let off = off.cloned();
        let before_exec = move || {
            for number in &numbers {
                // SAFETY: `self.fds` of the parent is open under this number in its child as well.
                fcntl_setfd(unsafe { BorrowedFd::borrow_raw(*number) }, FdFlags::empty())?;
            }
            for filter in off.iter().flatten() {
                seccompiler::apply_filter(filter).map_err(|_| std::io::ErrorKind::Unsupported)?;
            }
            rustix::io::write(&stamping, &(now().as_nanos() as u64).to_ne_bytes())?;
            Ok(())
        };
        let mut command = Command::new(programs.join(self.program));
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: between fork and exec it makes system calls only, and neither allocates nor locks.
        unsafe { command.pre_exec(before_exec) };
        let mut child = command.spawn()?;
        drop(self.fds);
        self.peer.set_read_timeout(Some(ANSWER))?;
        let answered = (&self.peer).read(&mut [0; 1]);
        let end = now();
        child.kill()?;
        let said = child.wait_with_output()?;
        if !answered.as_ref().is_ok_and(|count| *count == 1) {
            bail!("No answer came: {answered:?}, {}, {}", said.status, String::from_utf8_lossy(&said.stderr).trim());
        }
        let mut start = [0; 8];
        stamp.read_exact(&mut start)?;
        Ok(end.saturating_sub(Duration::from_nanos(u64::from_ne_bytes(start))))
    }
}

/// CLOCK_MONOTONIC, the same in every process.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// What takes the kernel's part in confinement away: the calls that are skipped, and those that the kernel does not have.
fn off() -> Result<[BpfProgram; 2]> {
    let when = |index, length, operator, value| -> Result<SeccompRule> {
        Ok(SeccompRule::new(vec![SeccompCondition::new(index, length, operator, value)?])?)
    };
    let options = [
        libc::PR_CAPBSET_READ,
        libc::PR_CAPBSET_DROP,
        libc::PR_CAP_AMBIENT,
        libc::PR_SET_DUMPABLE,
        libc::PR_SET_NO_NEW_PRIVS,
    ];
    let options = options.iter().map(|option| when(0, Dword, SeccompCmpOp::Eq, option.cast_unsigned().into()));
    let skipped = [
        (libc::SYS_prctl, options.collect::<Result<_>>()?),
        (libc::SYS_capset, vec![]),
        (libc::SYS_close_range, vec![]),
        // With new limits; reading them stays.
        (libc::SYS_prlimit64, vec![when(2, Qword, SeccompCmpOp::Ne, 0)?]),
    ];
    let lacking = [(libc::SYS_landlock_create_ruleset, vec![]), (libc::SYS_seccomp, vec![])];
    let build = |rules: Vec<(i64, Vec<SeccompRule>)>, errno: i32| -> Result<BpfProgram> {
        let answer = SeccompAction::Errno(errno.cast_unsigned());
        let arch = std::env::consts::ARCH.try_into()?;
        Ok(SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, answer, arch)?.try_into()?)
    };
    // The one that takes seccomp away comes last, as it would not let another follow.
    Ok([build(skipped.into(), 0)?, build(lacking.into(), libc::ENOSYS)?])
}

/// A service whose sockets listen before it runs, and a client that waits for it.
fn service(service: &Process, dir: &Path) -> Result<Start> {
    let program = service.program;
    let paths: [PathBuf; 2] = ["rpc", "lane"].map(|name| dir.join(format!("{program}.{name}")));
    let [rpc, lane] = &paths;
    paths.iter().for_each(|path| drop(fs::remove_file(path)));
    let listener = UnixListener::bind(rpc)?;
    let lane_listener =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&lane_listener, &SocketAddrUnix::new(lane)?)?;
    rustix::net::listen(&lane_listener, 1)?;
    let mut peer = UnixStream::connect(rpc)?;
    peer.write_all(&BOOTSTRAP)?;
    let fds = vec![OwnedFd::from(listener), lane_listener];
    let mut arguments = flags(&["--listen-fd", "--lane-fd"], &fds);
    if *service != programs::NETMGR {
        arguments.extend(["--state-dir".into(), dir.join(program).display().to_string()]);
    }
    Ok(Start { program, arguments, fds, peer })
}

fn disk(dir: &Path) -> Result<Start> {
    let image = dir.join("disk");
    let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(&image)?;
    file.set_len(1 << 20)?;
    backend(programs::BLK_BACKEND.program, vec![], "--blk-fd", file.into())
}

fn card() -> Result<Start> {
    let arguments = vec!["--mac".to_owned(), "52:54:00:00:00:01".to_owned()];
    backend(programs::NET_BACKEND.program, arguments, "--tap-fd", tap()?)
}

fn backend(program: &'static str, mut arguments: Vec<String>, flag: &str, resource: OwnedFd) -> Result<Start> {
    let (mut peer, theirs) = UnixStream::pair()?;
    peer.write_all(&GET_FEATURES)?;
    let fds = vec![theirs.into(), resource];
    arguments.extend(flags(&["--fd", flag], &fds));
    Ok(Start { program, arguments, fds, peer })
}

fn core(kernel: &OwnedFd) -> Result<Start> {
    let (mut peer, control) = UnixStream::pair()?;
    peer.write_all(&BOOTSTRAP)?;
    let console = UnixStream::pair()?.1;
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").context("Cannot open /dev/kvm")?;
    let fds = vec![control.into(), console.into(), kvm.into(), kernel.try_clone()?];
    let mut arguments = flags(&["--control-fd", "--console-fd", "--kvm-fd", "--kernel-fd"], &fds);
    arguments.extend(["--memory", "268435456", "--vcpus", "1", "--cmdline", ""].map(str::to_owned));
    Ok(Start { program: programs::VMM_CORE.program, arguments, fds, peer })
}

/// Each flag with the number of its descriptor.
fn flags(flags: &[&str], fds: &[OwnedFd]) -> Vec<String> {
    flags.iter().zip(fds).flat_map(|(flag, fd)| [(*flag).to_owned(), fd.as_raw_fd().to_string()]).collect()
}

/// The smallest kernel that the core takes: one HLT.
fn kernel() -> Result<OwnedFd> {
    let file = fs::File::from(memfd_create("kernel", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    (&file).write_all(&guest::elf(&[0xf4], 0))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(file.as_fd(), seals)?;
    Ok(file.into())
}

/// A TAP in this thread's network namespace, which goes with its descriptors.
fn tap() -> Result<OwnedFd> {
    let tap = fs::File::options().read(true).write(true).open("/dev/net/tun").context("Cannot open /dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq: integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives through the call.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made != 0 {
        return Err(std::io::Error::last_os_error()).context("Cannot make a TAP");
    }
    Ok(tap.into())
}
