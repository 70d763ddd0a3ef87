//! The capability on what becomes of a network's ports.

use capnp::capability::Rc;
use schema::network_capnp::{PortChange, port_watcher};
use tokio::sync::Mutex;

use super::while_trying;
use crate::{
    error::Error,
    events::{Change, Event, Watching},
};

/// `PortWatcher`.
pub struct Watcher {
    network: String,
    /// Of several calls, one after the other waits. What one that is given up has not answered, the next does.
    watching: Mutex<Watching>,
}

impl Watcher {
    /// On a network of that name.
    pub fn new(network: &str, watching: Watching) -> Watcher {
        Watcher { network: network.to_owned(), watching: Mutex::new(watching) }
    }
}

impl port_watcher::Server for Watcher {
    async fn next(
        self: Rc<Self>,
        _: port_watcher::NextParams,
        mut results: port_watcher::NextResults,
    ) -> Result<(), capnp::Error> {
        let told = self.watching.lock().await.next().await;
        let failed = while_trying(format!("watch network {}", self.network));
        let (told, missed) = told.ok_or(Error::Revoked("network")).map_err(failed)?;
        results.get().set_missed(missed);
        let mut list = results.get().init_events(u32::try_from(told.len()).unwrap_or(0));
        for (at, Event { what, workload, interface }) in (0..list.len()).zip(&told) {
            let mut event = list.reborrow().get(at);
            event.set_what(match what {
                Change::Attached => PortChange::Attached,
                Change::Gone => PortChange::Gone,
                Change::Changed => PortChange::Changed,
            });
            event.set_workload(workload);
            event.set_interface_name(interface);
        }
        Ok(())
    }
}
