//! One connection's RPC system from its first message to its last: whatever ends it (the peer, this side, a limit, a panic, or
//! the task that drives it being dropped), everything on it is released and nobody is left waiting.

use std::{
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    time::Duration,
};

use crate::{Error, Fault, Limits, meter::Meter, metered::Metered, stream::Socket};
use capnp::{ErrorKind, capability::Client};
use capnp_rpc::{Disconnector, RpcSystem, rpc_twoparty_capnp::Side};
use futures::FutureExt;

/// How long the last messages of a connection that ends may take to be written.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that somebody has to drive.
pub(crate) struct RpcConnection {
    rpc: Option<RpcSystem<Side>>,
    disconnector: Option<Disconnector<Side>>,
    meter: Rc<Meter>,
    socket: Rc<Socket>,
}

impl RpcConnection {
    /// A connection over `socket` (connected, non-blocking). `ours` is what the peer may ask for.
    pub(crate) fn new(
        socket: OwnedFd,
        side: Side,
        limits: Limits,
        ours: Option<Client>,
    ) -> Result<RpcConnection, Error> {
        let socket = Socket::new(socket).map_err(|source| Error::Socket { tried: "watch a socket", source })?;
        let (socket, meter) = (Rc::new(socket), Meter::new(limits));
        let rpc = RpcSystem::new(Box::new(Metered::new(socket.clone(), side, meter.clone())), ours);
        let disconnector = rpc.get_disconnector();
        Ok(RpcConnection { rpc: Some(rpc), disconnector: Some(disconnector), meter, socket })
    }

    pub(crate) fn meter(&self) -> &Rc<Meter> {
        &self.meter
    }

    /// What the peer offers. To be called once, before [`RpcConnection::drive`].
    pub(crate) fn bootstrap(&mut self) -> Option<Client> {
        self.rpc.as_mut().map(|rpc| rpc.bootstrap(Side::Server))
    }

    /// Runs the connection until the peer leaves or `stop` is done. A peer that just leaves is no error.
    pub(crate) async fn drive(mut self, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let Some(rpc) = self.rpc.as_mut() else { return Ok(()) };
        let mut rpc = AssertUnwindSafe(rpc).catch_unwind();
        let mut outcome = tokio::select! {
            biased;
            outcome = &mut rpc => Some(outcome),
            () = self.meter.ending(LINGER) => None,
            () = stop => None,
        };
        if outcome.is_none() {
            // Fails every call that waits, releases every capability, and queues an Abort message for the peer.
            if let Some(disconnector) = self.disconnector.as_mut() {
                let _ = catch_unwind(AssertUnwindSafe(|| disconnector.now_or_never()));
            }
            outcome = tokio::time::timeout(LINGER, &mut rpc).await.ok();
        }
        if let Some(Err(_)) = outcome {
            return Err(Error::Panicked);
        }
        let reason = self.meter.reason().or_else(|| outcome.and_then(|ended| ended.ok()).and_then(Result::err));
        match reason {
            Some(reason) if reason.kind != ErrorKind::Disconnected => Err(Error::Connection(Fault::parse(&reason))),
            _ => Ok(()),
        }
    }
}

impl Drop for RpcConnection {
    fn drop(&mut self) {
        // The RPC system's tables and its running calls refer to one another: unless it is told to disconnect, dropping it
        // releases none of them. Server objects' own `Drop` runs in here and may panic.
        let (rpc, disconnector) = (self.rpc.take(), self.disconnector.take());
        let _ = catch_unwind(AssertUnwindSafe(move || {
            if let Some(disconnector) = disconnector {
                let _ = disconnector.now_or_never();
            }
            drop(rpc);
        }));
        // Whoever still holds a capability of the peer's keeps the socket open, but not the connection.
        let _ = self.socket.shutdown(rustix::net::Shutdown::Both);
        self.meter.close();
    }
}
