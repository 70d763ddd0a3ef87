//! The vhost-user frontend: the requests of one device in their order, each answer checked.
//!
//! May touch the device's channel, and pass on the fd of guest RAM and eventfds. Must never see guest RAM itself,
//! nor trust an answer beyond the bounds that are checked here. Each operation is through, or failed, by its
//! deadline.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::channel::Channel;
use super::regs::{Activation, ConfigWrite, Offer};
use super::ring::Ring;
use super::wire::{
    CONFIG_HEADER, OFFERABLE, Request, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, ask, longs, memory_table,
    protocol, request, user_address, words,
};
use super::{Error, MAX_CONFIG, MAX_QUEUES, RamRegion, kinds};

/// The fewest descriptors that are tried for a ring.
const SHORTEST_RING: u16 = 2;

/// A ring as the backend gets it.
pub(super) struct Vring {
    pub ring: Ring,
    /// Written when the driver notifies; the backend waits on it.
    pub kick: EventFd,
    /// Written by the backend to interrupt the guest.
    pub call: EventFd,
}

/// What the device's user said about it.
pub(super) struct DeviceOptions {
    pub virtio_id: u32,
    pub queue_size: u16,
    pub queues: Option<u16>,
    pub config: Option<Vec<u8>>,
}

/// The vhost-user connection of one device.
pub(super) struct Frontend {
    pub(super) channel: Channel,
    memfd: Arc<OwnedFd>,
    regions: Vec<RamRegion>,
    /// The backend offers VHOST_USER_F_PROTOCOL_FEATURES.
    extended: bool,
    /// Protocol features in use.
    protocol: u64,
    /// Length of the configuration space that the backend serves; 0: none.
    config_size: usize,
}

impl Frontend {
    pub(super) fn new(channel: Channel, memfd: Arc<OwnedFd>, regions: Vec<RamRegion>) -> Self {
        Self { channel, memfd, regions, extended: false, protocol: 0, config_size: 0 }
    }

    /// Owner, features, protocol features, queue count, configuration space, size of the rings: all that is needed to know what
    /// to offer to a driver.
    pub(super) fn handshake(&mut self, options: &DeviceOptions, deadline: Instant) -> Result<Offer, Error> {
        self.set(request::SET_OWNER, &[], &[], deadline)?;
        let features = self.get(request::GET_FEATURES, &[], deadline)?;
        if features & VIRTIO_F_VERSION_1 == 0 {
            return Err(Error::Legacy);
        }
        self.extended = features & VHOST_USER_F_PROTOCOL_FEATURES != 0;
        if self.extended {
            let offered = self.get(request::GET_PROTOCOL_FEATURES, &[], deadline)?;
            let mut wanted = offered & protocol::WANTED;
            if wanted & protocol::CONFIG == 0 {
                wanted &= !protocol::BACKEND_REQ; // Its one use here is to say that the space changed.
            }
            // REPLY_ACK holds from the next request on, so this one goes without.
            self.set(request::SET_PROTOCOL_FEATURES, &longs(&[wanted]), &[], deadline)?;
            self.protocol = wanted;
        }
        let queues = self.queues(options, deadline)?;
        if self.has(protocol::BACKEND_REQ)
            && let Some(theirs) = self.channel.requests.take_theirs()
        {
            self.set(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()], deadline)?;
        }
        let config = match self.find_config(options.virtio_id, deadline)? {
            Some(config) => config,
            None => options.config.clone().unwrap_or_default(),
        };
        let hidden = kinds::hidden(options.virtio_id, queues, config.len());
        let queue_size = self.ring_size(options.queue_size, queues, deadline)?;
        Ok(Offer { features: features & OFFERABLE & !hidden, queues, queue_size, config })
    }

    /// The longest rings that the backend takes, of all queues, up to those that are asked for. No request asks for that, so
    /// they are tried, each half as long as the one before, while nobody uses them. Without REPLY_ACK nothing would tell.
    fn ring_size(&mut self, asked: u16, queues: u16, deadline: Instant) -> Result<u16, Error> {
        if !self.has(protocol::REPLY_ACK) {
            return Ok(asked);
        }
        let (mut size, mut tried) = (asked, String::new());
        loop {
            let taken = (0..queues).try_for_each(|index| {
                self.set(request::SET_VRING_NUM, &words(&[index.into(), size.into()]), &[], deadline)
            });
            let error = match taken {
                Ok(()) => return Ok(size),
                Err(error @ (Error::Refused { .. } | Error::Closed { .. })) => error,
                Err(error) => return Err(error),
            };
            if !tried.is_empty() {
                tried.push_str(", ");
            }
            tried.push_str(&size.to_string());
            size /= 2;
            if size < SHORTEST_RING || matches!(error, Error::Closed { .. }) {
                return Err(Error::RingSizes { tried, source: Box::new(error) });
            }
        }
    }

    fn queues(&mut self, options: &DeviceOptions, deadline: Instant) -> Result<u16, Error> {
        let id = options.virtio_id;
        if !self.has(protocol::MQ) {
            return Ok(options.queues.unwrap_or_else(|| kinds::least_queues(id)));
        }
        let has = self.get(request::GET_QUEUE_NUM, &[], deadline)?;
        let asked = options.queues.unwrap_or_else(|| kinds::default_queues(id, has));
        if has == 0 || u64::from(asked) > kinds::most_queues(id, has) {
            return Err(Error::TooFewQueues { asked, has });
        }
        Ok(asked.min(MAX_QUEUES))
    }

    /// Starts `vrings`: features, memory table, all sizes, then each ring's addresses, index, call and kick, then
    /// enables them.
    pub(super) fn activate(
        &mut self,
        activation: &Activation,
        vrings: &[Vring],
        deadline: Instant,
    ) -> Result<(), Error> {
        let transport = if self.extended { VHOST_USER_F_PROTOCOL_FEATURES } else { 0 };
        self.set(request::SET_FEATURES, &longs(&[activation.features | transport]), &[], deadline)?;
        let memfd = Arc::clone(&self.memfd);
        let fds: Vec<BorrowedFd<'_>> = self.regions.iter().map(|_| memfd.as_fd()).collect();
        let table = memory_table(&self.regions);
        self.set(request::SET_MEM_TABLE, &table, &fds, deadline)?;
        for Vring { ring, .. } in vrings {
            let size = words(&[ring.index.into(), ring.size.into()]);
            self.set(request::SET_VRING_NUM, &size, &[], deadline)?;
        }
        for Vring { ring, kick, call } in vrings {
            let mut addresses = words(&[ring.index.into(), 0]);
            let [desc, used, avail] = [ring.desc, ring.used, ring.avail].map(user_address);
            addresses.extend(longs(&[desc, used, avail, 0]));
            self.set(request::SET_VRING_ADDR, &addresses, &[], deadline)?;
            let base = words(&[ring.index.into(), 0]);
            self.set(request::SET_VRING_BASE, &base, &[], deadline)?;
            let index = longs(&[ring.index.into()]);
            self.set(request::SET_VRING_CALL, &index, &[borrow(call)], deadline)?;
            self.set(request::SET_VRING_KICK, &index, &[borrow(kick)], deadline)?;
        }
        self.enable(vrings, true, deadline)?;
        self.synchronise(deadline)
    }

    /// Stops `vrings`. Once this returns, the backend no longer touches them.
    pub(super) fn stop(&mut self, vrings: &[Vring], deadline: Instant) -> Result<(), Error> {
        self.enable(vrings, false, deadline)?;
        for Vring { ring, .. } in vrings {
            let state = words(&[ring.index.into(), 0]);
            // Index of the ring, then where the backend stopped: of no use after a reset.
            let stopped = self.get(request::GET_VRING_BASE, &state, deadline)?;
            if stopped & 0xffff_ffff != u64::from(ring.index) {
                return Err(wrong(request::GET_VRING_BASE, "it names another ring"));
            }
        }
        Ok(())
    }

    /// Passes on what the driver wrote. A backend may refuse it, as a device may ignore it. Returns the
    /// configuration space as it is then.
    pub(super) fn write_config(&mut self, write: &ConfigWrite, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        if self.config_size == 0 {
            return Ok(None);
        }
        let mut body = words(&[write.offset(), u32::try_from(write.bytes().len()).unwrap_or(u32::MAX), 0]);
        body.extend_from_slice(write.bytes());
        match self.set(request::SET_CONFIG, &body, &[], deadline) {
            Ok(()) | Err(Error::Refused { .. }) => self.read_config(deadline),
            Err(error) => Err(error),
        }
    }

    /// The configuration space as it is now, if the backend serves one.
    pub(super) fn read_config(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        match self.config_size {
            0 => Ok(None),
            size => self.get_config(size, deadline),
        }
    }

    /// Finds how long a configuration space the backend serves, and reads it. It refuses more than it has; which
    /// lengths are likely depends on the device type, and where none of those fits, halving finds the longest.
    fn find_config(&mut self, id: u32, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        if !self.has(protocol::CONFIG) {
            return Ok(None);
        }
        let mut found = None;
        for &size in kinds::config_sizes(id) {
            found = self.get_config(size, deadline)?;
            if found.is_some() {
                break;
            }
        }
        if found.is_none() {
            found = self.longest_config(deadline)?;
        }
        self.config_size = found.as_ref().map_or(0, Vec::len);
        Ok(found)
    }

    fn longest_config(&mut self, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        let mut found = None;
        let (mut served, mut refused) = (0, MAX_CONFIG + 1);
        while refused - served > 1 {
            let size = if refused > MAX_CONFIG { MAX_CONFIG } else { (served + refused) / 2 };
            match self.get_config(size, deadline)? {
                Some(config) => (served, found) = (size, Some(config)),
                None => refused = size,
            }
        }
        Ok(found)
    }

    /// The first `size` bytes of the configuration space; none if the backend refuses.
    fn get_config(&mut self, size: usize, deadline: Instant) -> Result<Option<Vec<u8>>, Error> {
        let wire_size = u32::try_from(size).unwrap_or(u32::MAX);
        let mut body = words(&[0, wire_size, 0]);
        body.resize(CONFIG_HEADER + size, 0);
        let answer = self.ask(request::GET_CONFIG, &body, deadline)?;
        // Refused: no body at all, or (as the vhost crate has it) one that says zero bytes.
        if answer.is_empty() || answer.get(4..) == Some(&[0; 8]) {
            return Ok(None);
        }
        let fits = answer.len() == CONFIG_HEADER + size && answer.get(..8) == body.get(..8);
        let config = answer.get(CONFIG_HEADER..).filter(|_| fits);
        let config = config.ok_or(wrong(request::GET_CONFIG, "it is not the part asked for"))?;
        Ok(Some(config.to_vec()))
    }

    fn enable(&mut self, vrings: &[Vring], on: bool, deadline: Instant) -> Result<(), Error> {
        // Without VHOST_USER_F_PROTOCOL_FEATURES rings are always enabled, and the request does not exist.
        if !self.extended {
            return Ok(());
        }
        for Vring { ring, .. } in vrings {
            let state = words(&[ring.index.into(), on.into()]);
            self.set(request::SET_VRING_ENABLE, &state, &[], deadline)?;
        }
        Ok(())
    }

    /// Sends a request that has no answer of its own, and checks that it succeeded where that can be known.
    fn set(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<(), Error> {
        let acked = self.has(protocol::REPLY_ACK);
        self.channel.send(request, &ask(request, acked, body), fds, deadline)?;
        if !acked {
            return Ok(());
        }
        let answer = self.channel.receive(request, deadline)?;
        match number(request, &answer)? {
            0 => Ok(()),
            code => Err(Error::Refused { request: request.1, code }),
        }
    }

    /// Sends a request whose answer is 64 bits.
    fn get(&mut self, request: Request, body: &[u8], deadline: Instant) -> Result<u64, Error> {
        let answer = self.ask(request, body, deadline)?;
        number(request, &answer)
    }

    fn ask(&mut self, request: Request, body: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
        self.channel.send(request, &ask(request, false, body), &[], deadline)?;
        self.channel.receive(request, deadline)
    }

    /// Without REPLY_ACK: a backend handles requests in their order, so once it has answered this one it has
    /// handled all before.
    fn synchronise(&mut self, deadline: Instant) -> Result<(), Error> {
        if self.has(protocol::REPLY_ACK) {
            return Ok(());
        }
        self.get(request::GET_FEATURES, &[], deadline).map(drop)
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }
}

fn number(request: Request, body: &[u8]) -> Result<u64, Error> {
    let bytes = <[u8; 8]>::try_from(body);
    bytes.map(u64::from_le_bytes).map_err(|_| wrong(request, "it is not 64 bits long"))
}

fn wrong(request: Request, why: &'static str) -> Error {
    Error::Protocol { request: request.1, why }
}

/// The fd of `event`, for as long as it is there.
fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open as long as its owner lives, and the result borrows from that owner.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
