//! What differs between virtio device types, seen from a transport: how many queues, how long a configuration
//! space, and which features would make a driver read a field or use a queue that is not there.
//! Tables only; touches nothing.

/// Network device (Virtio 1.2, 5.1).
const NET: u32 = 1;

/// A feature of a network device and the bytes of configuration space that a driver which takes it reads.
const NET_FIELDS: [(u64, usize); 6] = [
    (1 << 5, 6),   // MAC: mac
    (1 << 16, 8),  // STATUS: status
    (1 << 22, 10), // MQ: max_virtqueue_pairs
    (1 << 3, 12),  // MTU: mtu
    (1 << 63, 17), // SPEED_DUPLEX: speed, duplex
    (1 << 60, 24), // RSS: rss_max_key_size, ..
];

/// Features of a network device that need its control queue: CTRL_GUEST_OFFLOADS, CTRL_VQ, CTRL_RX, CTRL_VLAN,
/// CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR, NOTF_COAL, HASH_REPORT, RSS.
const NET_CONTROL: u64 =
    1 << 2 | 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21 | 1 << 22 | 1 << 23 | 1 << 53 | 1 << 57 | 1 << 60;

/// Features that must not be offered for such a device with this many queues and this long a configuration space.
///
/// Who serves a network device's control queue has an odd number of queues. Usual vhost-user backends do not, and
/// the core serves no queue at all.
pub(super) fn hidden(virtio_id: u32, queues: u16, config: usize) -> u64 {
    if virtio_id != NET {
        return 0;
    }
    let fields = NET_FIELDS.iter().filter(|(_, bytes)| config < *bytes);
    let control = if queues.is_multiple_of(2) { NET_CONTROL } else { 0 };
    fields.fold(control, |mask, (bit, _)| mask | bit)
}

/// Queues of a device whose backend does not say how many it has.
pub(super) fn least_queues(virtio_id: u32) -> u16 {
    match virtio_id {
        // Network, console, input, GPU, file system, SCMI, I2C has one, GPIO.
        NET | 3 | 16 | 18 | 26 | 32 | 41 => 2,
        // SCSI, vsock.
        8 | 19 => 3,
        // Sound.
        25 => 4,
        _ => 1,
    }
}

/// Queues to use of a device whose backend says it has `has` and whose user asked for none in particular.
/// Without a control queue, more than one pair of a network device would lie idle.
pub(super) fn default_queues(virtio_id: u32, has: u64) -> u16 {
    let has = u16::try_from(has).unwrap_or(u16::MAX);
    if virtio_id == NET { least_queues(NET) } else { has.clamp(1, super::MAX_QUEUES) }
}

/// Descriptors of a queue of a device whose user asked for none in particular. Some backends take no more of their type than
/// the reference devices have, and end when they are asked for more.
pub fn default_queue_size(virtio_id: u32) -> u16 {
    match virtio_id {
        // Console, SCSI.
        3 | 8 => 128,
        // Sound.
        25 => 64,
        _ => 256,
    }
}

/// Most queues that the answer `has` to GET_QUEUE_NUM allows: it counts pairs for network devices in some
/// backends, queues in others, and the control queue in none.
pub(super) fn most_queues(virtio_id: u32, has: u64) -> u64 {
    if virtio_id == NET { has.saturating_mul(2).saturating_add(1) } else { has }
}

/// Lengths of the configuration space to ask a backend for, in this order: as long as some version of the
/// specification or of Linux has it. A backend refuses to serve more than it has.
pub(super) fn config_sizes(virtio_id: u32) -> &'static [usize] {
    match virtio_id {
        NET => &[24, 20, 12, 10, 8, 6],
        2 => &[96, 84, 72, 60, 56, 36], // Block.
        3 => &[12, 8],                  // Console.
        8 => &[36],                     // SCSI.
        16 => &[16],                    // GPU.
        18 => &[136],                   // Input.
        19 => &[8],                     // vsock.
        25 => &[16, 12],                // Sound.
        26 => &[44, 40],                // File system.
        41 => &[8],                     // GPIO.
        _ => &[],
    }
}
