//! The vhost-user protocol's backend side (QEMU docs/interop/vhost-user): what each request does.
//!
//! Runs on the protocol thread. It sees the frontend's messages and descriptors, never a byte of a ring: rings are
//! handed whole to their workers. Every refusal ends the connection, and with it the process.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::Device;
use crate::error::Error;
use crate::memory::{MAX_SLOTS, Memory, MemoryError, Sealing};
use crate::ring::{MAX_RING_SIZE, Setup};
use crate::stats::Stats;
use crate::worker::{Mailbox, Worker};

/// VHOST_USER_F_PROTOCOL_FEATURES.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features that are offered.
const OFFERED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// The requests that belong to what is offered, by number: 1 GET_FEATURES to 5 SET_MEM_TABLE, 8 SET_VRING_NUM to 18
/// SET_VRING_ENABLE, 24 GET_CONFIG, 25 SET_CONFIG, 36 GET_MAX_MEM_SLOTS to 38 REM_MEM_REG.
const REQUESTS: [RangeInclusive<u32>; 4] = [1..=5, 8..=18, 24..=25, 36..=38];

/// Whether a request may go on to the vhost crate. For those that nobody offered it makes system calls that no filter here
/// allows (SET_BACKEND_REQ_FD, GPU_SET_SOCKET: getsockopt): what is not known ends the connection before.
pub(crate) fn is_known(request: u32) -> bool {
    REQUESTS.iter().any(|range| range.contains(&request))
}

/// The features that this crate itself gives to every device.
pub(crate) const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX | PROTOCOL_FEATURES;

/// User addresses of a ring's three parts.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    descriptors: u64,
    available: u64,
    used: u64,
}

/// What the frontend has said of one ring.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    base: u16,
    addresses: Option<Addresses>,
    kick: Option<Arc<OwnedFd>>,
    call: Option<Arc<OwnedFd>>,
    error: Option<Arc<OwnedFd>>,
    enabled: bool,
    running: bool,
}

/// The state of one connection.
pub(crate) struct Handler<D: Device> {
    device: D,
    stats: Arc<Stats>,
    features: u64,
    protocol_features: u64,
    sealing: Sealing,
    memory: Option<Arc<Memory>>,
    vrings: Vec<Vring>,
    workers: Vec<Arc<Mailbox>>,
    /// Why the last request failed: more than the vhost crate's error can carry.
    pub failure: Option<Error>,
}

impl<D: Device> Handler<D> {
    pub fn new(device: D, stats: Arc<Stats>, sealing: Sealing, workers: Vec<Arc<Mailbox>>) -> Handler<D> {
        let vrings = stats.rings.iter().map(|_| Vring::default()).collect();
        let (features, protocol_features) = (0, 0);
        Handler { device, stats, features, protocol_features, sealing, memory: None, vrings, workers, failure: None }
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring, Error> {
        let vring = usize::try_from(index).ok().and_then(|at| self.vrings.get_mut(at));
        vring.ok_or(Error::Ring { index, why: "the device has no such ring" })
    }

    /// A ring that must not be running, as the request changes what its worker relies on.
    fn stopped(&mut self, index: u32) -> Result<&mut Vring, Error> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::Ring { index, why: "it is running: stop it first (GET_VRING_BASE)" });
        }
        Ok(vring)
    }

    /// The worker of a ring, and the ring's number there.
    fn worker(&self, index: u32) -> Result<(Arc<Mailbox>, usize), Error> {
        let ring = index as usize; // u32 into 64 bits
        let worker = self.workers.get(ring / D::Worker::RINGS).cloned();
        let worker = worker.ok_or(Error::Ring { index, why: "the device has no such ring" })?;
        Ok((worker, ring % D::Worker::RINGS))
    }

    /// Takes the ring from its worker; when this returns, nobody touches it any more.
    fn stop(&mut self, index: u32) -> Result<(), Error> {
        if !self.vring(index)?.running {
            return Ok(());
        }
        let (worker, ring) = self.worker(index)?;
        let base = worker.stop(ring)?;
        let vring = self.vring(index)?;
        vring.running = false;
        if let Some(base) = base {
            vring.base = base;
        }
        Ok(())
    }

    /// Hands the ring to its worker once everything about it is known.
    fn start_if_complete(&mut self, index: u32) -> Result<(), Error> {
        let refused = |why| Error::Ring { index, why };
        let (features, memory) = (self.features, self.memory.clone());
        let stats = self.stats.rings.get(index as usize).cloned();
        let (worker, ring) = self.worker(index)?;
        let vring = self.vring(index)?;
        let (Some(memory), Some(stats), Some(at), Some(kick)) = (memory, stats, vring.addresses, &vring.kick) else {
            return Ok(());
        };
        if vring.running || !vring.enabled || vring.size == 0 {
            return Ok(());
        }
        if features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(refused("the driver is a legacy one (no VIRTIO_F_VERSION_1), which is not supported"));
        }
        let size = u64::from(vring.size);
        // Virtio 1.2, 2.7: 16 bytes a descriptor; 2 an available, 8 a used entry, each ring with 6 bytes around.
        let part = |user, len, why| memory.translate(user, len).ok_or(refused(why));
        let setup = Setup {
            features,
            size: vring.size,
            descriptors: part(at.descriptors, 16 * size, "its descriptors do not lie in the guest's memory")?,
            available: part(at.available, 6 + 2 * size, "its available ring does not lie in the guest's memory")?,
            used: part(at.used, 6 + 8 * size, "its used ring does not lie in the guest's memory")?,
            base: vring.base,
            kick: Arc::clone(kick),
            call: vring.call.clone(),
            error: vring.error.clone(),
            stats,
            memory,
        };
        worker.start(ring, setup)?.map_err(refused)?;
        self.vring(index)?.running = true;
        Ok(())
    }

    /// Changes what may change under a running ring: it is stopped around the change.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<(), Error> {
        self.stop(index)?;
        change(self.vring(index)?);
        self.start_if_complete(index)
    }

    fn indices(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.vrings.len()).unwrap_or(0)
    }

    /// Enables or disables a ring.
    pub fn enable(&mut self, index: u32, enable: bool) -> Result<(), Error> {
        self.change(index, |vring| vring.enabled = enable)
    }

    /// Whether SET_VRING_ENABLE comes from a frontend that has negotiated protocol features, but not SET_FEATURES yet.
    /// QEMU enables a network device's rings at this point, and the vhost crate (0.18) takes it for an error.
    pub fn takes_early_enable(&self) -> bool {
        self.protocol_features != 0 && self.features == 0
    }

    /// Whether answers to requests without one of their own were agreed on.
    pub fn has_reply_ack(&self) -> bool {
        self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Stops everything: the frontend has gone.
    pub fn shut_down(&mut self) -> Result<(), Error> {
        self.indices().try_for_each(|index| self.stop(index))
    }

    fn offered(&self) -> u64 {
        self.stats.features
    }

    fn take_features(&mut self, features: u64) -> Result<(), Error> {
        if features & !self.offered() != 0 {
            return Err(Error::Features(features & !self.offered()));
        }
        if features == self.features {
            return Ok(());
        }
        if self.vrings.iter().any(|vring| vring.running) {
            return Err(Error::FeaturesLate);
        }
        self.device.set_features(features).map_err(Error::Device)?;
        self.features = features;
        self.stats.acked.store(features, Ordering::Relaxed);
        if features & PROTOCOL_FEATURES == 0 {
            // Then there is no SET_VRING_ENABLE: rings start enabled.
            self.vrings.iter_mut().for_each(|vring| vring.enabled = true);
        }
        Ok(())
    }

    fn take_memory(&mut self, table: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<(), Error> {
        let memory = Memory::map(table, files, self.sealing)?;
        self.shut_down()?;
        self.memory = Some(Arc::new(memory));
        self.indices().try_for_each(|index| self.start_if_complete(index))
    }

    /// Goes on with other memory, region by region: a ring that does not lie in what is there now waits for what comes.
    fn exchange_memory(&mut self, memory: Result<Memory, MemoryError>) -> Result<(), Error> {
        let memory = memory?;
        self.shut_down()?;
        self.memory = Some(Arc::new(memory));
        self.indices().try_for_each(|index| match self.start_if_complete(index) {
            Err(Error::Ring { .. }) => Ok(()),
            started => started,
        })
    }

    fn take_size(&mut self, index: u32, size: u32) -> Result<(), Error> {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= MAX_RING_SIZE => self.stopped(index)?.size = size,
            _ => return Err(Error::Ring { index, why: "its size is no power of two up to 1024" }),
        }
        Ok(())
    }

    fn take_base(&mut self, index: u32, base: u32) -> Result<(), Error> {
        let base = u16::try_from(base).map_err(|_| Error::Ring { index, why: "its base is past 65535" })?;
        self.stopped(index)?.base = base;
        Ok(())
    }

    fn take_event(&mut self, index: u8, file: Option<File>) -> Result<Option<Arc<OwnedFd>>, Error> {
        let index = u32::from(index);
        self.vring(index)?;
        let event = file.map(crate::event::adopt).transpose();
        let event = event.map_err(|_| Error::Ring { index, why: "its descriptor cannot be made non-blocking" })?;
        Ok(event.map(Arc::new))
    }

    /// Remembers why, and tells the vhost crate that there is a why.
    fn report<T>(&mut self, result: Result<T, Error>) -> VhostResult<T> {
        result.map_err(|error| {
            self.failure = Some(error);
            VhostError::BackendInternalError
        })
    }
}

fn unsupported<T>() -> VhostResult<T> {
    Err(VhostError::InvalidOperation("it was not offered"))
}

impl<D: Device> VhostUserBackendReqHandlerMut for Handler<D> {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        // Long deprecated, and to be taken as "disable all rings".
        let result = self.shut_down();
        self.vrings.iter_mut().for_each(|vring| vring.enabled = false);
        self.report(result)
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        let result = self.take_features(features);
        self.report(result)
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(OFFERED)
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        let beyond = features & !OFFERED.bits();
        self.protocol_features = features;
        let result = if beyond == 0 { Ok(()) } else { Err(Error::Features(beyond)) };
        self.report(result)
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(self.vrings.len() as u64)
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<u64>>> {
        let result = self.take_memory(table, files);
        self.report(result).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let result = self.take_size(index, num);
        self.report(result)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        if !flags.is_empty() {
            return unsupported(); // dirty logging
        }
        let result = self
            .stopped(index)
            .map(|vring| vring.addresses = Some(Addresses { descriptors, available, used }))
            .and_then(|()| self.start_if_complete(index));
        self.report(result)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let result = self.take_base(index, base);
        self.report(result)
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let result = self.stop(index).and_then(|()| {
            let vring = self.vring(index)?;
            // The ring is started again by a new kick descriptor.
            vring.kick = None;
            Ok(VhostUserVringState::new(index, u32::from(vring.base)))
        });
        self.report(result)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        let result = self.take_event(index, file).and_then(|kick| match kick {
            Some(kick) => self.change(u32::from(index), |vring| vring.kick = Some(kick)),
            None => Err(Error::Ring { index: index.into(), why: "a ring without kicks (polling) is not supported" }),
        });
        self.report(result)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        let result =
            self.take_event(index, file).and_then(|call| self.change(u32::from(index), |vring| vring.call = call));
        self.report(result)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        let result =
            self.take_event(index, file).and_then(|error| self.change(u32::from(index), |vring| vring.error = error));
        self.report(result)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        let result = self.enable(index, enable);
        self.report(result)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> VhostResult<Vec<u8>> {
        // The vhost crate has bounded both by the protocol's 256 bytes. What lies behind the device's own is zero.
        let config = self.device.config();
        let bytes = config.iter().copied().chain(std::iter::repeat(0));
        Ok(bytes.skip(offset as usize).take(size as usize).collect())
    }

    fn set_config(&mut self, _offset: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> VhostResult<()> {
        // No field of these devices is writable; a driver that writes anyway changes nothing.
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        unsupported()
    }

    fn set_gpu_socket(&mut self, _socket: GpuBackend) -> VhostResult<()> {
        unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> VhostResult<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        unsupported()
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(MAX_SLOTS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<u64>> {
        let memory = self.memory.as_deref().map_or_else(Memory::default, Memory::clone);
        let result = self.exchange_memory(memory.with(region, file, self.sealing));
        self.report(result).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let memory = self.memory.as_deref().map_or_else(Memory::default, Memory::clone);
        let result = self.exchange_memory(memory.without(region));
        self.report(result)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> VhostResult<Option<File>> {
        unsupported()
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        unsupported()
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        unsupported()
    }
}
