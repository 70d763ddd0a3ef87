//! The process that starts and reaps a VM's programs, so that the supervisor, which talks to them and to others, need not
//! be able to.
//!
//! Forked from `volt run` in its wide phase, it becomes the VM's user, leaves for the VM's namespaces with an empty root, and
//! may then execute Volt's device programs, which it has open, and nothing else. Each starts as the first process of a
//! pid namespace. It ends with its supervisor, and what it started ends with it. It reads nothing but packets of its
//! supervisor's: one a request, one an answer.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitStatus,
    time::Duration,
};

use confine::{Cgroup, Child, Limit, Policy, Root, Sandbox, Spawn, User};
use ipc::{Code, Fault, chain};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::Signal,
};

use crate::{filters, paths::Paths, say};

/// The programs that a launcher starts, and how requests name them.
const PROGRAMS: [&str; 3] = ["vmm-core", "vhost-blk-backend", "vhost-net-backend"];
/// Bytes of a request or an answer: a kernel's command line and as much again.
const PACKET: usize = 16 << 10;
/// Descriptors of a request: those of a core with all its devices.
const FDS: usize = 64;
/// How long an answer may take: an exec on a busy host.
const DEADLINE: Duration = Duration::from_secs(15);
/// First byte of a request to start a program, and of one that asks how a process ended.
const START: u8 = b's';
const WAIT: u8 = b'w';
/// First byte of an answer: done, still running, or refused for the reason that follows.
const DONE: u8 = b'd';
const RUNS: u8 = b'r';
const REFUSED: u8 = b'e';
/// What the VM's processes are sacrificed by when memory runs out, before services and other programs (proc(5)).
const OOM_SCORE_ADJ: &str = "500";

/// Whom and what the launcher is to be.
pub struct Role<'a> {
    pub paths: &'a Paths,
    pub policy: Policy,
    /// Whom to become; as a plain user one stays who one is.
    pub user: Option<User>,
    pub cgroup: Option<&'a Cgroup>,
    /// Most processes and threads of the VM.
    pub processes: u64,
}

/// The supervisor's end of its launcher, which ends when this is dropped.
pub struct Launcher {
    socket: OwnedFd,
}

impl AsFd for Launcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A program to be started: descriptors are numbered in the order in which they are given, from 3 on.
pub struct Request {
    program: &'static str,
    text: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// A process of the VM. Dropped, it is killed.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Request {
    /// One of the VM's programs.
    pub fn new(program: &'static str) -> Request {
        Request { program, text: Vec::new(), fds: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<str>) -> &mut Request {
        self.text.extend_from_slice(arg.as_ref().as_bytes());
        self.text.push(0);
        self
    }

    /// Hands over a descriptor, with the argument `flag` before its number.
    pub fn fd(&mut self, flag: &str, fd: OwnedFd) -> &mut Request {
        let number = self.give(fd);
        self.arg(flag).arg(number.to_string())
    }

    /// Hands over a descriptor, and says which number it will have.
    pub fn give(&mut self, fd: OwnedFd) -> usize {
        self.fds.push(fd);
        self.fds.len() + 2
    }
}

impl Launcher {
    /// Starts the launcher. Must run while this process has one thread.
    pub fn start(role: &Role<'_>) -> Result<Launcher, Fault> {
        let failed = |why: String| {
            Fault::new(Code::Unavailable, "start the launcher of the VM's programs", why, "See what it said above")
        };
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| failed(chain(&e)))?;
        // SAFETY: this process has one thread here (the caller's duty, which `confine` checks again in the child), so the
        // child may use everything that the parent could.
        match unsafe { libc::fork() } {
            -1 => Err(failed(io::Error::last_os_error().to_string())),
            0 => {
                drop(socket);
                let status = become_launcher(role, &theirs).and_then(|programs| serve(&theirs, &programs));
                confine::exit(i32::from(status.map_err(say).is_err()))
            }
            _ => Ok(Launcher { socket }),
        }
    }

    /// Starts a program. Returns once it was executed.
    pub fn launch(&self, request: Request) -> Result<Process, Fault> {
        let program = request.program;
        let failed = |why: String| {
            let remedy = "See whether Volt's programs are all in one folder, and what was said above";
            Fault::new(Code::Unavailable, format!("start {program}"), why, remedy)
        };
        let place = PROGRAMS.iter().position(|name| *name == program).and_then(|place| u8::try_from(place).ok());
        let place = place.ok_or_else(|| failed("it is no program of a VM".into()))?;
        let mut packet = vec![START, place];
        packet.extend_from_slice(&request.text);
        let fds: Vec<BorrowedFd<'_>> = request.fds.iter().map(AsFd::as_fd).collect();
        let (answer, fds) = self.ask(&packet, &fds).map_err(&failed)?;
        match (answer.split_first(), fds.into_iter().next()) {
            (Some((&DONE, number)), Some(pidfd)) => match <[u8; 4]>::try_from(number) {
                Ok(number) => Ok(Process { pid: u32::from_le_bytes(number), pidfd, status: None }),
                Err(_) => Err(failed("the launcher's answer is no answer".into())),
            },
            (Some((&REFUSED, why)), _) => Err(failed(String::from_utf8_lossy(why).into_owned())),
            _ => Err(failed("the launcher's answer is no answer".into())),
        }
    }

    /// How a process ended, if it has.
    pub fn status(&self, process: &mut Process) -> Option<ExitStatus> {
        if process.status.is_none() {
            let mut packet = vec![WAIT];
            packet.extend_from_slice(&process.pid.to_le_bytes());
            let (answer, _) = self.ask(&packet, &[]).ok()?;
            process.status = match answer.split_first() {
                Some((&DONE, raw)) => {
                    let raw = i32::from_le_bytes(<[u8; 4]>::try_from(raw).ok()?);
                    Some(std::os::unix::process::ExitStatusExt::from_raw(raw))
                }
                _ => None,
            };
        }
        process.status
    }

    fn ask(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(Vec<u8>, Vec<OwnedFd>), String> {
        if packet.len() > PACKET || fds.len() > FDS {
            return Err(format!("its arguments are over {PACKET} bytes, or its descriptors over {FDS}"));
        }
        send(&self.socket, packet, fds).map_err(|e| ended(e).to_string())?;
        let limit = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
        match rustix::event::poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return Err(format!("the launcher did not answer within {} s", DEADLINE.as_secs())),
            Ok(_) => {}
            Err(e) => return Err(chain(&e)),
        }
        match receive(&self.socket, RecvFlags::DONTWAIT) {
            Ok((answer, fds)) if !answer.is_empty() => Ok((answer, fds)),
            Ok(_) => Err("the launcher has ended".into()),
            Err(e) => Err(ended(e).to_string()),
        }
    }
}

fn ended(error: Errno) -> io::Error {
    match error {
        Errno::PIPE | Errno::CONNRESET => io::Error::other("the launcher has ended"),
        other => other.into(),
    }
}

impl Process {
    /// Kills it.
    pub fn kill(&self) {
        // Fails only where it has ended.
        let _gone = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl AsFd for Process {
    /// Readable once it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}

/// What the launcher holds.
struct Programs {
    files: Vec<(&'static str, OwnedFd)>,
    null: OwnedFd,
    isolated: bool,
}

/// The launcher's wide phase and the entry into its narrow one.
fn become_launcher(role: &Role<'_>, socket: &OwnedFd) -> Result<Programs, Fault> {
    let fault = |why: &dyn std::error::Error| {
        Fault::new(Code::Unavailable, "confine the launcher of the VM's programs", chain(why), "See volt doctor")
    };
    let open = |path: &Path| {
        let opened = rustix::fs::open(path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into());
        opened.map_err(|e| {
            let remedy = "Keep Volt's programs in one folder";
            Fault::new(Code::Unavailable, format!("open {}", path.display()), chain(&e), remedy)
        })
    };
    let files =
        PROGRAMS.iter().map(|name| Ok((*name, open(&role.paths.program(name))?))).collect::<Result<Vec<_>, Fault>>()?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| fault(&e))?;
    // A session of its own: the terminal's signals pass it by, and its programs.
    let _leader = rustix::process::setsid();
    rustix::stdio::dup2_stdin(&null).map_err(|e| fault(&e))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| fault(&e))?;
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ).map_err(|e| fault(&e))?;
    if let Some(cgroup) = role.cgroup {
        cgroup.enter().map_err(|e| fault(&e))?;
    }
    if let Some(user) = role.user {
        user.become_it().map_err(|e| fault(&e))?;
    }
    let isolated = match confine::isolate(&Root::empty()) {
        Ok(()) => true,
        Err(e @ confine::Error::NoNamespaces(_)) if role.policy == Policy::BestEffort => {
            say(format_args!("runs without namespaces of the VM's own. {}", chain(&e)));
            false
        }
        Err(e) => return Err(fault(&e)),
    };
    // After the change of user, which undoes it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| fault(&e))?;

    let mut sandbox = Sandbox::new("volt-launcher", role.policy)
        .keep_fd(socket.as_raw_fd())
        .keep_fd(null.as_raw_fd())
        // What this process may not do its programs may not either, and theirs are the disks and the guest's memory.
        .limit(Limit::FileSize, u64::MAX)
        .limit(Limit::AddressSpace, u64::MAX)
        .limit(Limit::OpenFiles, u64::from(u16::MAX))
        .limit(Limit::Processes, if isolated { role.processes } else { u64::MAX });
    for (_, file) in &files {
        let copy = file.try_clone().map_err(|e| fault(&e))?;
        sandbox = sandbox.keep_fd(file.as_raw_fd()).allow_exec(copy);
    }
    let confined = sandbox.confine().map_err(|e| fault(&e))?;
    let _narrow = confined.enter(&filters::launcher()).map_err(|e| fault(&e))?;
    Ok(Programs { files, null: null.into(), isolated })
}

/// Answers the supervisor until it has gone.
fn serve(socket: &OwnedFd, programs: &Programs) -> Result<(), Fault> {
    let mut children: Vec<Child> = Vec::new();
    loop {
        let (packet, fds) = match receive(socket, RecvFlags::empty()) {
            Ok((packet, _)) if packet.is_empty() => return Ok(()),
            Ok(request) => request,
            Err(Errno::CONNRESET) => return Ok(()),
            Err(e) => {
                return Err(Fault::new(Code::Internal, "hear from the supervisor", chain(&e), "Report this defect"));
            }
        };
        let sent = match packet.split_first() {
            Some((&START, rest)) => match start(programs, rest, fds) {
                Ok(child) => {
                    let answer = [&[DONE][..], &child.pid().to_le_bytes()].concat();
                    let sent = send(socket, &answer, &[child.pidfd()]);
                    children.push(child);
                    sent
                }
                Err(why) => {
                    let text: Vec<u8> = [REFUSED].into_iter().chain(why.into_bytes()).take(PACKET).collect();
                    send(socket, &text, &[])
                }
            },
            Some((&WAIT, number)) => send(socket, &wait(&mut children, number), &[]),
            _ => send(socket, &[REFUSED], &[]),
        };
        if sent.is_err() {
            // It has gone meanwhile.
            return Ok(());
        }
    }
}

fn start(programs: &Programs, request: &[u8], fds: Vec<OwnedFd>) -> Result<Child, String> {
    let (place, text) = request.split_first().ok_or("it names no program")?;
    let (name, file) = programs.files.get(usize::from(*place)).ok_or("it names no program of a VM")?;
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| chain(&e));
    let mut spawn = Spawn::from_fd(Path::new(name), copy(file)?, copy(&programs.null)?);
    for arg in text.split(|byte| *byte == 0).take(text.iter().filter(|byte| **byte == 0).count()) {
        spawn.arg(std::str::from_utf8(arg).map_err(|_| "an argument is not UTF-8")?);
    }
    for fd in fds {
        spawn.fd(fd);
    }
    spawn.die_with_parent();
    if programs.isolated {
        spawn.isolated();
    }
    spawn.spawn().map_err(|error| chain(&error))
}

fn wait(children: &mut Vec<Child>, number: &[u8]) -> Vec<u8> {
    let asked = |child: &Child| child.pid().to_le_bytes() == *number;
    let Some(place) = children.iter().position(asked) else { return vec![REFUSED] };
    let status = children.get_mut(place).and_then(|child| child.try_wait().ok().flatten());
    let Some(status) = status else { return vec![RUNS] };
    drop(children.swap_remove(place));
    let raw = std::os::unix::process::ExitStatusExt::into_raw(status);
    [&[DONE][..], &raw.to_le_bytes()].concat()
}

fn send(socket: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let packet = [IoSlice::new(packet)];
    // One request at a time is under way, so there is room.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &packet, &mut control, flags)).map(drop)
}

/// One packet with its descriptors; an empty one when the peer has gone.
fn receive(socket: &OwnedFd, flags: RecvFlags) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut packet = vec![0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut into = [IoSliceMut::new(&mut packet)];
        rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC | flags)
    })?;
    let fds = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    packet.truncate(received.bytes);
    Ok((packet, fds))
}
