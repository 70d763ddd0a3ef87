//! The host's services, as a VM's supervisor meets them: connect to what is there, start what is not.
//!
//! Whoever finds a service missing takes the lock on the runtime directory, binds the service's sockets and starts
//! a keeper (`keep.rs`) with them. The sockets listen before the service runs, so nobody ever finds them half made,
//! and a second `volt` that waited for the lock finds the service there.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use ipc::{Code, Connection, Endpoint, Fault};
use rustix::{
    fs::FlockOperation,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    thread::CapabilitySet,
};

use crate::paths::Paths;

/// How long a service may take to answer one call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);
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
    /// Connects to a vat's socket and, where there is one, its fd lane.
    pub fn probe(&mut self, path: &Path) -> io::Result<()> {
        let rpc = UnixStream::connect(path)?;
        let lane = connect_lane(&ipc::lane_path(path))?;
        self.0.push((rpc.into(), lane));
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

fn connect_lane(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects to `wanted`, in that order, and has `start` start those that nobody serves.
pub fn ensure(
    paths: &Paths,
    wanted: &[Service],
    start: impl FnOnce(Vec<(Service, Endpoint)>) -> Result<(), Fault>,
) -> Result<Found, Fault> {
    if let Some(found) = probe(paths, wanted) {
        return Ok(found);
    }
    let _lock = lock(&paths.runtime)?;
    let mut missing = Vec::new();
    for service in wanted {
        // Somebody else may have started it while we waited for the lock.
        let path = paths.service(service.name());
        if UnixStream::connect(&path).is_err() {
            service.check_rights()?;
            let endpoint = Endpoint::bind(&path, 0o600).map_err(|e| {
                let remedy = "Remove what is there, or name another directory in VOLT_RUNTIME_DIR";
                Fault::new(Code::Unavailable, format!("serve {}", path.display()), e.to_string(), remedy)
            })?;
            missing.push((*service, endpoint));
        }
    }
    if !missing.is_empty() {
        start(missing)?;
    }
    probe(paths, wanted).ok_or_else(|| {
        Fault::new(
            Code::Unavailable,
            format!("reach the services in {}", paths.runtime.display()),
            "one that was just started ended at once",
            format!("See why in {}", paths.state.join("services.log").display()),
        )
    })
}

fn probe(paths: &Paths, wanted: &[Service]) -> Option<Found> {
    let mut found = Found::default();
    for service in wanted {
        found.probe(&paths.service(service.name())).ok()?;
    }
    Some(found)
}

/// The lock that decides who starts or clears away services: on the runtime directory itself, so that it leaves no file.
pub fn lock(runtime: &Path) -> Result<OwnedFd, Fault> {
    let fault = |why: String| {
        Fault::new(
            Code::Unavailable,
            format!("lock {}", runtime.display()),
            why,
            "See which volt process holds it: fuser -v on that directory",
        )
    };
    let dir = OwnedFd::from(File::open(runtime).map_err(|e| fault(e.to_string()))?);
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
