//! The program `ipamd`: arguments, then confinement, then service. Phase 1 makes the state directory and binds or checks the sockets;
//! the database is opened, and the first byte of a client read, in phase 2.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use confine::{Policy, Sandbox};
use ipamd::database::{self, Mailbox};
use ipamd::error::Error;
use ipamd::ledger::{Ledger, Limits, Now};
use ipamd::store::Store;
use ipamd::{filters, rpc};
use ipc::{Endpoint, Fault, Lane};
use tokio::sync::oneshot;

/// Keeps address pools, leases and reservations, and serves them over Cap'n Proto
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory of the database; made, for this user only, if it is not there
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Inherited listening socket (SOCK_STREAM) for RPC
    #[arg(long, value_name = "N", requires = "lane_fd", conflicts_with = "socket")]
    listen_fd: Option<RawFd>,
    /// Inherited listening socket (SOCK_SEQPACKET) for file descriptors
    #[arg(long, value_name = "N", requires = "listen_fd")]
    lane_fd: Option<RawFd>,
    /// Listen on this path, and beside it on the path with .fds appended
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// End once no connection has been open for that long; never, if absent
    #[arg(long, value_name = "SECONDS")]
    idle_exit: Option<u64>,
    /// What to do where the kernel lacks a layer of confinement: strict (refuse to start) or best-effort (say so)
    #[arg(long, value_name = "POLICY", default_value_t = Policy::BestEffort)]
    confinement: Policy,
}

fn main() {
    let served = serve(Arguments::parse());
    if let Err(error) = &served {
        eprintln!("ipamd: {}", chain(error));
    }
    confine::exit(served.is_err().into())
}

fn serve(arguments: Arguments) -> Result<(), Error> {
    // What the database and its companions are made with.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let state_dir = state_dir(&arguments.state_dir)?;
    let endpoint = endpoint(&arguments)?;
    let own = rustix::process::geteuid().as_raw();
    let sandbox = endpoint
        .as_fds()
        .iter()
        .fold(Sandbox::new("ipamd", arguments.confinement), |sandbox, fd| sandbox.keep_fd(fd.as_raw_fd()));
    let confined = sandbox.allow_dir_rw(&state_dir).confine()?;
    let (database, mailbox) = database::mailbox();
    let runtime = ipc::Runtime::new().map_err(Error::Runtime)?;
    let (ready, started) = ipc::queue();
    let (ended, end) = oneshot::channel();
    let thread = confined.spawn("database", &filters::database(), move || {
        let _ = ended.send(keep(&state_dir, mailbox, &ready));
    })?;
    let _narrow = confined.enter(&filters::main())?;
    started.receive().map_err(|_| Error::Arguments("The database thread did not begin; report this as a defect"))??;

    let idle = arguments.idle_exit.map(Duration::from_secs);
    let clients = database.clone();
    let serve = ipc::serve(endpoint, Lane::new(), ipc::Limits::default(), idle, move |peer| {
        rpc::bootstrap(&clients, own, peer)
    });
    runtime.run(async {
        tokio::select! {
            served = serve => Ok(served?),
            ended = end => Err(match ended {
                Ok(Err(fault)) => Error::Failed(fault.to_string()),
                Ok(Ok(())) | Err(_) => Error::Failed("its database thread panicked".to_owned()),
            }),
        }
    })?;
    // With its last handle the thread ends, and closes the database in good order.
    drop(database);
    let _ = thread.join();
    Ok(())
}

/// The database thread's life.
fn keep(state_dir: &Path, mailbox: Mailbox, ready: &ipc::Sender<Result<(), Error>>) -> Result<(), Fault> {
    let path = state_dir.join("ipamd.sqlite");
    let ledger = Store::open(&path).and_then(|store| {
        Ledger::open(store, Limits::default(), Now::read()).map_err(|fault| Error::Load(path, fault))
    });
    match ledger {
        Ok(ledger) => {
            let _ = ready.send(Ok(()));
            database::run(ledger, mailbox)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    }
}

/// The state directory's absolute path, made if need be.
fn state_dir(path: &Path) -> Result<PathBuf, Error> {
    let failed = |error| Error::StateDir(path.into(), error);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    path.canonicalize().map_err(failed)
}

fn endpoint(arguments: &Arguments) -> Result<Endpoint, Error> {
    match (&arguments.socket, arguments.listen_fd, arguments.lane_fd) {
        (Some(path), None, None) => {
            // Confined, this process could not remove the sockets' files: they stay, refuse, and are replaced at the next start.
            let (rpc, lane) = Endpoint::bind(path, 0o600)?.into_fds();
            Ok(Endpoint::from_fds(rpc, lane)?)
        }
        (None, Some(rpc), Some(lane)) if rpc != lane => Ok(Endpoint::from_fds(inherited(rpc)?, inherited(lane)?)?),
        _ => Err(Error::Arguments(
            "Say where to listen: either --socket, or --listen-fd and --lane-fd with two different descriptors",
        )),
    }
}

fn inherited(fd: RawFd) -> Result<OwnedFd, Error> {
    confine::inherited(fd)
        .map_err(|_| Error::Arguments("--listen-fd and --lane-fd take the numbers of inherited descriptors above 2"))
}

/// An error and its causes, once each.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
