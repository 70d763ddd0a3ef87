//! Virtio devices of the VM: the virtio-mmio transport and the vhost-user frontend behind it.
//!
//! May touch: the registers a guest reaches by MMIO, one connected vhost-user socket a device, the eventfds
//! between guest and backend, and the *extent* of guest RAM. Must never see: what is in guest RAM. A virtqueue's
//! descriptors and rings are read by backends only.
//!
//! Data meets the parts in this order:
//!
//! | module | subject |
//! |---|---|
//! | [`regs`] | the virtio-mmio register machine, without I/O (Virtio 1.2, 4.2.2) |
//! | [`ring`] | whether a ring that a driver names lies whole in guest RAM |
//! | [`device`] | what vCPU threads call, and how they hand work to the device's thread |
//! | [`thread`] | the one thread a device has: everything that talks to the backend |
//! | [`frontend`] | the vhost-user requests in their order, each answer checked |
//! | [`channel`] | one request or answer on the socket, with a deadline and bounds |
//! | [`requests`] | what a backend asks of us: that its configuration space changed |
//! | [`wire`] | numbers and layouts of the vhost-user protocol |
//! | [`kinds`] | what differs between device types: which features need a field or a queue |
//! | [`events`] | ioeventfd and irqfd, so that the data path never wakes this process |

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;

mod channel;
mod device;
mod events;
mod frontend;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod kinds;
mod regs;
mod requests;
mod ring;
mod socket;
mod thread;
mod wire;

#[cfg(test)]
mod tests;

pub use device::MmioDevice;
pub use kinds::default_queue_size;
pub use thread::DeviceThread;

/// Most virtqueues a device may have. Each costs two eventfds while its ring runs.
pub const MAX_QUEUES: u16 = 64;
/// Most bytes of a device's configuration space, as vhost-user bounds it (`VHOST_USER_CONFIG`).
pub const MAX_CONFIG: usize = 256;
/// Bytes of guest address space that one device's registers take.
pub const MMIO_SIZE: u64 = 0x1000;

/// One virtio device, as the command line describes it.
#[derive(Debug)]
pub struct DeviceSpec {
    /// Virtio device ID (Virtio 1.2, section 5): 1 network, 2 block.
    pub virtio_id: u32,
    /// Connected vhost-user socket; the backend is at its other end.
    pub socket: UnixStream,
    /// Most descriptors a queue may have: a power of two from 2 to 32768. A backend that answers for each request
    /// (REPLY_ACK) and refuses so many is asked for fewer.
    pub queue_size: u16,
    /// Number of virtqueues. `None`: what the backend says, or what the device type needs at least.
    /// For a network device an odd number says that the backend serves the control queue too.
    pub queues: Option<u16>,
    /// Configuration space for a backend that serves none. At most [`MAX_CONFIG`] bytes.
    pub config: Option<Vec<u8>>,
}

/// One region of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// Guest physical address of its first byte.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Where it starts in the memfd.
    pub offset: u64,
}

/// What a device needs of the machine it sits in.
pub struct Platform {
    /// The VM; its interrupt controller has to exist already.
    pub vm: Arc<VmFd>,
    /// Guest RAM, sealed; every backend gets it.
    pub memfd: Arc<OwnedFd>,
    /// Where guest RAM is; at most eight regions.
    pub regions: Vec<RamRegion>,
    /// Guest physical address of the device's registers.
    pub mmio_base: u64,
    /// The device's interrupt line, edge-triggered.
    pub gsi: u32,
}

/// Why a virtio device cannot be made or has stopped working.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The queue size asked for is none.
    #[error("Queue size {0} is not a power of two from 2 to 32768; 256 is usual")]
    QueueSize(u16),
    /// Too many queues, or none.
    #[error("A device with {0} queues: from 1 to {max} are possible", max = MAX_QUEUES)]
    Queues(u16),
    /// The backend has fewer queues than asked for.
    #[error(
        "The backend has {} where {asked} are asked for: ask for fewer, or configure it with more",
        ipc::count(*has, "queue")
    )]
    TooFewQueues {
        /// Queues asked for.
        asked: u16,
        /// Queues the backend says it has.
        has: u64,
    },
    /// The configuration space given is too long.
    #[error("A configuration space of {0} bytes: at most {max} are possible", max = MAX_CONFIG)]
    ConfigSize(usize),
    /// vhost-user memory tables carry one to eight regions.
    #[error("Guest RAM in {0} regions: a vhost-user memory table carries 1 to 8")]
    Regions(usize),
    /// The kernel refused something the device needs.
    #[error("Cannot {what} for a virtio device")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The backend let the deadline pass.
    #[error("The backend did not answer {request} in time; see its log, and whether it is still running")]
    Timeout {
        /// The vhost-user request.
        request: &'static str,
    },
    /// The backend closed the vhost-user socket.
    #[error("The backend closed its socket during {request}; its log says why it ended")]
    Closed {
        /// The vhost-user request, or what else the frontend was doing.
        request: &'static str,
    },
    /// The backend broke the vhost-user protocol.
    #[error("The backend broke the vhost-user protocol at {request}: {why}; is it a vhost-user backend?")]
    Protocol {
        /// The vhost-user request.
        request: &'static str,
        /// What is wrong with its answer.
        why: &'static str,
    },
    /// The backend answered that a request failed.
    #[error("The backend refused {request} with {code}; its log says why")]
    Refused {
        /// The vhost-user request.
        request: &'static str,
        /// What it answered instead of zero.
        code: u64,
    },
    /// The backend takes rings of none of the sizes that were tried.
    #[error(
        "The backend takes no rings of so many descriptors: {tried}; name a number that it takes as the device's queue-size, if it takes any"
    )]
    RingSizes {
        /// The sizes, in their order.
        tried: String,
        /// What became of the last one.
        #[source]
        source: Box<Error>,
    },
    /// The backend speaks legacy virtio only.
    #[error(
        "The backend does not offer VIRTIO_F_VERSION_1, so no virtio-mmio version 2 driver can use it: take one for Virtio 1.0 or later"
    )]
    Legacy,
    /// The device is not ready within the time its user gave it.
    #[error(
        "The vhost-user handshake was not through after {0:?}; see the backend's log, and whether it is still running"
    )]
    NotReady(Duration),
    /// The device had failed before; the text is the chain of reasons.
    #[error("{0}")]
    Failed(String),
}

/// Makes a device and the thread that will serve it. Reads nothing from the backend, so it belongs to the wide
/// phase; [`DeviceThread::run`] belongs to the narrow one.
///
/// # Errors
/// A number in `spec` or `platform` is out of its range, or the kernel gives no eventfd or irqfd.
pub fn new(spec: DeviceSpec, platform: Platform) -> Result<(Arc<MmioDevice>, DeviceThread), Error> {
    let Platform { vm, memfd, regions, mmio_base, gsi } = platform;
    let events = Box::new(events::KvmEvents::new(vm, mmio_base, gsi));
    thread::build(spec, memfd, regions, events, thread::Deadlines::default())
}
