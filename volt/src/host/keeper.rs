//! `volt keep`: starts the services that `volt run` found missing, and unlinks their sockets once they have ended.
//!
//! It outlives the `volt run` that started it: a service serves every VM of the host, and ends by itself half a minute
//! after the last connection to it. The keeper reads nothing from anybody; it waits for its children.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
};

use confine::{Child, Policy, Rule, Spawn, User};
use ipc::Endpoint;
use rustix::event::{PollFd, PollFlags};
use schema::{limits::IDLE_EXIT, programs::KEEPER};

use crate::{
    error::Error,
    filters, helper,
    host::{
        identity::Range,
        lock::{lock, open_dir},
        paths::Paths,
        services::Service,
        sockets::Own,
    },
    output::say,
};

/// Arguments of the internal `volt keep`.
#[derive(Debug, clap::Args)]
pub struct KeepArgs {
    /// NAME:RPC-FD:LANE-FD:UID of a service to start on those listening sockets, as that user; 0 is whoever starts it.
    #[arg(long = "service", required = true)]
    pub services: Vec<String>,
    /// Where the sockets are.
    #[arg(long)]
    pub runtime_dir: PathBuf,
    /// Where the services keep their state.
    #[arg(long)]
    pub state_dir: PathBuf,
}

/// Starts a keeper for `endpoints`, which listen already. Under the lock.
pub fn start(paths: &Paths, policy: Policy, endpoints: Vec<(Service, Endpoint)>) -> Result<(), Error> {
    let log = open_log(paths)?;
    if endpoints.iter().any(|(service, _)| service.has_state()) {
        has_room(paths)?;
    }
    // Who cannot become another user runs them as itself, which confines itself just so.
    let users = Range::usable().is_ok().then(Range::find).transpose()?;
    let mut spawn = Spawn::new(&paths.program(KEEPER.program));
    spawn.arg("--confinement").arg(policy.to_string()).arg("keep");
    let mut sockets = Vec::new();
    for (service, endpoint) in endpoints {
        sockets.extend(Own::both(&paths.service(service.name())));
        let (rpc, lane) = endpoint.into_fds();
        let (rpc, lane) = (spawn.fd(rpc), spawn.fd(lane));
        let user = users.and_then(|range| range.service(service)).map_or(0, User::uid);
        spawn.arg("--service").arg(format!("{}:{rpc}:{lane}:{user}", service.name()));
    }
    spawn.arg("--runtime-dir").arg(&paths.runtime).arg("--state-dir").arg(&paths.state);
    spawn.stderr(log);
    let started = spawn.spawn().map(Child::detach);
    if started.is_err() {
        sockets.iter().for_each(Own::remove);
    }
    started.map_err(|source| Error::NotStarted { what: "Volt's services", source })
}

/// Bytes that have to be free where services keep what they know.
const ROOM: u64 = 256 << 10;

/// Services that find no room end, and their log, which would say so, has none either.
fn has_room(paths: &Paths) -> Result<(), Error> {
    let state = || paths.state.clone();
    let found = rustix::fs::statvfs(&paths.state);
    let found = found.map_err(|e| Error::NoState { state: state(), source: e.into() })?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= ROOM { Ok(()) } else { Err(Error::NoRoom { state: state(), free, least: ROOM }) }
}

/// The services' log: they outlive the terminal that they were started from.
fn open_log(paths: &Paths) -> Result<OwnedFd, Error> {
    let path = paths.log();
    let opened = File::options().append(true).create(true).open(&path);
    opened.map(OwnedFd::from).map_err(|source| Error::Unwritable { path, source })
}

/// A service to be started.
struct Start {
    service: Service,
    rpc: OwnedFd,
    lane: OwnedFd,
    /// Whom it becomes; nobody else, if absent.
    user: Option<User>,
}

struct Kept {
    name: &'static str,
    child: Child,
    /// Its sockets.
    sockets: Vec<Own>,
}

/// The keeper's own `main`.
pub fn main(policy: Policy, args: &KeepArgs) -> Result<i32, Error> {
    let paths = Paths::given(args.runtime_dir.clone(), args.state_dir.clone())?;
    // It and the services belong to the host, not to whoever came first.
    let kept = confine::reset_inherited();
    if !kept.is_empty() {
        say(format_args!("the services keep what they were started with: {}", kept.join(", ")));
    }
    let services = args.services.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let sockets: Vec<Own> = services.iter().flat_map(|start| Own::both(&paths.service(start.service.name()))).collect();
    let result = keep(&paths, policy, services);
    if result.is_err() {
        // It may have failed on either side of its change of root.
        let here = if paths.runtime.is_dir() { paths.runtime.as_path() } else { Path::new("/") };
        let sockets: Vec<Own> = sockets.iter().map(|own| own.seen_in(here)).collect();
        remove(&paths, here, &sockets);
    }
    result.map(|()| 0)
}

/// Removes sockets under the lock, so that a successor's are not mistaken for these. Where it cannot be had they stay:
/// whoever binds next replaces a dead socket. `runtime` is where this process sees the runtime directory.
fn remove(paths: &Paths, runtime: &Path, sockets: &[Own]) {
    match open_dir(runtime).and_then(|dir| lock(dir, &paths.runtime)) {
        Ok(_lock) => sockets.iter().for_each(Own::remove),
        Err(error) => say(error.fault()),
    }
}

fn keep(paths: &Paths, policy: Policy, services: Vec<Start>) -> Result<(), Error> {
    let log = open_log(paths)?;
    let mut kept = Vec::new();
    for start in services {
        kept.push(launch(paths, policy, start, &log)?);
    }
    let unconfined = |source| Error::Unconfined { what: "the keeper", source };
    drop(log);
    let (mut sandbox, alone) = helper::tidier(&KEEPER, policy, &[(paths.runtime.clone(), "/")]).map_err(unconfined)?;
    let runtime = if alone { Path::new("/") } else { &paths.runtime };
    if alone {
        kept.iter_mut().flat_map(|kept| &mut kept.sockets).for_each(|own| *own = own.seen_in(runtime));
    }
    for k in &kept {
        sandbox = sandbox.keep_fd(k.child.as_fd().as_raw_fd());
    }
    let confined = sandbox.confine().map_err(unconfined)?;
    // To open the runtime directory, to lock it.
    let read_only = Rule::eq(2, (libc::O_RDONLY | libc::O_CLOEXEC) as u32);
    let filter = helper::tidying("keeper")
        .with(&filters::poll())
        .allow_if(libc::SYS_openat, vec![read_only])
        .allow_if(libc::SYS_write, vec![Rule::eq(0, 2)])
        .allow(&[libc::SYS_wait4]);
    let _narrow = confined.enter(&filter).map_err(unconfined)?;

    while !kept.is_empty() {
        let mut polled: Vec<PollFd<'_>> =
            kept.iter().map(|k| PollFd::from_borrowed_fd(k.child.as_fd(), PollFlags::IN)).collect();
        if rustix::event::poll(&mut polled, None).is_err() {
            continue;
        }
        let ended: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        drop(polled);
        let mut rest = Vec::new();
        for (mut k, ended) in kept.into_iter().zip(ended) {
            if ended {
                if let Ok(status) = k.child.wait()
                    && !status.success()
                {
                    say(format_args!("{} ended with {status}", k.name));
                }
                remove(paths, runtime, &k.sockets);
            } else {
                rest.push(k);
            }
        }
        kept = rest;
    }
    Ok(())
}

/// Not by clap, which copies values: these descriptors are taken over.
fn parse(text: &str) -> Result<Start, Error> {
    let malformed = || Error::KeepArgument(text.to_owned());
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let service = Service::ALL.into_iter().find(|s| s.name() == name).ok_or_else(malformed)?;
    let mut fd = || {
        parts
            .next()
            .and_then(|n| n.parse::<RawFd>().ok())
            .and_then(|fd| confine::inherited(fd).ok())
            .ok_or_else(malformed)
    };
    let (rpc, lane) = (fd()?, fd()?);
    let user = parts.next().and_then(|n| n.parse().ok()).ok_or_else(malformed)?;
    Ok(Start { service, rpc, lane, user: User::new(user) })
}

fn launch(paths: &Paths, policy: Policy, start: Start, log: &OwnedFd) -> Result<Kept, Error> {
    let Start { service, rpc, lane, user } = start;
    let sockets = Own::both(&paths.service(service.name()));
    let mut spawn = Spawn::new(&paths.program(service.name()));
    let (rpc, lane) = (spawn.fd(rpc), spawn.fd(lane));
    spawn.arg("--confinement").arg(policy.to_string());
    spawn.arg("--listen-fd").arg(rpc.to_string()).arg("--lane-fd").arg(lane.to_string());
    spawn.arg("--idle-exit").arg(IDLE_EXIT.as_secs().to_string());
    // Whoever started it is served, whichever user it runs as.
    spawn.arg("--owner").arg(rustix::process::geteuid().as_raw().to_string());
    if let Some(user) = user {
        spawn.arg("--user").arg(user.uid().to_string());
    }
    if service == Service::Netmgr {
        spawn.arg("--instance").arg(paths.instance()?);
    }
    if service.has_state() {
        spawn.arg("--state-dir").arg(paths.state.join(service.name()));
    }
    spawn.stderr(
        log.try_clone().map_err(|source| Error::NoDescriptor { tried: "duplicate the services' log", source })?,
    );
    let child = spawn.spawn().map_err(|source| Error::NotStarted { what: service.name(), source })?;
    Ok(Kept { name: service.name(), child, sockets })
}
