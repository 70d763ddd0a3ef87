//! The bench that tests share: guest RAM, a device without KVM, and a driver that works its registers.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use testkit::wait::PATIENCE;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vmm_sys_util::eventfd::EventFd;

use super::super::events::Events;
pub(super) use super::super::fuzzing::{RAM, regions};
use super::super::regs::{reg, status};
use super::super::thread::{Deadlines, build};
use super::super::{DeviceSpec, Error, MmioDevice};

pub const VERSION_1: u64 = 1 << 32;
/// What attackers have here for the handshake and for each operation.
pub const SHORT: Duration = Duration::from_secs(1);

/// Registered eventfds, as a test sees them.
#[derive(Default)]
pub struct Registered {
    pub kicks: Vec<(u16, EventFd)>,
    pub calls: Vec<EventFd>,
    pub unregistered: usize,
    /// The kernel takes until its other end is dropped to register an ioeventfd.
    pub stall: Option<Receiver<()>>,
    /// It panics instead.
    pub panics: bool,
}

#[derive(Clone, Default)]
pub struct Wiring(Arc<Mutex<Registered>>);

impl Wiring {
    pub fn registered(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap()
    }
}

impl Events for Wiring {
    fn register_ioeventfd(&self, queue: u16, kick: &EventFd) -> io::Result<()> {
        let mut registered = self.registered();
        let (stall, panics) = (registered.stall.take(), registered.panics);
        drop(registered);
        assert!(!panics, "as the test wants it");
        stall.into_iter().for_each(|until| _ = until.recv());
        self.registered().kicks.push((queue, kick.try_clone()?));
        Ok(())
    }
    fn unregister_ioeventfd(&self, _queue: u16, _kick: &EventFd) -> io::Result<()> {
        self.registered().unregistered += 1;
        Ok(())
    }
    fn register_irqfd(&self, call: &EventFd) -> io::Result<()> {
        self.registered().calls.push(call.try_clone()?);
        Ok(())
    }
    fn unregister_irqfd(&self, _call: &EventFd) -> io::Result<()> {
        self.registered().unregistered += 1;
        Ok(())
    }
}

pub fn memfd() -> Arc<OwnedFd> {
    let memfd = memfd_create("test-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&memfd, RAM).unwrap();
    fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
    Arc::new(memfd)
}

pub fn spec(virtio_id: u32, socket: UnixStream) -> DeviceSpec {
    DeviceSpec { virtio_id, socket, queue_size: 256, queues: None, config: None }
}

/// A device whose thread runs.
pub struct Bench {
    pub device: Arc<MmioDevice>,
    pub wiring: Wiring,
    pub ram: File,
    pub failed: Receiver<String>,
    pub thread: Option<JoinHandle<()>>,
}

impl Bench {
    pub fn new(spec: DeviceSpec) -> Bench {
        Bench::with_deadlines(spec, Deadlines::default())
    }

    pub fn hurried(spec: DeviceSpec) -> Bench {
        Bench::with_deadlines(spec, Deadlines { handshake: SHORT, operation: SHORT })
    }

    fn with_deadlines(spec: DeviceSpec, deadlines: Deadlines) -> Bench {
        let wiring = Wiring::default();
        let memfd = memfd();
        let ram = File::from(memfd.try_clone().unwrap());
        let events = Box::new(wiring.clone());
        let (device, thread) = build(spec, memfd, regions(), events, deadlines).unwrap();
        let (sender, failed) = channel();
        let run = move || thread.run(move |why| sender.send(why).unwrap_or_default());
        Bench { device, wiring, ram, failed, thread: Some(std::thread::spawn(run)) }
    }

    pub fn ready(self) -> Bench {
        self.device.wait_ready(PATIENCE).unwrap();
        self
    }

    pub fn handshake_error(&self) -> String {
        match self.device.wait_ready(PATIENCE) {
            Err(Error::Failed(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.read(reg::STATUS)
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn config(&self, size: usize) -> Vec<u8> {
        let bytes = |at: usize| {
            let mut byte = [0];
            self.device.read(reg::CONFIG + at as u64, &mut byte);
            byte[0]
        };
        (0..size).map(bytes).collect()
    }

    pub fn queues(&self) -> u32 {
        let exists = |index: &u32| {
            self.write(reg::QUEUE_SEL, *index);
            self.read(reg::QUEUE_NUM_MAX) != 0
        };
        (0..100).take_while(exists).count() as u32
    }

    /// What a driver does up to and without DRIVER_OK: takes `features` and sets up `queues` rings of 8 descriptors.
    pub fn prepare(&self, features: u64, queues: u32) {
        self.write(reg::STATUS, status::ACKNOWLEDGE);
        self.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, half);
        }
        self.write(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        for queue in 0..queues {
            self.write(reg::QUEUE_SEL, queue);
            self.write(reg::QUEUE_NUM, 8);
            let [desc, avail, used] = ring_at(queue);
            self.write(reg::QUEUE_DESC_LOW, desc);
            self.write(reg::QUEUE_DRIVER_LOW, avail);
            self.write(reg::QUEUE_DEVICE_LOW, used);
            self.write(reg::QUEUE_READY, 1);
        }
    }

    /// The whole of a driver's way to DRIVER_OK.
    pub fn drive(&self, features: u64, queues: u32) {
        self.prepare(features, queues);
        self.write(reg::STATUS, 15);
    }

    pub fn failure(&mut self) -> String {
        let why = self.failed.recv_timeout(PATIENCE).expect("the device reports its failure");
        self.thread.take().unwrap().join().unwrap();
        why
    }
}

/// Descriptor table, available and used ring of a test driver's queue.
pub fn ring_at(queue: u32) -> [u32; 3] {
    let base = 0x1000 * (queue + 1);
    [base, base + 0x400, base + 0x800]
}
