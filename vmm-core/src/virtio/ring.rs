//! Where a split virtqueue's three parts lie, and whether each is whole inside one region of guest RAM.
//! Arithmetic on addresses only; never reads what is there.

use super::RamRegion;

/// A split virtqueue that a driver has set up (Virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    /// Index of the virtqueue.
    pub index: u16,
    /// Descriptors.
    pub size: u16,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Guest physical address of the available ring.
    pub avail: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
}

impl Ring {
    /// Whether a backend may be told to use this ring: its size is a power of two, and each part is aligned
    /// (Virtio 1.2, 2.7) and lies whole in one region, the event-idx fields included, negotiated or not.
    pub(super) fn is_within(&self, regions: &[RamRegion]) -> bool {
        let n = u64::from(self.size);
        let parts = [(self.desc, 16, 16 * n), (self.avail, 2, 2 + 2 + 2 * n + 2), (self.used, 4, 2 + 2 + 8 * n + 2)];
        self.size.is_power_of_two()
            && parts.iter().all(|&(address, align, bytes)| {
                address.is_multiple_of(align) && regions.iter().any(|region| region.holds(address, bytes))
            })
    }
}

impl RamRegion {
    /// Whether all `bytes` from `gpa` on are in this region.
    pub(super) fn holds(&self, gpa: u64, bytes: u64) -> bool {
        gpa.checked_sub(self.gpa).and_then(|start| start.checked_add(bytes)).is_some_and(|end| end <= self.size)
    }
}
