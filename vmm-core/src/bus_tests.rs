//! Whatever a guest does on the bus has a defined result.

use super::*;
use crate::console::{BUFFER, Console};
use crate::events::eventfd;
use crate::lifecycle::{Exit, Lifecycle, Reason, State};
use proptest::prelude::*;
use std::sync::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// A device that remembers what it was asked.
#[derive(Default)]
struct Recorder(Mutex<Vec<(u64, usize)>>);

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap().push((offset, data.len()));
        data.fill(0x5a);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.len()));
    }
}

struct Machine {
    bus: Bus,
    lifecycle: Arc<Lifecycle>,
    console: Arc<Console>,
    com1: Arc<Com1>,
    irq: EventFd,
    device: Arc<Recorder>,
}

fn machine() -> Machine {
    let lifecycle = Arc::new(Lifecycle::new(eventfd().unwrap()));
    let console = Arc::new(Console::new(eventfd().unwrap()));
    let irq = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let com1 = Arc::new(Com1::new(irq.try_clone().unwrap(), console.clone()));
    let device = Arc::new(Recorder::default());
    let devices: Vec<Arc<dyn BusDevice>> = vec![Arc::new(Recorder::default()), device.clone()];
    let bus = Bus::new(com1.clone(), Power::new(lifecycle.clone()), devices);
    Machine { bus, lifecycle, console, com1, irq, device }
}

fn end_of(accesses: &[(u16, &[u8])]) -> Option<Reason> {
    let machine = machine();
    for (port, data) in accesses {
        machine.bus.port_write(*port, data);
    }
    match machine.lifecycle.state() {
        State::Ended(Exit { reason, .. }) => Some(reason),
        _ => None,
    }
}

#[test]
fn each_way_to_end_is_taken_and_its_neighbours_are_not() {
    assert_eq!(end_of(&[(0x64, &[0xfe])]), Some(Reason::Reset));
    assert_eq!(end_of(&[(0x64, &[0xff]), (0x60, &[0xfe]), (0x61, &[0xfe])]), None);
    assert_eq!(end_of(&[(0x602, &[RESET])]), Some(Reason::Reset));
    assert_eq!(end_of(&[(0x602, &[RESET + 1]), (0x601, &[RESET])]), None);
    assert_eq!(end_of(&[(0x600, &[0x34])]), Some(Reason::Poweroff));
    // Without SLP_EN, or with another SLP_TYP.
    assert_eq!(end_of(&[(0x600, &[0x14]), (0x600, &[0x38]), (0x600, &[0x20])]), None);
}
const RESET: u8 = crate::layout::RESET_VALUE;

#[test]
fn wide_access_reaches_each_register_it_covers() {
    assert_eq!(end_of(&[(0x601, &[0, RESET, 0, 0])]), Some(Reason::Reset));
    let mut wrap = [0; 4];
    machine().bus.port_read(0xffff, &mut wrap);
    assert_eq!(wrap, [0xff; 4]);
}

#[test]
fn port_without_a_device_reads_as_ones() {
    let machine = machine();
    for port in [0u16, 0x40, 0x61, 0x63, 0x3f7, 0x400, 0x5ff, 0x603, 0xcf8, 0xffff] {
        let mut byte = [0];
        machine.bus.port_read(port, &mut byte);
        assert_eq!(byte, [0xff], "{port:#x}");
    }
}

#[test]
fn register_page_reaches_its_own_device_only() {
    let machine = machine();
    let second = VIRTIO_MMIO + VIRTIO_MMIO_SIZE;
    for (address, mine) in [
        (second - 1, false),
        (second, true),
        (second + VIRTIO_MMIO_SIZE - 1, true),
        (second + VIRTIO_MMIO_SIZE, false),
        (VIRTIO_MMIO - 1, false),
        (u64::MAX, false),
        (0, false),
    ] {
        let before = machine.device.0.lock().unwrap().len();
        machine.bus.mmio_write(address, &[1, 2, 3, 4]);
        assert_eq!(machine.device.0.lock().unwrap().len() > before, mine, "{address:#x}");
    }
    let mut beyond = [0; 8];
    machine.bus.mmio_read(second + VIRTIO_MMIO_SIZE, &mut beyond);
    assert_eq!(beyond, [0xff; 8]);
}

#[test]
fn output_beyond_the_buffer_is_dropped_and_counted() {
    let machine = machine();
    for _ in 0..BUFFER {
        machine.bus.port_write(0x3f8, b"x");
    }
    assert_eq!(machine.console.dropped(), 0);
    machine.bus.port_write(0x3f8, b"x");
    assert_eq!(machine.console.dropped(), 1);
}

#[test]
fn input_fills_the_fifo_interrupts_and_is_read_in_order() {
    let machine = machine();
    machine.bus.port_write(0x3f9, &[1]); // IER: received data
    let _ = machine.irq.read();
    assert_eq!(machine.com1.input_room(), 64);
    machine.com1.input(&[7; 70]);
    assert_eq!(machine.com1.input_room(), 0);
    assert!(machine.irq.read().is_ok());
    let mut read = 0;
    let mut status = [1];
    while read < 100 && status[0] & 1 == 1 {
        let mut byte = [0];
        machine.bus.port_read(0x3f8, &mut byte);
        assert_eq!(byte, [7]);
        read += 1;
        machine.bus.port_read(0x3fd, &mut status);
    }
    assert_eq!((read, machine.com1.input_room()), (64, 64));
}

#[derive(Debug, Clone)]
enum Access {
    PortRead(u16, usize),
    PortWrite(u16, Vec<u8>),
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
    Input(Vec<u8>),
}

fn access() -> impl Strategy<Value = Access> {
    let port = || prop_oneof![any::<u16>(), 0x3f8u16..0x400, 0x5f0u16..0x610, 0x60u16..0x66];
    let address = || prop_oneof![any::<u64>(), VIRTIO_MMIO - 16..VIRTIO_MMIO + 4 * VIRTIO_MMIO_SIZE];
    let data = || prop::collection::vec(any::<u8>(), 0..9);
    prop_oneof![
        (port(), 0usize..9).prop_map(|(port, size)| Access::PortRead(port, size)),
        (port(), data()).prop_map(|(port, data)| Access::PortWrite(port, data)),
        (address(), 0usize..9).prop_map(|(address, size)| Access::MmioRead(address, size)),
        (address(), data()).prop_map(|(address, data)| Access::MmioWrite(address, data)),
        data().prop_map(Access::Input),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_accesses_is_served(accesses in prop::collection::vec(access(), 0..200)) {
        let machine = machine();
        for access in accesses {
            let mut data = [0u8; 8];
            match access {
                Access::PortRead(port, size) => machine.bus.port_read(port, &mut data[..size]),
                Access::PortWrite(port, data) => machine.bus.port_write(port, &data),
                Access::MmioRead(address, size) => machine.bus.mmio_read(address, &mut data[..size]),
                Access::MmioWrite(address, data) => machine.bus.mmio_write(address, &data),
                Access::Input(data) => machine.com1.input(&data),
            }
        }
        prop_assert!(machine.com1.input_room() <= 64);
    }
}
