//! The process that starts and reaps a VM's programs, so that the supervisor, which talks to them and to others, need not
//! be able to.
//!
//! Forked from `volt run` in its wide phase, it becomes the VM's user, leaves for the VM's namespaces with an empty root, and
//! may then execute Volt's device programs, which it has open, and nothing else. Each starts as the first process of a
//! pid namespace. It ends with its supervisor, and what it started ends with it. It reads nothing but packets of its
//! supervisor's: one a request, one an answer.
//!
//! The supervisor never waits for it: whoever may stop or freeze processes of a VM would hold up all that the supervisor does
//! for others. A question has a number, so that an answer which comes too late is not taken for another's, and a deadline;
//! ending the VM takes no answer at all, as processes are killed by their pidfds.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use confine::{Cgroup, Child, Limit, Policy, Root, Sandbox, Spawn, User};
use ipc::chain;
use rustix::{
    event::Timespec,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::Signal,
};
use schema::programs::{self, LAUNCHER, Starter};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
    time::timeout,
};

use crate::{
    error::{Error, HelperError},
    helper,
    host::paths::Paths,
    output::say,
    vm::{
        filters,
        packet::{Answer, LONGEST, Question},
    },
};

/// What it is called.
const WHO: &str = "launcher";
/// Descriptors of a request: those of a core with all its devices.
const FDS: usize = 64;
/// How long a start may take: an exec on a busy host, which has a deadline of its own within this.
const START_DEADLINE: Duration = Duration::from_secs(15);
const _: () = assert!(START_DEADLINE.as_secs() > confine::EXEC_DEADLINE.as_secs());
/// How long it may take to say how a process ended: what asks has to go on.
const STATUS_DEADLINE: Duration = Duration::from_secs(1);
/// How long the launcher may take to end by itself, and then by a signal.
const END_DEADLINE: Duration = Duration::from_secs(1);
/// How long until the kernel may have what it lacks for a packet, and how often that is waited for.
const MOMENT: Duration = Duration::from_millis(10);
const MOMENTS: u32 = 500;
/// What the VM's processes are sacrificed by when memory runs out, before services and other programs (proc(5)).
const OOM_SCORE_ADJ: &str = "500";

/// The programs that a launcher starts: a request names one by its place.
fn launched() -> impl Iterator<Item = &'static str> {
    programs::started_by(Starter::Launcher).map(|process| process.program)
}

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

/// A launcher that was forked, and not spoken to yet. It ends when this is dropped.
pub struct Forked {
    socket: OwnedFd,
    process: OwnedFd,
}

/// The supervisor's end of its launcher.
pub struct Launcher {
    socket: AsyncFd<OwnedFd>,
    process: AsyncFd<OwnedFd>,
    /// The number of the last question; held while one is under way.
    asked: Mutex<u32>,
}

/// A program to be started: descriptors are numbered in the order in which they are given, from 3 on.
pub struct Request {
    program: &'static str,
    args: Vec<String>,
    fds: Vec<OwnedFd>,
}

/// A process of the VM. Dropped, it is killed.
pub struct Process {
    pid: u32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Request {
    /// One of the VM's programs.
    pub fn new(program: &'static str) -> Request {
        Request { program, args: Vec::new(), fds: Vec::new() }
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl Into<String>) -> &mut Request {
        self.args.push(arg.into());
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

impl Forked {
    /// Starts the launcher. Must run while this process has one thread.
    pub fn start(role: &Role<'_>) -> Result<Forked, Error> {
        let failed = |e: Errno| Error::NoLauncher(e.into());
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(failed)?;
        let Some(process) = helper::fork(0).map_err(failed)? else {
            drop(socket);
            helper::end(become_launcher(role, &theirs).and_then(|programs| serve(&theirs, &programs)));
        };
        Ok(Forked { socket, process })
    }

    /// What the narrow phase has to keep.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.process.as_fd()]
    }

    /// Begins to talk. Needs the runtime.
    pub fn connect(self) -> Result<Launcher, Error> {
        let watch = |fd| {
            ipc::watch(fd, Interest::READABLE)
                .map_err(|source| Error::NoDescriptor { tried: "talk to the launcher of the VM's programs", source })
        };
        Ok(Launcher { socket: watch(self.socket)?, process: watch(self.process)?, asked: Mutex::new(0) })
    }
}

impl Launcher {
    /// Starts a program. Returns once it was executed. Dropped before that, what was started all the same is killed with the
    /// next question, or by the launcher's end.
    pub async fn launch(&self, request: Request) -> Result<Process, Error> {
        let program = request.program;
        self.started(request).await.map_err(|source| Error::NotLaunched { program, source })
    }

    async fn started(&self, request: Request) -> Result<Process, HelperError> {
        let place = launched().position(|name| name == request.program);
        let place = place.and_then(|place| u8::try_from(place).ok()).ok_or(HelperError::NoProgram)?;
        let question = Question::Start(place, request.args.iter().map(String::as_str).collect());
        let fds: Vec<BorrowedFd<'_>> = request.fds.iter().map(AsFd::as_fd).collect();
        let (answer, fds) = self.ask(&question, &fds, START_DEADLINE).await?;
        match (Answer::read(&answer), fds.into_iter().next()) {
            (Some((_, Answer::Started(pid))), Some(pidfd)) => Ok(Process::new(pid, pidfd)?),
            (Some((_, Answer::Refused(why))), _) => Err(HelperError::Refused(why.to_owned())),
            _ => Err(HelperError::NoAnswer(WHO)),
        }
    }

    /// How a process ended, if it has and the launcher says so.
    pub async fn status(&self, process: &Process) -> Option<ExitStatus> {
        let (answer, _) = self.ask(&Question::Status(process.pid), &[], STATUS_DEADLINE).await.ok()?;
        match Answer::read(&answer) {
            Some((_, Answer::Ended(status))) => Some(ExitStatus::from_raw(status)),
            _ => None,
        }
    }

    /// Has a process that has ended forgotten, and one that has not killed as well.
    pub fn forget(&self, process: Process) {
        process.kill();
        // A launcher that takes no more packets is about to be ended itself.
        let _stopped = send(self.socket.get_ref(), &Question::Forget(process.pid).write(0), &[]);
    }

    /// Ends it, and with it what it started. False where it is still there: frozen in a cgroup of version 1, or in the kernel.
    pub async fn end(self) -> bool {
        let Launcher { socket, process, .. } = self;
        // What it reads as its supervisor's end.
        drop(socket);
        if timeout(END_DEADLINE, process.readable()).await.is_ok() {
            return true;
        }
        kill(process.get_ref());
        timeout(END_DEADLINE, process.readable()).await.is_ok()
    }

    /// The packet of the answer to `question`, with its descriptors.
    async fn ask(
        &self,
        question: &Question<'_>,
        fds: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), HelperError> {
        let exchange = async {
            let mut number = self.asked.lock().await;
            *number = number.wrapping_add(1);
            let packet = question.write(*number);
            if packet.len() > LONGEST || fds.len() > FDS {
                return Err(HelperError::TooLong { bytes: LONGEST, fds: FDS });
            }
            loop {
                match send(self.socket.get_ref(), &packet, fds) {
                    Ok(()) => break,
                    Err(e) if ipc::passes(e) => tokio::time::sleep(MOMENT).await,
                    Err(e) => return Err(ended(e)),
                }
            }
            loop {
                let receive = |socket: &OwnedFd| Ok(receive(socket, RecvFlags::DONTWAIT)?);
                let received = self.socket.async_io(Interest::READABLE, receive).await;
                let (answer, fds) = received.map_err(|e| ended(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
                match Answer::read(&answer) {
                    Some((of, _)) if of == *number => return Ok((answer, fds)),
                    // Of a question that was given up: a process that was started for nobody.
                    Some(_) => fds.iter().for_each(kill),
                    None => return Err(ended(Errno::PIPE)),
                }
            }
        };
        timeout(deadline, exchange).await.unwrap_or(Err(HelperError::Late { who: WHO, limit: deadline }))
    }
}

fn ended(error: Errno) -> HelperError {
    match error {
        Errno::PIPE | Errno::CONNRESET => HelperError::Ended(WHO),
        Errno::AGAIN => HelperError::Full(WHO),
        other => other.into(),
    }
}

fn kill(pidfd: &OwnedFd) {
    // Fails only where it has ended: it is of this user, and was started within the enclosure.
    let _gone = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

impl Process {
    fn new(pid: u32, pidfd: OwnedFd) -> io::Result<Process> {
        match pidfd.try_clone().and_then(|copy| ipc::watch(copy, Interest::READABLE)) {
            Ok(pidfd) => Ok(Process { pid, pidfd }),
            Err(e) => {
                kill(&pidfd);
                Err(e)
            }
        }
    }

    /// Kills it.
    pub fn kill(&self) {
        kill(self.pidfd.get_ref());
    }

    /// Returns once it has ended.
    pub async fn ended(&self) {
        // Fails only where the runtime ends.
        let _ready = self.pidfd.readable().await.map(|mut ready| ready.retain_ready());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the launcher holds.
struct Programs {
    files: Vec<(&'static str, OwnedFd)>,
    null: OwnedFd,
    isolated: bool,
}

/// The launcher's wide phase and the entry into its narrow one.
fn become_launcher(role: &Role<'_>, socket: &OwnedFd) -> Result<Programs, Error> {
    let unconfined = |source| Error::Unconfined { what: "the launcher of the VM's programs", source };
    let failed = |e: Errno| Error::Launcher(e.into());
    let open = |path: PathBuf| {
        let opened = rustix::fs::open(&path, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into());
        opened.map_err(|e| Error::NoProgram { path, source: e.into() })
    };
    let files =
        launched().map(|name| Ok((name, open(role.paths.program(name))?))).collect::<Result<Vec<_>, Error>>()?;
    let null = helper::leave_terminal().map_err(Error::Launcher)?;
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ).map_err(Error::Launcher)?;
    if let Some(cgroup) = role.cgroup {
        cgroup.enter().map_err(unconfined)?;
    }
    if let Some(user) = role.user {
        user.become_it().map_err(unconfined)?;
    }
    let isolated = match confine::isolate(&Root::empty()) {
        Ok(()) => true,
        Err(e @ confine::Error::NoNamespaces(_)) if role.policy != Policy::Strict => {
            say(format_args!("runs without namespaces of the VM's own. {}", chain(&e)));
            false
        }
        Err(e) => return Err(unconfined(e)),
    };
    // After the change of user, which undoes it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;

    let mut sandbox = Sandbox::new(LAUNCHER.title, role.policy)
        .keep_fd(socket.as_raw_fd())
        .keep_fd(null.as_raw_fd())
        // What this process may not do its programs may not either, and theirs are the disks and the guest's memory.
        .limit(Limit::FileSize, u64::MAX)
        .limit(Limit::AddressSpace, u64::MAX)
        .limit(Limit::OpenFiles, u64::from(u16::MAX))
        .limit(Limit::Processes, if isolated { role.processes } else { u64::MAX });
    for (_, file) in &files {
        let copy = file.try_clone().map_err(Error::Launcher)?;
        sandbox = sandbox.keep_fd(file.as_raw_fd()).allow_exec(copy);
    }
    let confined = sandbox.confine().map_err(unconfined)?;
    let _narrow = confined.enter(&filters::launcher()).map_err(unconfined)?;
    Ok(Programs { files, null, isolated })
}

/// Answers the supervisor until it has gone.
fn serve(socket: &OwnedFd, programs: &Programs) -> Result<(), Error> {
    let mut children: Vec<Child> = Vec::new();
    loop {
        let (packet, fds) = match receive(socket, RecvFlags::empty()) {
            Ok((packet, _)) if packet.is_empty() => return Ok(()),
            Ok(request) => request,
            Err(Errno::CONNRESET) => return Ok(()),
            Err(e) if ipc::passes(e) => {
                moment();
                continue;
            }
            Err(e) => return Err(Error::Unheard(e.into())),
        };
        // A supervisor that sends what is no question is none any more.
        let Some((number, question)) = Question::read(&packet) else { return Ok(()) };
        let answer = |answer: Answer<'_>, fds: &[BorrowedFd<'_>]| {
            let packet = answer.write(number);
            for _ in 0..MOMENTS {
                match send(socket, &packet, fds) {
                    Err(e) if ipc::passes(e) => moment(),
                    sent => return sent,
                }
            }
            send(socket, &packet, fds)
        };
        let sent = match question {
            Question::Start(place, args) => match start(programs, place, &args, fds) {
                Ok(child) => {
                    let sent = answer(Answer::Started(child.pid().cast_unsigned()), &[child.pidfd()]);
                    children.push(child);
                    sent
                }
                Err(why) => answer(Answer::Refused(&why), &[]),
            },
            Question::Status(pid) => match status(&mut children, pid) {
                Some(status) => answer(Answer::Ended(status.into_raw()), &[]),
                None => answer(Answer::Runs, &[]),
            },
            Question::Forget(pid) => {
                // What is dropped is killed and reaped.
                children.retain(|child| child.pid().cast_unsigned() != pid);
                Ok(())
            }
        };
        if sent.is_err() {
            // It has gone meanwhile.
            return Ok(());
        }
    }
}

fn start(programs: &Programs, place: u8, args: &[&str], fds: Vec<OwnedFd>) -> Result<Child, String> {
    let (name, file) = programs.files.get(usize::from(place)).ok_or("it names no program of a VM")?;
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| chain(&e));
    let mut spawn = Spawn::from_fd(Path::new(name), copy(file)?, copy(&programs.null)?);
    spawn.args(args);
    for fd in fds {
        spawn.fd(fd);
    }
    spawn.die_with_parent();
    if programs.isolated {
        spawn.isolated();
    }
    spawn.spawn().map_err(|error| chain(&error))
}

/// How a child ended, if it has.
fn status(children: &mut [Child], pid: u32) -> Option<ExitStatus> {
    let child = children.iter_mut().find(|child| child.pid().cast_unsigned() == pid)?;
    child.try_wait().ok().flatten()
}

fn moment() {
    let moment = Timespec::try_from(MOMENT).unwrap_or_default();
    // An interrupted rest is a shorter one.
    let _ = rustix::event::poll(&mut [], Some(&moment));
}

fn send(socket: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let packet = [IoSlice::new(packet)];
    // Whoever reads has room, as few requests are under way at a time; whoever does not is not waited for.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &packet, &mut control, flags)).map(drop)
}

/// One packet with its descriptors; an empty one when the peer has gone.
fn receive(socket: &OwnedFd, flags: RecvFlags) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut packet = vec![0; LONGEST];
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
