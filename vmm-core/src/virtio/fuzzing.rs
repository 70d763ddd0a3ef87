//! What fuzzing tries of the virtio transport: a function a target, which panics where a promise is broken.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use testkit::input::Input;
use vmm_sys_util::eventfd::EventFd;

use super::channel::Channel;
use super::frontend::{DeviceOptions, Frontend, Vring};
use super::regs::{Action, Offer, Registers, reg, status};
use super::requests::BackendRequests;
use super::ring::Ring;
use super::wire::{HEADER, OFFERABLE, VIRTIO_F_VERSION_1};
use super::{Error, MAX_CONFIG, MAX_QUEUES, RamRegion};

/// Bytes of guest RAM.
pub(super) const RAM: u64 = 1 << 20;

/// Guest RAM in two regions.
pub(super) fn regions() -> Vec<RamRegion> {
    vec![RamRegion { gpa: 0, size: RAM / 2, offset: 0 }, RamRegion { gpa: 1 << 32, size: RAM / 2, offset: RAM / 2 }]
}

pub(super) const OFFERED: u64 = VIRTIO_F_VERSION_1 | 1 << 29 | 1 << 5;
pub(super) const QUEUES: u16 = 3;

pub(super) fn machine() -> Registers {
    let mut regs = Registers::new(2, regions());
    regs.offer(Offer { features: OFFERED, queues: QUEUES, queue_size: 256, config: (0..60).collect() });
    regs
}

pub(super) fn read(regs: &Registers, offset: u64) -> u32 {
    let mut word = [0; 4];
    regs.read(offset, &mut word);
    u32::from_le_bytes(word)
}

pub(super) fn write(regs: &mut Registers, offset: u64, value: u32) -> Option<Action> {
    regs.write(offset, &value.to_le_bytes())
}

pub(super) fn negotiate(regs: &mut Registers, features: u64) -> u32 {
    write(regs, reg::STATUS, 1);
    write(regs, reg::STATUS, 3);
    for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(regs, reg::DRIVER_FEATURES_SEL, select);
        write(regs, reg::DRIVER_FEATURES, half);
    }
    write(regs, reg::STATUS, 11);
    read(regs, reg::STATUS)
}

pub(super) fn set_up(regs: &mut Registers, ring: Ring) -> bool {
    write(regs, reg::QUEUE_SEL, ring.index.into());
    write(regs, reg::QUEUE_NUM, ring.size.into());
    for (offset, address) in
        [(reg::QUEUE_DESC_LOW, ring.desc), (reg::QUEUE_DRIVER_LOW, ring.avail), (reg::QUEUE_DEVICE_LOW, ring.used)]
    {
        write(regs, offset, address as u32);
        write(regs, offset + 4, (address >> 32) as u32);
    }
    write(regs, reg::QUEUE_READY, 1);
    read(regs, reg::QUEUE_READY) == 1
}

/// One access by a guest.
#[derive(Clone, Debug)]
pub(super) enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// The likely order of a driver, so that chance gets behind DRIVER_OK.
    Negotiate(u64),
    SetUp(Ring),
    Break,
    Config(Vec<u8>),
}

/// Whether an access can have no effect and must read as zero.
fn is_odd(offset: u64, width: usize) -> bool {
    if offset < reg::CONFIG { width != 4 || !offset.is_multiple_of(4) } else { ![1, 2, 4, 8].contains(&width) }
}

/// All that a guest can see without changing anything.
fn visible(regs: &Registers) -> Vec<u8> {
    let mut all: Vec<u8> = (0..0x40).flat_map(|word| read(regs, word * 4).to_le_bytes()).collect();
    for at in 0..300 {
        let mut byte = [0];
        regs.read(reg::CONFIG + at, &mut byte);
        all.extend(byte);
    }
    all
}

/// Registers that a guest accesses in any order: each access has its defined effect, what is odd has none, and what is started is what was
/// agreed on and lies in the guest's memory.
pub(super) fn keep_promises(accesses: impl IntoIterator<Item = Access>) {
    let mut regs = machine();
    let mut started: Option<Vec<Ring>> = None;
    let mut broken = false;
    for access in accesses {
        let action = match access {
            Access::Read(offset, width) => {
                let before = visible(&regs);
                let mut data = vec![0xaa; width];
                regs.read(offset, &mut data);
                assert_eq!(&before, &visible(&regs));
                if is_odd(offset, width) {
                    assert!(data.iter().all(|byte| *byte == 0));
                }
                None
            }
            Access::Write(offset, data) => {
                let before = (visible(&regs), regs.rings());
                let action = regs.write(offset, &data);
                if is_odd(offset, data.len()) {
                    assert_eq!(&action, &None);
                    assert_eq!(before, (visible(&regs), regs.rings()));
                }
                action
            }
            Access::Negotiate(features) => {
                negotiate(&mut regs, features);
                None
            }
            Access::SetUp(ring) => {
                set_up(&mut regs, ring);
                None
            }
            Access::Break => {
                broken = true;
                regs.set_needs_reset();
                None
            }
            Access::Config(config) => {
                regs.update_config(config);
                None
            }
        };
        match action {
            Some(Action::Activate) => {
                let activation = regs.activation();
                assert!(started.is_none() && !broken);
                assert_eq!(activation.features & !OFFERED, 0);
                assert_ne!(activation.features & VIRTIO_F_VERSION_1, 0);
                assert!(activation.rings.iter().all(|ring| ring.is_within(&regions())));
                started = Some(activation.rings);
            }
            Some(Action::Reset) => {
                assert!(started.take().is_some());
                regs.reset();
                assert!(regs.rings().is_empty());
            }
            Some(Action::WriteConfig(write)) => {
                assert!(matches!(write.bytes().len(), 1 | 2 | 4 | 8));
                assert!(write.offset() as usize + write.bytes().len() <= 256);
            }
            None => {}
        }
        for ring in regs.rings() {
            assert!(ring.is_within(&regions()) && ring.size <= 256 && ring.index < QUEUES);
        }
        if let Some(rings) = &started {
            assert_eq!(rings, &regs.rings());
        }
        let bits = read(&regs, reg::STATUS);
        assert_eq!(bits & !0xcf, 0);
        assert_eq!(bits & status::DRIVER_OK != 0, started.is_some());
        assert_eq!(read(&regs, reg::INTERRUPT_STATUS) & 1 != 0, started.is_some());
        if broken {
            assert_ne!(bits & status::NEEDS_RESET, 0);
        }
    }
}

/// The accesses that an input describes.
fn accesses(data: &[u8]) -> impl Iterator<Item = Access> {
    let mut input = Input::new(data);
    std::iter::from_fn(move || {
        if input.is_empty() {
            return None;
        }
        let [kind, at] = input.array();
        // Most are of a word, at a register.
        let offset = if kind & 0x80 != 0 { input.u64() } else { u64::from(at) * 4 };
        Some(match kind % 8 {
            0 => Access::Read(offset, usize::from(input.byte() % 17)),
            1..4 => Access::Write(offset, input.u32().to_le_bytes().into()),
            4 => Access::Write(offset, input.take(usize::from(at % 17)).into()),
            5 => Access::Negotiate(if at == 0 { VIRTIO_F_VERSION_1 } else { input.u64() }),
            6 => {
                let (index, size) = (u16::from(at), input.u16());
                Access::SetUp(Ring { index, size, desc: input.u64(), avail: input.u64(), used: input.u64() })
            }
            _ if at == 0 => Access::Break,
            _ => Access::Config(input.take(at.into()).into()),
        })
    })
    .take(200)
}

/// See [`keep_promises`].
pub fn virtio_registers(data: &[u8]) {
    keep_promises(accesses(data));
}

static MEMFD: LazyLock<Arc<OwnedFd>> = LazyLock::new(|| {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Arc::new(rustix::fs::memfd_create("fuzzed-ram", flags).expect("there are descriptors"))
});

/// What a backend whose answers are all there already gets for its trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// A backend that answers anything: each operation ends, and what is taken of an answer is within its bounds. An input is a list of
/// messages, each on the socket or on the backend's own: the request, the flags, the length of the body, and the body.
pub fn vhost_user_answers(data: &[u8]) {
    let mut input = Input::new(data);
    let [virtio_id, queues, config] = input.array();
    let (mut backend, socket) = UnixStream::pair().expect("there are descriptors");
    let mut requests = BackendRequests::new().expect("there are descriptors");
    let mut asking = requests.take_theirs().expect("it is taken once");
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let [request, flags, len] = input.array();
        // One length that is more than any message has.
        let said = if len == 255 { u32::MAX } else { u32::from(len) };
        let mut message = [request.into(), u32::from(flags & 0x0f), said].map(u32::to_le_bytes).concat();
        debug_assert_eq!(message.len(), HEADER);
        message.extend(input.take(len.into()));
        let on = if flags & 0x80 != 0 { &mut asking } else { &mut backend };
        on.write_all(&message).expect("there is room");
    }
    backend.shutdown(Shutdown::Write).expect("it is connected");
    asking.shutdown(Shutdown::Write).expect("it is connected");

    let options = DeviceOptions {
        virtio_id: virtio_id.into(),
        queue_size: 256,
        queues: (queues != 0).then_some(u16::from(queues).min(MAX_QUEUES)),
        config: (config != 0).then(|| vec![7; config.into()]),
    };
    let mut frontend = Frontend::new(Channel::new(socket, requests), Arc::clone(&MEMFD), regions());
    let why = converse(&mut frontend, &options).err();
    assert!(!matches!(why, Some(Error::Timeout { .. })), "all was there");
    assert!(why.is_none_or(|why| !why.to_string().is_empty()));
    // What it asks of us comes by itself: as many messages as there are, and the end.
    for _ in 0..201 {
        if frontend.channel.requests.serve().is_err() {
            break;
        }
        let _changed = frontend.channel.requests.take_config_changed();
    }
}

/// One device from its handshake to its reset.
fn converse(frontend: &mut Frontend, options: &DeviceOptions) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let offer = frontend.handshake(options, deadline)?;
    assert_eq!(offer.features & !OFFERABLE, 0);
    assert!((1..=MAX_QUEUES).contains(&offer.queues) && offer.config.len() <= MAX_CONFIG);
    assert!(offer.queue_size.is_power_of_two() && offer.queue_size <= options.queue_size);

    let (queues, size) = (offer.queues.min(3), offer.queue_size);
    let mut regs = Registers::new(options.virtio_id, regions());
    regs.offer(offer);
    negotiate(&mut regs, VIRTIO_F_VERSION_1);
    for index in 0..queues {
        set_up(&mut regs, Ring { index, size, desc: 0x1_0000, avail: 0x2_0000, used: 0x3_0000 });
    }
    let Some(Action::Activate) = write(&mut regs, reg::STATUS, 15) else { return Ok(()) };
    let activation = regs.activation();
    let event = || EventFd::new(0).expect("there are descriptors");
    let vrings = activation.rings.iter().map(|ring| Vring { ring: *ring, kick: event(), call: event() });
    let vrings: Vec<Vring> = vrings.collect();
    frontend.activate(&activation, &vrings, deadline)?;
    if let Some(Action::WriteConfig(write)) = regs.write(reg::CONFIG, &[1, 2, 3, 4]) {
        let config = frontend.write_config(&write, deadline)?;
        assert!(config.is_none_or(|config| config.len() <= MAX_CONFIG));
    }
    let config = frontend.read_config(deadline)?;
    assert!(config.is_none_or(|config| config.len() <= MAX_CONFIG));
    frontend.stop(&vrings, deadline)
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_accesses_break_no_promise() {
        replay("virtio_registers", super::virtio_registers);
    }

    #[test]
    fn kept_answers_break_no_promise() {
        replay("vhost_user_answers", super::vhost_user_answers);
    }
}
