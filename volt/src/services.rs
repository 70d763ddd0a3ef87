//! The host's services, as a VM's supervisor meets them: connect to what is there, start what is not.
//!
//! Whoever finds a service missing takes the lock on the runtime directory, binds the service's sockets and starts
//! a keeper (`keep.rs`) with them. The sockets listen before the service runs, so nobody ever finds them half made,
//! and a second `volt` that waited for the lock finds the service there.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use capnp_rpc::rpc_capnp;
use ipc::{Code, Connection, Endpoint, Fault};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt::Timeout},
    thread::CapabilitySet,
};

use crate::paths::Paths;

/// How long a service may take to answer one call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How often, a hundredth of a second apart, to look whether a service that ends has closed its sockets.
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

    /// Name of the program and of its socket.
    pub fn name(self) -> &'static str {
        match self {
            Service::KernelStore => "kernel-store",
            Service::Netmgr => "netmgr",
            Service::Ipamd => "ipamd",
        }
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

/// Links that are connected and that nothing has been read from yet.
#[derive(Debug, Default)]
pub struct Found(Vec<(OwnedFd, OwnedFd)>);

impl Found {
    /// Connects to a vat's socket and its fd lane.
    pub fn probe(&mut self, path: &Path) -> io::Result<()> {
        let rpc = connect(path, SocketType::STREAM)?;
        let lane = connect(&ipc::lane_path(path), SocketType::SEQPACKET)?;
        self.0.push((rpc, lane));
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

fn connect(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // Where the queue is full, connecting waits for a place as sending does.
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Send, Some(CALL_DEADLINE))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A question that a service answers: whether it still takes connections, or only lies in the queue of one that ends.
struct Knock(OwnedFd);

impl Knock {
    fn send(path: &Path) -> io::Result<Knock> {
        let socket = UnixStream::from(connect(path, SocketType::STREAM)?);
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<rpc_capnp::message::Builder<'_>>().init_bootstrap().set_question_id(0);
        (&socket).write_all(&capnp::serialize::write_message_to_words(&message))?;
        Ok(Knock(socket.into()))
    }

    /// Waits for the answer to lie there, and leaves it unread. A service takes connections in their order, so one that
    /// answers has taken those that were made before, and stays as long as they do.
    fn answered(&self) -> io::Result<bool> {
        let limit = Timespec { tv_sec: CALL_DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
        if rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(rustix::io::ioctl_fionread(&self.0)? > 0)
    }
}

/// Connects to `wanted`, in that order, and has `start` start those that nobody serves.
pub fn ensure(
    paths: &Paths,
    wanted: &[Service],
    start: impl FnOnce(Vec<(Service, Endpoint)>) -> Result<(), Fault>,
) -> Result<Found, Fault> {
    if let Some(found) = probe(paths, wanted)? {
        return Ok(found);
    }
    let _lock = lock(open_dir(&paths.runtime)?, &paths.runtime)?;
    let mut missing = Vec::new();
    for service in wanted {
        if let Some(endpoint) = bind_unless_served(paths, *service)? {
            missing.push((*service, endpoint));
        }
    }
    if !missing.is_empty() {
        start(missing)?;
    }
    let mut found = Found::default();
    for service in wanted {
        let path = paths.service(service.name());
        found.probe(&path).map_err(|e| {
            let fault = Fault::new(Code::Unavailable, format!("connect to {}", path.display()), e.to_string(), "");
            with_log(paths, fault)
        })?;
    }
    Ok(found)
}

/// Listens in place of a service that is not there. Under the lock.
fn bind_unless_served(paths: &Paths, service: Service) -> Result<Option<Endpoint>, Fault> {
    let path = paths.service(service.name());
    let mut tries = 0;
    loop {
        // Somebody else may have started it while we waited for the lock.
        if probe(paths, &[service])?.is_some() {
            return Ok(None);
        }
        service.check_rights()?;
        match Endpoint::bind(&path, 0o600) {
            // One that ends closes its two sockets one after the other.
            Err(ipc::Error::AlreadyExists { .. }) if tries < CLOSING => std::thread::sleep(Duration::from_millis(10)),
            bound => {
                let remedy = "Remove what is there, or name another directory in VOLT_RUNTIME_DIR";
                let tried = format!("serve {}", path.display());
                return bound.map(Some).map_err(|e| Fault::new(Code::Unavailable, tried, ipc::chain(&e), remedy));
            }
        }
        tries += 1;
    }
}

/// Connects to all that is `wanted` if all of it is served. One that ends just now for want of work counts as gone.
fn probe(paths: &Paths, wanted: &[Service]) -> Result<Option<Found>, Fault> {
    let mut found = Found::default();
    let connected = wanted.iter().map(|service| {
        let path = paths.service(service.name());
        found.probe(&path)?;
        Knock::send(&path)
    });
    let Ok(knocks) = connected.collect::<Result<Vec<_>, _>>() else { return Ok(None) };
    for (service, knock) in wanted.iter().zip(knocks) {
        match knock.answered() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(e) => {
                let tried = format!("reach {}", service.name());
                let remedy = format!("See whether it is stopped (fuser {})", paths.service(service.name()).display());
                return Err(Fault::new(Code::Unavailable, tried, e.to_string(), remedy));
            }
        }
    }
    Ok(Some(found))
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

/// Takes the lock that decides who starts or clears away services, or VMs' sockets: on the directory of their sockets itself,
/// so that it leaves no file. Given back when the descriptor is closed.
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
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(fault(e.to_string())),
        }
    }
    Err(fault("another process has held the lock for 5 s".into()))
}
