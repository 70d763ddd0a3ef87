//! The program `ipamd`: arguments, then confinement, then service. Phase 1 makes the state directory and binds or checks the sockets;
//! the database is opened, and the first byte of a client read, in phase 2.

use std::net::Ipv4Addr;
use std::path::Path;

use clap::Parser;
use ipamd::database::{Database, Group};
use ipamd::error::Error;
use ipamd::ledger::{Ledger, Limits, Now};
use ipamd::store::{LeaseId, Store};
use ipamd::{filters, lives, rpc};
use ipc::Lane;
use schema::programs::IPAMD;
use service::{Options, Owner, Serving, StateDir};

/// Keeps address pools, leases and reservations, and serves them over Cap'n Proto
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    options: Options,
}

fn main() {
    service::main(&IPAMD, run)
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let (serving, group) = start(arguments)?;
    let (database, lane) = (Database::from(group), Lane::new());
    let offered = lane.clone();
    serving.serve(lane, move |peer| Ok(rpc::bootstrap(&database, &offered, peer)), std::future::pending())
}

fn start(Arguments { state, options }: &Arguments) -> Result<(Serving, Owner<Group>), Error> {
    // Before there are sockets, which stay.
    let folder = state.take(options)?;
    let wide = options.begin(&IPAMD)?;
    // The database thread lists nothing.
    let found = lives::found(&folder).map_err(|error| state.failed(error))?;
    let (wide, folder) = wide.keep_folder(&folder)?;
    let mut starting = wide.confine::<Error>()?;
    let group = starting.thread("database", &filters::database(), move || take_over(&folder, &found))?;
    Ok((starting.enter()?, group))
}

/// What the database says, and the lives that were found.
fn take_over(folder: &Path, found: &[(LeaseId, Ipv4Addr)]) -> Result<Group, Error> {
    let path = folder.join("ipamd.sqlite");
    let ledger = Ledger::open(Store::open(&path)?, Limits::default(), Now::read());
    let mut ledger = ledger.map_err(|fault| Error::Load(path, fault))?;
    let strays = ledger.sweep(found);
    if strays > 0 {
        confine::say!(
            "ipamd: addresses used by processes whose leases the database does not know: {strays}. Was an older one put in its place? They \
             are given to nobody until those processes have ended"
        );
    }
    Ok(Group::new(ledger))
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use ipc::{Code, Fault};
    use testkit::attempt::attempt;

    use super::*;

    #[test]
    fn a_panic_is_said_under_each_thread_s_filter_and_the_next_request_has_a_ledger_that_was_made_anew() {
        attempt(|| {
            let dir = tempfile::tempdir().unwrap().keep();
            let (state, socket) = (dir.join("state"), dir.join("s"));
            let [state, socket] = [&state, &socket].map(|path| path.to_str().unwrap());
            let (serving, group) =
                start(&Arguments::parse_from(["ipamd", "--state-dir", state, "--socket", socket])).unwrap();
            serving.run(async {
                let database = Database::from(group);
                catch_unwind(|| panic!("on the main thread")).unwrap_err();
                let kept = r#"{"network":"kept","subnet":"10.42.0.0/24"}"#;
                database.ask(|ledger| ledger.define(kept)).await.unwrap();
                let asked = database.ask(|ledger| -> Result<(), Fault> {
                    ledger.define(r#"{"network":"undone","subnet":"10.43.0.0/24"}"#)?;
                    panic!("on the database thread")
                });
                assert_eq!(asked.await.unwrap_err().code, Code::Internal);
                let networks = |ledger: &mut Ledger| Ok(ledger.list()?.into_iter().map(|(pool, ..)| pool.network));
                let networks: Vec<_> = database.ask_always(networks).await.unwrap().collect();
                assert_eq!(networks, ["kept"]);
            });
        })
        .passes()
        .says("on the main thread")
        .says("thread 'database' panicked")
        .says("on the database thread");
    }
}
