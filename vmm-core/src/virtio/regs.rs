//! The register machine of one virtio-mmio version 2 device (Virtio 1.2, 4.2.2), without any I/O.
//!
//! Total: a guest may access any offset with any size and value in any order, and each access has one defined
//! result. Only aligned 32-bit accesses reach control registers; all others read as zero and write nothing.
//! Sees what a driver writes to registers; must never see guest RAM.

use super::ring::Ring;
use super::wire::VIRTIO_F_VERSION_1;
use super::{MAX_CONFIG, MAX_QUEUES, RamRegion};

/// Bits of the Status register (Virtio 1.2, 2.1).
pub(super) mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Offsets of the control registers (Virtio 1.2, table 4.1).
pub(super) mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// "VOLT", little-endian: virtio-mmio vendors have no registry.
const VENDOR: u32 = 0x544c_4f56;
/// InterruptStatus: a ring was used.
const INTERRUPT_VRING: u32 = 1;
/// InterruptStatus: the configuration space or NEEDS_RESET changed.
const INTERRUPT_CONFIG: u32 = 2;

/// What a register write asks of the world outside the registers. A vCPU's thread makes it, so it owns no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The driver set DRIVER_OK: start what [`Registers::activation`] says.
    Activate,
    /// The driver wrote zero to Status while rings ran: stop them, then call [`Registers::reset`].
    Reset,
    /// The driver wrote to the configuration space.
    WriteConfig(ConfigWrite),
}

/// One write of 1, 2, 4 or 8 bytes within the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConfigWrite {
    offset: u32,
    bytes: [u8; 8],
    width: usize,
}

impl ConfigWrite {
    /// Where, within the space.
    pub(super) fn offset(&self) -> u32 {
        self.offset
    }

    /// What the driver wrote.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.width).unwrap_or_default()
    }
}

/// What a driver settled on by DRIVER_OK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Activation {
    /// Feature bits the driver took, a subset of what it was offered.
    pub features: u64,
    /// The queues it made ready, each checked against guest RAM.
    pub rings: Vec<Ring>,
}

/// What a device offers its driver, known once the backend has been asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Offer {
    /// Virtio feature bits.
    pub features: u64,
    /// Number of virtqueues.
    pub queues: u16,
    /// What QueueNumMax says of each.
    pub queue_size: u16,
    /// Configuration space.
    pub config: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    size: u16,
    desc: u64,
    avail: u64,
    used: u64,
    ready: bool,
}

/// The registers and the state behind them.
pub(super) struct Registers {
    device_id: u32,
    regions: Vec<RamRegion>,
    queue_max: u16,
    offered: u64,
    config: Vec<u8>,
    generation: u32,
    /// The backend is gone for good: NEEDS_RESET stays, also over a reset.
    needs_reset: bool,
    // All that a reset clears:
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    config_pending: bool,
    queues: Vec<Queue>,
}

impl Registers {
    /// A device that offers nothing yet.
    pub(super) fn new(device_id: u32, regions: Vec<RamRegion>) -> Self {
        Self {
            device_id,
            regions,
            queue_max: 0,
            offered: 0,
            config: Vec::new(),
            generation: 0,
            needs_reset: false,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            config_pending: false,
            queues: Vec::new(),
        }
    }

    /// Takes what the backend offers. Once, after the handshake.
    pub(super) fn offer(&mut self, mut offer: Offer) {
        offer.config.truncate(MAX_CONFIG);
        self.offered = offer.features;
        self.queue_max = offer.queue_size;
        self.config = offer.config;
        self.queues = vec![Queue::default(); usize::from(offer.queues.min(MAX_QUEUES))];
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether the driver has set DRIVER_OK, so that rings are, or are being, started.
    pub(super) fn is_live(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    /// Back to the state after power-on (Virtio 1.2, 4.2.2.1), but for what the backend offers.
    pub(super) fn reset(&mut self) {
        self.status = 0;
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.config_pending = false;
        self.queues.fill(Queue::default());
    }

    /// The backend is gone. True: the driver has to be told by an interrupt (Virtio 1.2, 2.1.2).
    pub(super) fn set_needs_reset(&mut self) -> bool {
        self.needs_reset = true;
        self.config_pending |= self.is_live();
        self.is_live()
    }

    /// Takes a fresh copy of the configuration space. True: it differs and the driver has to be told.
    pub(super) fn update_config(&mut self, mut config: Vec<u8>) -> bool {
        config.truncate(MAX_CONFIG);
        if config == self.config {
            return false;
        }
        self.config = config;
        self.generation = self.generation.wrapping_add(1);
        self.config_pending |= self.is_live();
        self.is_live()
    }

    /// A guest reads `data.len()` bytes at `offset` of the device's registers.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                let rest = usize::try_from(start).ok().and_then(|start| self.config.get(start..));
                for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
                    *to = *from;
                }
            }
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *word = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.selected();
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => 2,
            reg::DEVICE_ID => self.device_id,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            reg::QUEUE_NUM_MAX => queue.map_or(0, |_| u32::from(self.queue_max)),
            reg::QUEUE_READY => u32::from(queue.is_some_and(|queue| queue.ready)),
            // A backend interrupts by irqfd, which leaves no trace here: while rings run, any of them may have
            // been used.
            reg::INTERRUPT_STATUS => {
                let vring = if self.is_live() { INTERRUPT_VRING } else { 0 };
                vring | if self.config_pending { INTERRUPT_CONFIG } else { 0 }
            }
            reg::STATUS => self.status | if self.needs_reset { status::NEEDS_RESET } else { 0 },
            // No shared memory region (Virtio 1.2, 4.2.2: length and base are all ones).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    /// A guest writes `data` at `offset` of the device's registers. Neither allocates nor frees.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Action> {
        if let Some(start) = offset.checked_sub(reg::CONFIG) {
            return self.write_config(start, data);
        }
        if !offset.is_multiple_of(4) {
            return None;
        }
        let value = u32::from_le_bytes(<[u8; 4]>::try_from(data).ok()?);
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::INTERRUPT_ACK if value & INTERRUPT_CONFIG != 0 => self.config_pending = false,
            reg::STATUS => return self.write_status(value),
            reg::QUEUE_NUM..=reg::QUEUE_DEVICE_HIGH => self.write_queue(offset, value),
            _ => {}
        }
        None
    }

    /// Before FEATURES_OK the driver may read only (Virtio 1.2, 3.1.1).
    fn write_config(&self, start: u64, data: &[u8]) -> Option<Action> {
        let end = usize::try_from(start).ok()?.checked_add(data.len())?;
        let allowed = self.status & status::FEATURES_OK != 0 && !self.needs_reset;
        if end > self.config.len() || !allowed || !matches!(data.len(), 1 | 2 | 4 | 8) {
            return None;
        }
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        Some(Action::WriteConfig(ConfigWrite { offset: u32::try_from(start).ok()?, bytes, width: data.len() }))
    }

    /// The driver may only add bits, in their order; each bit that comes too early is ignored.
    fn write_status(&mut self, value: u32) -> Option<Action> {
        if value == 0 {
            if self.is_live() {
                return Some(Action::Reset);
            }
            self.reset();
            return None;
        }
        let was_live = self.is_live();
        self.status |= value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let greeted = status::ACKNOWLEDGE | status::DRIVER;
        if value & status::FEATURES_OK != 0
            && self.status & greeted == greeted
            && self.driver_features & !self.offered == 0
            && self.driver_features & VIRTIO_F_VERSION_1 != 0
        {
            self.status |= status::FEATURES_OK;
        }
        let hopeless = status::FAILED | status::NEEDS_RESET;
        if value & status::DRIVER_OK == 0
            || was_live
            || self.needs_reset
            || self.status & status::FEATURES_OK == 0
            || self.status & hopeless != 0
        {
            return None;
        }
        self.status |= status::DRIVER_OK;
        Some(Action::Activate)
    }

    /// Queue registers are frozen while the queue is ready, and all of them from DRIVER_OK on.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let frozen = self.is_live();
        let queue_max = self.queue_max;
        let (Ok(index), false) = (u16::try_from(self.queue_sel), frozen) else { return };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return };
        match offset {
            reg::QUEUE_READY if value == 0 => queue.ready = false,
            reg::QUEUE_READY if !queue.ready => {
                queue.ready = queue.ring(index).is_within(&self.regions);
                if !queue.ready {
                    self.status |= status::NEEDS_RESET;
                }
            }
            _ if queue.ready => {}
            // A size we cannot have is no size: the queue will not become ready with another than the driver uses.
            reg::QUEUE_NUM => {
                queue.size =
                    u16::try_from(value).ok().filter(|size| size.is_power_of_two() && *size <= queue_max).unwrap_or(0);
            }
            reg::QUEUE_DESC_LOW => set_half(&mut queue.desc, 0, value),
            reg::QUEUE_DESC_HIGH => set_half(&mut queue.desc, 1, value),
            reg::QUEUE_DRIVER_LOW => set_half(&mut queue.avail, 0, value),
            reg::QUEUE_DRIVER_HIGH => set_half(&mut queue.avail, 1, value),
            reg::QUEUE_DEVICE_LOW => set_half(&mut queue.used, 0, value),
            reg::QUEUE_DEVICE_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }

    /// What the driver settled on. From DRIVER_OK to the next reset it stays the same.
    pub(super) fn activation(&self) -> Activation {
        Activation { features: self.driver_features, rings: self.rings() }
    }

    /// The rings that are ready.
    pub(super) fn rings(&self) -> Vec<Ring> {
        let ready = (0..).zip(&self.queues).filter(|(_, queue)| queue.ready);
        ready.map(|(index, queue)| queue.ring(index)).collect()
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }
}

impl Queue {
    fn ring(&self, index: u16) -> Ring {
        Ring { index, size: self.size, desc: self.desc, avail: self.avail, used: self.used }
    }
}

/// The 32 bits of `value` that `select` names; zero past the 64 there are.
fn half(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// Replaces the 32 bits of `value` that `select` names; nothing past the 64 there are.
fn set_half(value: &mut u64, select: u32, bits: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(bits),
        1 => *value = (*value & 0xffff_ffff) | (u64::from(bits) << 32),
        _ => {}
    }
}
