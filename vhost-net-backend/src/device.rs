//! The device: features, configuration space, and the worker of its queue pair.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use confine::{Filter, Rule};
use device::{BoxError, Device, Progress, Ring, Worker};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::args::Config;
use crate::receive::Receiver;
use crate::tap::Tap;
use crate::transmit::Transmitter;

/// A virtio-net device with one queue pair.
pub struct Net {
    tap: Tap,
    /// Held only: while this process has the TAP, the address of its port is nobody else's.
    lease: Option<OwnedFd>,
    config: [u8; 12],
    features: u64,
}

impl Net {
    /// The device that `config` stands for.
    pub fn new(config: Config) -> Net {
        let Config { tap, lease, mac, mtu } = config;
        let mut features = 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS;
        if mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        // virtio_net_config (5.1.4): mac, status, max_virtqueue_pairs, mtu.
        let [a, b, c, d, e, f] = mac.bytes();
        let [up, _] = (VIRTIO_NET_S_LINK_UP as u16).to_le_bytes();
        let [low, high] = mtu.unwrap_or(0).to_le_bytes();
        Net { tap, lease, config: [a, b, c, d, e, f, up, 0, 1, 0, low, high], features }
    }
}

impl Device for Net {
    type Worker = QueuePair;
    const PROGRAM: &'static str = schema::programs::NET_BACKEND.program;
    const VIRTIO_ID: u32 = 1;

    fn features(&self) -> u64 {
        self.features
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn set_features(&mut self, features: u64) -> Result<(), BoxError> {
        Ok(self.tap.set_offloads(features)?)
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.tap.fd().as_fd()).chain(self.lease.as_ref().map(AsFd::as_fd)).collect()
    }

    fn protocol_filter(&self) -> Filter {
        let tap = self.tap.fd().as_raw_fd().unsigned_abs();
        let rule = Rule::eq(0, tap).and(Rule::eq(1, libc::TUNSETOFFLOAD as u32));
        Filter::new("offloads").allow_if(libc::SYS_ioctl, vec![rule])
    }

    fn worker_filter(&self) -> Filter {
        worker_filter(self.tap.fd().as_raw_fd())
    }

    fn workers(&mut self) -> Vec<QueuePair> {
        vec![QueuePair {
            tap: self.tap.clone(),
            receiver: Receiver::new(self.tap.clone()),
            transmitter: Transmitter::new(self.tap.clone()),
        }]
    }
}

fn worker_filter(tap: RawFd) -> Filter {
    let on_tap = || vec![Rule::eq(0, tap.unsigned_abs())];
    Filter::new("tap").allow_if(libc::SYS_readv, on_tap()).allow_if(libc::SYS_writev, on_tap())
}

/// The worker of one queue pair: ring 0 receives, ring 1 transmits (5.1.2).
pub struct QueuePair {
    tap: Tap,
    receiver: Receiver,
    transmitter: Transmitter,
}

impl Worker for QueuePair {
    const RINGS: usize = 2;

    fn source(&self) -> Option<(BorrowedFd<'_>, i16)> {
        let mut events = 0;
        if self.receiver.wants_frames() {
            events |= libc::POLLIN;
        }
        if self.transmitter.is_blocked() {
            events |= libc::POLLOUT;
        }
        (events != 0).then(|| (self.tap.fd().as_fd(), events))
    }

    fn stopped(&mut self, ring: usize) {
        if ring == 0 {
            self.receiver.forget();
        }
    }

    fn run(&mut self, rings: &mut [Option<Ring>]) -> Result<Progress, BoxError> {
        let [receive, transmit] = rings else {
            return Ok(Progress::Idle);
        };
        let sent = self.transmitter.run(transmit.as_mut())?;
        let received = self.receiver.run(receive.as_mut())?;
        let more = sent == Progress::More || received == Progress::More;
        Ok(if more { Progress::More } else { Progress::Idle })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_worker_reads_and_writes_its_tap_and_asks_for_nothing_else() {
        // With the five that every worker has: seven.
        let filter = super::worker_filter(3);
        assert_eq!(filter.syscalls().collect::<Vec<_>>(), [libc::SYS_readv, libc::SYS_writev]);
    }
}
