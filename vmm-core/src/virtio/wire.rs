//! Numbers and layouts of the vhost-user protocol (QEMU, docs/interop/vhost-user) that this frontend speaks.
//! Encodes and decodes; touches no socket. All fields are in host byte order, which here is little-endian.

use super::{MAX_CONFIG, RamRegion};

/// Virtio 1.0 or later (Virtio 1.2, section 6).
pub(super) const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;
const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;
/// Feature bit 30 on a vhost-user connection: protocol features can be negotiated. Never the driver's business.
pub(super) const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Bits 0 to 23 and 50 up belong to the device type (Virtio 1.2, 2.2).
const DEVICE_TYPE_FEATURES: u64 = 0x00ff_ffff | (u64::MAX << 50);
/// What a driver may be offered. Of the transport's bits only those that need nothing from the core but to pass
/// them on. Not among them: VHOST_F_LOG_ALL (26), ACCESS_PLATFORM (33: there is no IOMMU), RING_PACKED (34) and
/// IN_ORDER (35: rings are stopped and resumed by index), NOTIFICATION_DATA (38: an ioeventfd matches the queue's
/// index alone), RING_RESET (40).
pub(super) const OFFERABLE: u64 =
    DEVICE_TYPE_FEATURES | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1;

/// Protocol features that this frontend takes where the backend has them.
pub(super) mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const WANTED: u64 = MQ | REPLY_ACK | BACKEND_REQ | CONFIG;
}

/// A request, by number and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request(pub u32, pub &'static str);

/// Requests of the frontend.
pub(super) mod request {
    use super::Request;
    pub const GET_FEATURES: Request = Request(1, "GET_FEATURES");
    pub const SET_FEATURES: Request = Request(2, "SET_FEATURES");
    pub const SET_OWNER: Request = Request(3, "SET_OWNER");
    pub const SET_MEM_TABLE: Request = Request(5, "SET_MEM_TABLE");
    pub const SET_VRING_NUM: Request = Request(8, "SET_VRING_NUM");
    pub const SET_VRING_ADDR: Request = Request(9, "SET_VRING_ADDR");
    pub const SET_VRING_BASE: Request = Request(10, "SET_VRING_BASE");
    pub const GET_VRING_BASE: Request = Request(11, "GET_VRING_BASE");
    pub const SET_VRING_KICK: Request = Request(12, "SET_VRING_KICK");
    pub const SET_VRING_CALL: Request = Request(13, "SET_VRING_CALL");
    pub const GET_PROTOCOL_FEATURES: Request = Request(15, "GET_PROTOCOL_FEATURES");
    pub const SET_PROTOCOL_FEATURES: Request = Request(16, "SET_PROTOCOL_FEATURES");
    pub const GET_QUEUE_NUM: Request = Request(17, "GET_QUEUE_NUM");
    pub const SET_VRING_ENABLE: Request = Request(18, "SET_VRING_ENABLE");
    pub const SET_BACKEND_REQ_FD: Request = Request(21, "SET_BACKEND_REQ_FD");
    pub const GET_CONFIG: Request = Request(24, "GET_CONFIG");
    pub const SET_CONFIG: Request = Request(25, "SET_CONFIG");
}

/// Request of the backend, on its own channel: the configuration space changed.
pub(super) const BACKEND_CONFIG_CHANGE: u32 = 2;

/// Bytes of a message's header: request, flags, size of the body.
pub(super) const HEADER: usize = 12;
/// Bytes of a configuration message's own header: offset, size, flags.
pub(super) const CONFIG_HEADER: usize = 12;
/// Longest body of an answer that this frontend takes.
pub(super) const MAX_ANSWER: usize = CONFIG_HEADER + MAX_CONFIG;
/// Most regions in a memory table, and most descriptors with one message.
pub(super) const MAX_REGIONS: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
/// Flag: the sender wants an answer also where the request has none of its own.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// The memory table carries addresses that mean nothing anywhere: guest physical address plus this.
const SYNTHETIC: u64 = 0x1000_0000_0000;

/// The address under which the memory table lists `gpa`.
pub(super) fn user_address(gpa: u64) -> u64 {
    gpa.wrapping_add(SYNTHETIC)
}

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            request: u32::from_le_bytes([a, b, c, d]),
            flags: u32::from_le_bytes([e, f, g, h]),
            size: u32::from_le_bytes([i, j, k, l]),
        }
    }

    /// Bytes of the body, as the sender says.
    pub(super) fn body(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    /// A version 1 message that is, or is not, an answer.
    pub(super) fn is(&self, answer: bool) -> bool {
        self.flags & VERSION_MASK == VERSION && (self.flags & REPLY != 0) == answer
    }
}

/// A message that asks, with its header. Bodies are far below 4 GiB.
pub(super) fn ask(request: Request, need_reply: bool, body: &[u8]) -> Vec<u8> {
    message(request.0, if need_reply { NEED_REPLY } else { 0 }, body)
}

/// The answer to the backend's `request`.
pub(super) fn answer(request: u32, value: u64) -> Vec<u8> {
    message(request, REPLY, &value.to_le_bytes())
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = words(&[request, flags | VERSION, size]);
    bytes.extend_from_slice(body);
    bytes
}

/// `values` one after the other.
pub(super) fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// `values` one after the other.
pub(super) fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The body of SET_MEM_TABLE.
pub(super) fn memory_table(regions: &[RamRegion]) -> Vec<u8> {
    let mut body = words(&[u32::try_from(regions.len()).unwrap_or(u32::MAX), 0]);
    for region in regions {
        body.extend(longs(&[region.gpa, region.size, user_address(region.gpa), region.offset]));
    }
    body
}
