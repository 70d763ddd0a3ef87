//! The program `kernel-store`: arguments, then confinement, then service. Phase 1 opens and locks the state directory and binds or checks
//! the sockets; what the directory holds, and the first byte of a client, are read in phase 2.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use confine::{Heap, Limit, Policy, Sandbox, User};
use ipc::{Lane, Listen};
use kernel_store::error::Error;
use kernel_store::reading::Scratch;
use kernel_store::service::Service;
use kernel_store::store::{Limits, Store};
use kernel_store::worker::{Mailbox, worker};
use kernel_store::{filters, rpc};
use rustix::fs::{FlockOperation, Mode, OFlags};
use schema::programs::KERNEL_STORE;

/// Unpacks, checks and keeps guest kernels, and serves them over Cap'n Proto
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory of the store; made, for this user only, if it is not there
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    listen: Listen,
    /// Most bytes that all kernels together may take
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes)]
    max_bytes: u64,
    /// Become this user, with nothing but the state directory in sight; takes root
    #[arg(long, value_name = "UID")]
    user: Option<User>,
    /// What to do where the kernel lacks a layer of confinement: strict (refuse to start) or best-effort (say so)
    #[arg(long, value_name = "POLICY", default_value_t = Policy::BestEffort)]
    confinement: Policy,
}

fn main() {
    let served = serve(Arguments::parse());
    if let Err(error) = &served {
        confine::say!("kernel-store: {}", ipc::chain(error));
    }
    confine::exit(served.is_err().into())
}

fn serve(arguments: Arguments) -> Result<(), Error> {
    // What its files are made with, whatever whoever started it has.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let (endpoint, clients) = (arguments.listen.endpoint()?, arguments.listen.clients());
    let path = ipc::private_folder_for(arguments.user.map(User::uid), &arguments.state_dir)
        .map_err(|error| Error::StateDir(arguments.state_dir.clone(), error))?;
    // Before anything there is handed over.
    let mut dir = claim(&path, &path)?;
    let keep = endpoint.as_fds().map(|fd| fd.as_raw_fd());
    let connections = ipc::Limits::of_service();
    let sandbox =
        keep.iter().fold(Sandbox::new(KERNEL_STORE.title, arguments.confinement), |sandbox, fd| sandbox.keep_fd(*fd));
    let (sandbox, seen) = sandbox.service(arguments.user, &path)?;
    // Images are large and rare.
    let sandbox = sandbox.limit(Limit::OpenFiles, ipc::OPEN_FILES).heap(Heap::Mapping);
    let confined = sandbox.keep_fd(dir.as_raw_fd()).confine()?;
    if seen != path {
        // Once more, in the root that it has now: a descriptor from before would lead out of that.
        drop(dir);
        dir = claim(&seen, &path)?;
    }

    let limits = Limits { bytes: arguments.max_bytes, ..Limits::default() };
    let (disk, disk_mailbox) = worker();
    let (unpacker, unpack_mailbox) = worker();
    let runtime = ipc::Runtime::new().map_err(Error::Runtime)?;
    let (ready, started) = ipc::queue();
    let disk_thread =
        confined.spawn("disk", &filters::disk(), move || keep_files(dir, limits, disk_mailbox, &ready))?;
    // Not joined at the end: it may be stuck in a read of a client's file.
    let _unpack_thread = confined.spawn("unpack", &filters::unpack(), move || unpack_mailbox.serve(Scratch::new()))?;
    let _narrow = confined.enter(&filters::control())?;
    started.receive().map_err(|_| Error::Arguments("The disk thread did not begin; report this as a defect"))??;

    let idle = arguments.listen.idle_exit();
    runtime.run(async move {
        let service = Service::new(disk, unpacker);
        let lane = Lane::new();
        let offered = lane.clone();
        ipc::serve(endpoint, clients, lane, connections, idle, move |peer| Ok(rpc::bootstrap(&service, &offered, peer)))
            .await
    })?;
    // With its last handle the thread ends; what it is writing is written first.
    let _ = disk_thread.join();
    Ok(())
}

/// The disk thread's life.
fn keep_files(dir: OwnedFd, limits: Limits, mailbox: Mailbox<Store>, ready: &ipc::Sender<Result<(), Error>>) {
    match Store::open(dir, limits) {
        Ok(store) => {
            let _ = ready.send(Ok(()));
            mailbox.serve(store);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
}

/// The state directory, locked. `seen` is where this process sees it, `path` what its user calls it.
fn claim(seen: &Path, path: &Path) -> Result<OwnedFd, Error> {
    let failed = |error| Error::StateDir(path.into(), error);
    let dir = rustix::fs::open(seen, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    // A predecessor that was just killed may still be on its way out.
    for _ in 0..40 {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(dir),
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(50)),
            Err(e) => return Err(failed(e.into())),
        }
    }
    Err(Error::InUse(path.into()))
}
