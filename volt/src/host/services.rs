//! The host's services, as a VM's supervisor meets them: connect to what is there, start what is not.
//!
//! Whoever finds a service missing takes the lock on the runtime directory, binds the service's sockets and starts
//! a keeper (`keeper.rs`) with them. The sockets listen before the service runs, so nobody ever finds them half made,
//! and a second `volt` that waited for the lock finds the service there.

use std::{
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use capnp_rpc::rpc_capnp;
use ipc::Endpoint;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::SocketType,
    thread::CapabilitySet,
};
use schema::programs::{self, Process};

use crate::{
    error::Error,
    host::{
        links::{CALL_DEADLINE, Dialled, connect, connect_in_time, has_ended},
        lock::take_lock,
        paths::Paths,
    },
};

/// How long to wait before something is looked at again.
const MOMENT: Duration = Duration::from_millis(10);
/// How often to look whether a service that ends has closed its sockets.
const CLOSING: u32 = 100;
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
    fn check_rights(self) -> Result<(), Error> {
        let held =
            rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
        if self != Service::Netmgr || held { Ok(()) } else { Err(Error::NoRight) }
    }

    /// Whether it keeps state, in a folder of its own below the state directory.
    pub fn has_state(self) -> bool {
        !matches!(self, Service::Netmgr)
    }
}

/// A liveness probe, a question that a service answers: whether it still takes connections, or they only lie in the queue of one that ends.
struct Probe(OwnedFd);

impl Probe {
    fn send(path: &Path) -> io::Result<Probe> {
        let socket = UnixStream::from(connect_in_time(path, SocketType::STREAM)?);
        let mut message = capnp::message::Builder::new_default();
        message.init_root::<rpc_capnp::message::Builder<'_>>().init_bootstrap().set_question_id(0);
        (&socket).write_all(&capnp::serialize::write_message_to_words(&message))?;
        Ok(Probe(socket.into()))
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

/// A service that is wanted, and its sockets once they are connected.
struct Wanted {
    service: Service,
    dialled: Option<Dialled>,
}

/// Connects to `wanted`, in that order, and has `start` start those that nobody serves. The lock is held for as long as that
/// takes, and never while somebody is waited for: a service that is stopped keeps its own clients waiting, and nobody else.
pub fn ensure(
    paths: &Paths,
    wanted: &[Service],
    start: impl Fn(Vec<(Service, Endpoint)>) -> Result<(), Error>,
) -> Result<Vec<Dialled>, Error> {
    let mut wanted: Vec<_> = wanted.iter().map(|service| Wanted { service: *service, dialled: None }).collect();
    for _ in 0..CLOSING {
        ask(paths, &mut wanted)?;
        if wanted.iter().any(|one| one.dialled.is_none()) && !start_missing(paths, &mut wanted, &start)? {
            // One that ends closes its two sockets one after the other; of the second nothing tells.
            std::thread::sleep(MOMENT);
        }
        if wanted.iter().all(|one| one.dialled.is_some()) {
            return Ok(wanted.into_iter().filter_map(|one| one.dialled).collect());
        }
    }
    let without: Vec<_> = wanted.iter().filter(|one| one.dialled.is_none()).map(|one| one.service.name()).collect();
    Err(Error::Halfway { services: without.join(", "), log: paths.log() })
}

/// Connects to those that are served, and waits until they answer. One that ends just now for want of work counts as gone.
fn ask(paths: &Paths, wanted: &mut [Wanted]) -> Result<(), Error> {
    let late = |service: Service, source: io::Error| {
        let service = service.name();
        Error::Mute { service, socket: paths.service(service), source }
    };
    let mut asked = Vec::new();
    for one in wanted.iter_mut().filter(|one| one.dialled.is_none()) {
        let path = paths.service(one.service.name());
        match Dialled::dial(&path, connect_in_time).and_then(|dialled| Ok((dialled, Probe::send(&path)?))) {
            Ok((dialled, probe)) => asked.push((one, dialled, probe)),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(late(one.service, e)),
            Err(e) if has_ended(&e) => {}
            Err(source) => return Err(Error::Unreachable { service: one.service.name(), socket: path, source }),
        }
    }
    for (one, dialled, probe) in asked {
        if probe.answered().map_err(|e| late(one.service, e))? {
            one.dialled = Some(dialled);
        }
    }
    Ok(())
}

/// Starts those that nobody serves, and connects to them. Whether there were any. Somebody else may have started one meanwhile.
fn start_missing(
    paths: &Paths,
    wanted: &mut [Wanted],
    start: &impl Fn(Vec<(Service, Endpoint)>) -> Result<(), Error>,
) -> Result<bool, Error> {
    let _lock = take_lock(&paths.runtime)?;
    let (mut missing, mut started) = (Vec::new(), Vec::new());
    for one in wanted.iter_mut().filter(|one| one.dialled.is_none()) {
        let path = paths.service(one.service.name());
        if matches!(ipc::is_served(&path), Ok(true)) {
            continue;
        }
        one.service.check_rights()?;
        match Endpoint::bind(&path, 0o600) {
            Ok(endpoint) => missing.push((one.service, endpoint)),
            Err(ipc::Error::AlreadyExists { .. }) => continue,
            Err(source) => return Err(Error::Unbound { path, source }),
        }
        started.push((one, path));
    }
    if missing.is_empty() {
        return Ok(false);
    }
    start(missing)?;
    for (one, path) in started {
        match Dialled::dial(&path, connect) {
            Ok(dialled) => one.dialled = Some(dialled),
            // Others wait for it already.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => {
                return Err(Error::EndedAtOnce { service: one.service.name(), log: paths.log(), source });
            }
        }
    }
    Ok(true)
}
