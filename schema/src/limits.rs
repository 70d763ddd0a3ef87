//! What a VM may have, and for how long things may take, as far as two programs have to agree on it. What a client may cost a
//! service is in `limits.capnp`, and what one service's objects are held to in its own schema, for strangers to read.

use std::time::Duration;

/// Most virtual CPUs of a VM.
pub const MAX_VCPUS: u16 = 64;
/// The least guest memory that a stock kernel can be loaded into, in bytes.
pub const MIN_MEMORY: u64 = 64 << 20;
/// The most guest memory, in bytes.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Most disks of a VM, and most network cards: together they fit the core's interrupt lines.
pub const MAX_DEVICES: usize = 8;
/// Bytes of the longest kernel command line: x86-64's COMMAND_LINE_SIZE less its terminator.
pub const MAX_CMDLINE: usize = 2047;
/// Bytes of heap of a VM's programs, reserved before their filters are in place, so that no thread asks for more: the control
/// link's peer may cost about 20 MiB (`ipc::Limits`), all else far less.
pub const DEVICE_HEAP: usize = 32 << 20;
/// Address space that each thread of a VM's programs takes, for its stack above all, in bytes.
pub const THREAD_SPACE: u64 = 4 << 20;
/// Descriptors of the program of a VM that has most of them: three a vCPU, and two eventfds a virtqueue, with room to spare.
pub const CORE_FILES: u64 = 4096;
/// How long a backend may take for its handshake, counted from when the core is up, as for all others of its VM. Its program may be starting yet.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How much of the store's time an import may take, all its parts together: to read the image, to unpack it and to keep the kernel.
pub const IMPORT_WORK: Duration = Duration::from_secs(60);
/// How long an import may take: its work, and as long again for others, whose steps are between its own.
pub const IMPORT: Duration = Duration::from_secs(2 * IMPORT_WORK.as_secs());
/// How long a service lets a caller wait for a job, before it says what it is busy with.
pub const SERVICE_ANSWER: Duration = Duration::from_secs(10);
/// How long whoever calls it waits: until that is heard.
pub const SERVICE_CALL: Duration = Duration::from_secs(12);
/// How long a service stays without any connection, where `volt` has started it.
pub const IDLE_EXIT: Duration = Duration::from_secs(30);
