//! Counters that workers write and the control link reads. They are figures, not synchronisation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one ring has done.
#[derive(Debug, Default)]
pub struct RingStats {
    /// Whether the ring runs.
    pub started: AtomicBool,
    /// Chains taken from the ring.
    pub chains: AtomicU64,
    /// Payload bytes moved.
    pub bytes: AtomicU64,
    /// Chains that were malformed or that failed.
    pub errors: AtomicU64,
}

impl RingStats {
    /// Adds to one of the counters, around and around rather than failing.
    pub fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }
}

/// What one backend is doing.
#[derive(Debug)]
pub struct Stats {
    /// Virtio device ID.
    pub virtio_id: u32,
    /// Feature bits offered.
    pub features: u64,
    /// Feature bits taken.
    pub acked: AtomicU64,
    /// Whether a frontend is connected.
    pub connected: AtomicBool,
    /// One for each ring.
    pub rings: Vec<Arc<RingStats>>,
}
