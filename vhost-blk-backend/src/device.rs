//! The device: features, configuration space, and one worker a queue.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use ::disk::SECTOR;
use confine::{Filter, Limit, Rule, Sandbox};
use device::{BoxError, Chain, Device, Popped, Progress, Ring, Worker};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};

use crate::args::Config;
use crate::request::BackingFile;

/// Pieces of data in one request: what fits beside header and status into a ring of 128 without indirect descriptors.
const SEG_MAX: u32 = 126;

/// Requests that are served before the other things a worker waits for are looked at.
const BUDGET: usize = 64;

/// A virtio-blk device.
pub struct Block {
    backing: Arc<BackingFile>,
    /// What keeps others from the disk.
    guards: Vec<File>,
    config: [u8; 60],
    queues: usize,
}

impl Block {
    /// The device that `config` stands for.
    pub fn new(config: Config) -> Block {
        let Config { disk, serial, queues } = config;
        let backing = BackingFile { file: disk.file, sectors: disk.sectors, read_only: disk.read_only, serial };
        Block { config: config_space(backing.sectors, queues), backing: Arc::new(backing), guards: disk.guards, queues }
    }
}

/// `virtio_blk_config` (5.2.4) up to and with `max_discard_seg` and its like, which are zero.
fn config_space(sectors: u64, queues: usize) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = config.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(0, &sectors.to_le_bytes()); // capacity
    put(12, &SEG_MAX.to_le_bytes()); // seg_max
    put(20, &(SECTOR as u32).to_le_bytes()); // blk_size
    put(34, &u16::try_from(queues).unwrap_or(1).to_le_bytes()); // num_queues
    config
}

impl Device for Block {
    type Worker = Queue;
    const PROGRAM: &'static str = schema::programs::BLK_BACKEND.program;
    const VIRTIO_ID: u32 = 2;

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.backing.read_only {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        if self.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn set_features(&mut self, _features: u64) -> Result<(), BoxError> {
        Ok(())
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.guards.iter().chain([&self.backing.file]).map(AsFd::as_fd).collect()
    }

    fn sandbox(&self, sandbox: Sandbox) -> Sandbox {
        // Writing stops there with a signal: the image's end, or what the last line on stderr may need.
        sandbox.limit(Limit::FileSize, (self.backing.sectors * SECTOR).max(1 << 30))
    }

    fn worker_filter(&self) -> Filter {
        let on_disk = || vec![Rule::eq(0, self.backing.file.as_raw_fd().unsigned_abs())];
        let filter = Filter::new("disk").allow_if(libc::SYS_preadv, on_disk());
        if self.backing.read_only {
            return filter;
        }
        filter.allow_if(libc::SYS_pwritev, on_disk()).allow_if(libc::SYS_fdatasync, on_disk())
    }

    fn workers(&mut self) -> Vec<Queue> {
        (0..self.queues).map(|_| Queue { backing: Arc::clone(&self.backing) }).collect()
    }
}

/// The worker of one queue.
pub struct Queue {
    backing: Arc<BackingFile>,
}

impl Worker for Queue {
    const RINGS: usize = 1;

    fn run(&mut self, rings: &mut [Option<Ring>]) -> Result<Progress, BoxError> {
        let [Some(ring)] = rings else {
            return Ok(Progress::Idle);
        };
        // Without FLUSH the driver takes a completed write for a stable one (5.2.6.2).
        let write_through = ring.features() & 1 << VIRTIO_BLK_F_FLUSH == 0;
        let memory = ring.memory();
        let mut chain = Chain::new(&memory);
        ring.disable_kicks();
        for _ in 0..BUDGET {
            match ring.pop(&mut chain) {
                Popped::Chain => {
                    let outcome = self.backing.execute(&chain, write_through);
                    ring.complete(chain.head(), outcome.written, outcome.payload, outcome.ok);
                }
                Popped::Malformed => ring.reject(chain.head()),
                Popped::Empty => {
                    ring.notify()?;
                    return Ok(if ring.enable_kicks() { Progress::More } else { Progress::Idle });
                }
            }
        }
        ring.notify()?;
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::disk::Disk;

    fn block(read_only: bool) -> Block {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Disk::adopt("test".to_owned(), file, read_only).unwrap();
        Block::new(Config { disk, serial: [0; 20], queues: 1 })
    }

    #[test]
    fn a_read_only_disk_has_no_system_call_that_writes() {
        let calls = |block: &Block| block.worker_filter().syscalls().collect::<Vec<_>>();
        assert_eq!(calls(&block(true)), [libc::SYS_preadv]);
        assert_eq!(calls(&block(false)), [libc::SYS_fdatasync, libc::SYS_preadv, libc::SYS_pwritev]);
    }
}
