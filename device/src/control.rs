//! The control link: a `DeviceBackend` capability (schema/device.capnp) that lets its holder watch this backend.
//!
//! Runs on a thread of its own, and sees counters only.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use capnp::Error as CapnpError;
use schema::device_capnp::device_backend;

use crate::error::BoxError;
use crate::stats::Stats;

struct Backend(Arc<Stats>);

impl device_backend::Server for Backend {
    async fn info(
        self: Rc<Self>,
        _params: device_backend::InfoParams,
        mut results: device_backend::InfoResults,
    ) -> Result<(), CapnpError> {
        let stats = &self.0;
        let mut info = results.get().init_info();
        info.set_virtio_type(stats.virtio_id);
        info.set_features(stats.features);
        info.set_acked_features(stats.acked.load(Ordering::Relaxed));
        info.set_connected(stats.connected.load(Ordering::Relaxed));
        let mut queues = info.init_queues(u32::try_from(stats.rings.len()).unwrap_or(0));
        for (index, ring) in (0..queues.len()).zip(&stats.rings) {
            let mut queue = queues.reborrow().get(index);
            queue.set_started(ring.started.load(Ordering::Relaxed));
            queue.set_chains(ring.chains.load(Ordering::Relaxed));
            queue.set_bytes(ring.bytes.load(Ordering::Relaxed));
            queue.set_errors(ring.errors.load(Ordering::Relaxed));
        }
        Ok(())
    }
}

/// What the thread needs and makes before it is confined.
pub(crate) type Prepared = Result<(ipc::Runtime, ipc::LinkSocket), BoxError>;

/// Makes it.
pub(crate) fn prepare(link: OwnedFd) -> Prepared {
    Ok((ipc::Runtime::new()?, ipc::LinkSocket::new(link)?))
}

/// Serves the link until its other end has gone.
pub(crate) fn serve(prepared: Prepared, stats: Arc<Stats>) -> Result<(), BoxError> {
    let (runtime, link) = prepared?;
    let backend: device_backend::Client = capnp_rpc::new_client(Backend(stats));
    Ok(runtime.run(ipc::serve_link(link, ipc::Limits::default(), backend.client))?)
}
