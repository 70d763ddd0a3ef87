//! The program `ipamd`: arguments, then confinement, then service. Phase 1 makes the state directory and binds or checks the sockets;
//! the database is opened, and the first byte of a client read, in phase 2.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use clap::Parser;
use confine::{Limit, Policy, Sandbox, User};
use ipamd::database::{self, Mailbox};
use ipamd::error::Error;
use ipamd::ledger::{Ledger, Limits, Now};
use ipamd::store::{LeaseId, Store};
use ipamd::{filters, lives, rpc};
use ipc::{Fault, Lane, Listen};
use schema::programs::IPAMD;
use tokio::sync::oneshot;

/// Keeps address pools, leases and reservations, and serves them over Cap'n Proto
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory of the database; made, for this user only, if it is not there
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    #[command(flatten)]
    listen: Listen,
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
        confine::say!("ipamd: {}", ipc::chain(error));
    }
    confine::exit(served.is_err().into())
}

fn serve(arguments: Arguments) -> Result<(), Error> {
    // What the database and its companions are made with.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let state_dir = ipc::private_folder_for(arguments.user.map(User::uid), &arguments.state_dir)
        .map_err(|e| Error::StateDir(arguments.state_dir.clone(), e))?;
    let (endpoint, clients) = (arguments.listen.endpoint()?, arguments.listen.clients());
    let limits = ipc::Limits::of_service();
    let sandbox = endpoint.as_fds().iter().fold(
        Sandbox::new(IPAMD.title, arguments.confinement).limit(Limit::OpenFiles, ipc::OPEN_FILES),
        |sandbox, fd| sandbox.keep_fd(fd.as_raw_fd()),
    );
    // The database thread lists nothing.
    let found = lives::found(&state_dir).map_err(|e| Error::StateDir(arguments.state_dir.clone(), e))?;
    let (sandbox, state_dir) = sandbox.service(arguments.user, &state_dir)?;
    let confined = sandbox.confine()?;
    let (database, mailbox) = database::mailbox();
    let runtime = ipc::Runtime::new().map_err(Error::Runtime)?;
    let (ready, started) = ipc::queue();
    let (ended, end) = oneshot::channel();
    let thread = confined.spawn("database", &filters::database(), move || {
        let _ = ended.send(keep(&state_dir, &found, mailbox, &ready));
    })?;
    let _narrow = confined.enter(&filters::main())?;
    let strays = started.receive();
    let strays =
        strays.map_err(|_| Error::Arguments("The database thread did not begin; report this as a defect"))??;
    if strays > 0 {
        confine::say!(
            "ipamd: addresses used by processes whose leases the database does not know: {strays}. Was an older one put in its place? They \
             are given to nobody until those processes have ended"
        );
    }

    let idle = arguments.listen.idle_exit();
    let (served, lane) = (database.clone(), Lane::new());
    let serve =
        ipc::serve(endpoint, clients, lane.clone(), limits, idle, move |peer| Ok(rpc::bootstrap(&served, &lane, peer)));
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
fn keep(
    state_dir: &Path,
    lives: &[(LeaseId, Ipv4Addr)],
    mailbox: Mailbox,
    ready: &ipc::Sender<Result<usize, Error>>,
) -> Result<(), Fault> {
    let path = state_dir.join("ipamd.sqlite");
    let ledger = Store::open(&path).and_then(|store| {
        Ledger::open(store, Limits::default(), Now::read()).map_err(|fault| Error::Load(path, fault))
    });
    match ledger {
        Ok(mut ledger) => {
            let _ = ready.send(Ok(ledger.sweep(lives)));
            database::run(ledger, mailbox)
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    }
}
