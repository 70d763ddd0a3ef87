//! The host's services, as a VM's supervisor meets them: connect to what is there, start what is not.
//!
//! Whoever finds a service missing takes the lock on the runtime directory, binds the service's sockets and starts
//! a keeper (`keeper.rs`) with them. The sockets listen before the service runs, so nobody ever finds them half made,
//! and a second `volt` that waited for the lock finds the service there.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use capnp_rpc::rpc_capnp;
use ipc::{Code, Connection, Endpoint, Fault};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    thread::CapabilitySet,
};
use schema::programs::{self, Process};

use crate::{config::shell, host::paths::Paths};

/// How long a service may take to answer one call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait before something is looked at again.
const MOMENT: Duration = Duration::from_millis(10);
/// How long the lock may go from one to the next before it comes to us.
const QUEUE: Duration = Duration::from_secs(60);
/// How often to look whether a service that ends has closed its sockets.
const CLOSING: u32 = 100;
/// How long importing a kernel may take: it is unpacked, checked and written to disk.
pub const IMPORT_DEADLINE: Duration = Duration::from_secs(120);

/// A service that `volt` can start by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    KernelStore,
    Netmgr,
    Ipamd,
}

impl Service {
    /// Every service.
    pub const ALL: [Service; 3] = [Service::KernelStore, Service::Netmgr, Service::Ipamd];

    /// Its row in the table of processes.
    pub fn process(self) -> &'static Process {
        match self {
            Service::KernelStore => &programs::KERNEL_STORE,
            Service::Netmgr => &programs::NETMGR,
            Service::Ipamd => &programs::IPAMD,
        }
    }

    /// Name of the program and of its socket.
    pub fn name(self) -> &'static str {
        self.process().name
    }

    /// Whether this user may start it: `netmgr` needs a capability that it cannot get by itself.
    fn check_rights(self) -> Result<(), Fault> {
        let held =
            rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
        if self != Service::Netmgr || held {
            return Ok(());
        }
        Err(Fault::new(
            Code::PermissionDenied,
            "start netmgr, which makes networks",
            "this user lacks CAP_NET_ADMIN",
            "Run as root, or have root run the netmgr service; a VM without --net needs neither",
        ))
    }

    /// Whether it keeps state, in a folder of its own below the state directory.
    pub fn has_state(self) -> bool {
        !matches!(self, Service::Netmgr)
    }
}

/// A vat's socket and its lane, connected.
type Link = (OwnedFd, OwnedFd);

/// Links that are connected and that nothing has been read from yet.
#[derive(Debug, Default)]
pub struct Found(Vec<Link>);

impl Found {
    /// Connects to a vat's socket and its fd lane. Where their queues are full it waits for a place, so never under a lock.
    pub fn probe(&mut self, path: &Path) -> io::Result<()> {
        self.probe_until(path, Instant::now() + CALL_DEADLINE)
    }

    /// The same, waiting until then at most.
    pub fn probe_until(&mut self, path: &Path, end: Instant) -> io::Result<()> {
        self.0.push(link(path, |path, kind| connect_until(path, kind, end))?);
        Ok(())
    }

    /// The descriptors, to be kept through phase 2.
    pub fn as_raw_fds(&self) -> Vec<RawFd> {
        self.0.iter().flat_map(|(rpc, lane)| [rpc.as_raw_fd(), lane.as_raw_fd()]).collect()
    }

    /// Begins to talk. Needs the runtime.
    pub fn connect(self) -> Result<Vec<Connection>, Fault> {
        self.0.into_iter().map(|(rpc, lane)| Connection::from_fds(rpc, lane)).collect()
    }
}

fn link(path: &Path, connect: impl Fn(&Path, SocketType) -> io::Result<OwnedFd>) -> io::Result<Link> {
    Ok((connect(path, SocketType::STREAM)?, connect(&schema::paths::lane(path), SocketType::SEQPACKET)?))
}

/// Connects at once, or not: `WouldBlock` says that somebody is there, whose queue is full.
fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects, and waits for a place in the queue.
fn connect_in_time(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    connect_until(path, kind, Instant::now() + CALL_DEADLINE)
}

fn connect_until(path: &Path, kind: SocketType, end: Instant) -> io::Result<OwnedFd> {
    let begin = Instant::now();
    loop {
        match connect(path, kind) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock && !passes(&e) => return Err(e),
            Err(e) if Instant::now() > end && e.kind() != io::ErrorKind::WouldBlock => return Err(e),
            Err(_) if Instant::now() > end => {
                let why = format!("its queue has been full for {} s", begin.elapsed().as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(_) => std::thread::sleep(MOMENT),
            connected => return connected,
        }
    }
}

/// Whether the kernel lacks something just now.
fn passes(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(ipc::passes)
}

/// Nobody serves there: it ends just now, or has ended. Any other failure is one of ours.
pub fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | ConnectionReset | BrokenPipe | NotConnected)
}

/// A question that a service answers: whether it still takes connections, or only lies in the queue of one that ends.
struct Knock(OwnedFd);

impl Knock {
    fn send(path: &Path) -> io::Result<Knock> {
        let socket = UnixStream::from(connect_in_time(path, SocketType::STREAM)?);
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<rpc_capnp::message::Builder<'_>>().init_bootstrap().set_question_id(0);
        (&socket).write_all(&capnp::serialize::write_message_to_words(&message))?;
        Ok(Knock(socket.into()))
    }

    /// Waits for the answer to lie there, and leaves it unread. A service takes connections in their order, so one that
    /// answers has taken those that were made before, and stays as long as they do.
    fn answered(&self) -> io::Result<bool> {
        let limit = Timespec { tv_sec: CALL_DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        if rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, Some(&limit)))? == 0 {
            let why = format!("it has not answered for {} s", CALL_DEADLINE.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Ok(rustix::io::ioctl_fionread(&self.0)? > 0)
    }
}

/// A service that is wanted, and the link to it once there is one.
struct Wanted {
    service: Service,
    link: Option<Link>,
}

/// Connects to `wanted`, in that order, and has `start` start those that nobody serves. The lock is held for as long as that
/// takes, and never while somebody is waited for: a service that is stopped keeps its own clients waiting, and nobody else.
pub fn ensure(
    paths: &Paths,
    wanted: &[Service],
    start: impl Fn(Vec<(Service, Endpoint)>) -> Result<(), Fault>,
) -> Result<Found, Fault> {
    let mut wanted: Vec<_> = wanted.iter().map(|service| Wanted { service: *service, link: None }).collect();
    for _ in 0..CLOSING {
        ask(paths, &mut wanted)?;
        if wanted.iter().any(|one| one.link.is_none()) && !start_missing(paths, &mut wanted, &start)? {
            // One that ends closes its two sockets one after the other.
            std::thread::sleep(MOMENT);
        }
        if wanted.iter().all(|one| one.link.is_some()) {
            return Ok(Found(wanted.into_iter().filter_map(|one| one.link).collect()));
        }
    }
    let without: Vec<_> = wanted.iter().filter(|one| one.link.is_none()).map(|one| one.service.name()).collect();
    Err(with_log(paths, unreachable(&without.join(", "), "what listens there takes no connection, and does not end")))
}

fn unreachable(what: &str, why: impl ToString) -> Fault {
    Fault::new(Code::Unavailable, format!("reach {what}"), why.to_string(), "")
}

/// Connects to those that are served, and waits until they answer. One that ends just now for want of work counts as gone.
fn ask(paths: &Paths, wanted: &mut [Wanted]) -> Result<(), Fault> {
    let late = |service: Service, e: io::Error| {
        let mut fault = unreachable(service.name(), e);
        fault.remedy = format!("See whether it is stopped (fuser {})", shell(&paths.service(service.name())));
        fault
    };
    let mut asked = Vec::new();
    for one in wanted.iter_mut().filter(|one| one.link.is_none()) {
        let path = paths.service(one.service.name());
        match link(&path, connect_in_time).and_then(|link| Ok((link, Knock::send(&path)?))) {
            Ok((link, knock)) => asked.push((one, link, knock)),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(late(one.service, e)),
            Err(e) if has_ended(&e) => {}
            Err(e) => {
                let mut fault = unreachable(one.service.name(), ipc::chain(&e));
                fault.remedy = format!("See what is there, and whose: ls -l {}", shell(&path));
                return Err(fault);
            }
        }
    }
    for (one, link, knock) in asked {
        if knock.answered().map_err(|e| late(one.service, e))? {
            one.link = Some(link);
        }
    }
    Ok(())
}

/// Starts those that nobody serves, and connects to them. Whether there were any. Somebody else may have started one meanwhile.
fn start_missing(
    paths: &Paths,
    wanted: &mut [Wanted],
    start: &impl Fn(Vec<(Service, Endpoint)>) -> Result<(), Fault>,
) -> Result<bool, Fault> {
    let _lock = take_lock(&paths.runtime)?;
    let (mut missing, mut started) = (Vec::new(), Vec::new());
    for one in wanted.iter_mut().filter(|one| one.link.is_none()) {
        let path = paths.service(one.service.name());
        if matches!(ipc::is_served(&path), Ok(true)) {
            continue;
        }
        one.service.check_rights()?;
        match Endpoint::bind(&path, 0o600) {
            Ok(endpoint) => missing.push((one.service, endpoint)),
            Err(ipc::Error::AlreadyExists { .. }) => continue,
            Err(e) => {
                let remedy = "Remove what is there, or name another directory in VOLT_RUNTIME_DIR";
                let tried = format!("serve {}", path.display());
                return Err(Fault::new(Code::Unavailable, tried, ipc::chain(&e), remedy));
            }
        }
        started.push((one, path));
    }
    if missing.is_empty() {
        return Ok(false);
    }
    start(missing)?;
    for (one, path) in started {
        match link(&path, connect) {
            Ok(link) => one.link = Some(link),
            // Others wait for it already.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(with_log(paths, unreachable(one.service.name(), e))),
        }
    }
    Ok(true)
}

/// What a service said before it ended is in its log, not in its answer.
pub fn with_log(paths: &Paths, mut fault: Fault) -> Fault {
    if fault.code == Code::Unavailable {
        let log = format!("See also {}", paths.log().display());
        fault.remedy = if fault.remedy.is_empty() { log } else { format!("{}. {log}", fault.remedy) };
    }
    fault
}

/// A directory, to be locked.
pub fn open_dir(dir: &Path) -> Result<OwnedFd, Fault> {
    File::open(dir).map(OwnedFd::from).map_err(|e| {
        let remedy = "Make it readable for this user";
        Fault::new(Code::Unavailable, format!("open {}", dir.display()), e.to_string(), remedy)
    })
}

/// Opens a directory and takes the [`lock`] on it, for as long as it goes from one to the next. Where somebody keeps it for too long, it says who.
pub fn take_lock(path: &Path) -> Result<OwnedFd, Fault> {
    let give_up = Instant::now() + QUEUE;
    loop {
        let dir = open_dir(path)?;
        let whose = dir.try_clone().ok();
        let holds = || whose.as_ref().and_then(holder);
        let before = holds();
        let mut fault = match lock(dir, path) {
            Ok(lock) => return Ok(lock),
            Err(fault) => fault,
        };
        let now = holds();
        // Of those who start hundreds of VMs at once, each has it for a moment, and between two nobody has.
        if (now.is_none() || now != before) && Instant::now() < give_up {
            continue;
        }
        if let Some(pid) = now {
            fault.why = format!("{} ({pid})", fault.why);
            fault.remedy = format!(
                "See what it does: ps {pid}. If it is stopped (state T), kill -CONT {pid} lets it go on, and kill -KILL {pid} ends it"
            );
        }
        return Err(fault);
    }
}

/// Who has the lock on a directory, as `/proc/locks` tells (proc_locks(5)).
fn holder(dir: &OwnedFd) -> Option<u32> {
    let stat = rustix::fs::fstat(dir).ok()?;
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| line.contains("FLOCK") && line.split_whitespace().any(|word| word == file))?;
    let pid = line.split_whitespace().nth(4)?.parse().ok()?;
    Path::new("/proc").join(format!("{pid}")).exists().then_some(pid)
}

/// Takes the lock that decides who starts or clears away services, or VMs' sockets: on the directory of their sockets itself,
/// so that it leaves no file. Given back when the descriptor is closed. Who has it waits for nobody.
pub fn lock(dir: OwnedFd, runtime: &Path) -> Result<OwnedFd, Fault> {
    let fault = |why: String| {
        Fault::new(
            Code::Unavailable,
            format!("lock {}", runtime.display()),
            why,
            "See which volt process holds it: fuser -v on that directory",
        )
    };
    // Held for as long as three sockets take to bind, so a short wait is enough; not for ever if a holder is stopped.
    for _ in 0..500 {
        match rustix::fs::flock(dir.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(MOMENT),
            Err(e) => return Err(fault(e.to_string())),
        }
    }
    Err(fault("another process has held the lock for 5 s".into()))
}
