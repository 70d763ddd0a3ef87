//! The register machine alone: what each register does, and random accesses that must keep its promises.

use proptest::prelude::*;

use super::super::fuzzing::{
    Access, OFFERED, QUEUES, RAM, keep_promises, machine, negotiate, read, regions, set_up, write,
};
use super::super::regs::{Action, reg, status};
use super::super::ring::Ring;
use super::super::wire::VIRTIO_F_VERSION_1 as VERSION_1;

const RING: Ring = Ring { index: 0, size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };

#[test]
fn identity_registers_say_what_the_device_is() {
    let regs = machine();
    assert_eq!(read(&regs, reg::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!((read(&regs, reg::VERSION), read(&regs, reg::DEVICE_ID)), (2, 2));
    assert_eq!(read(&regs, reg::QUEUE_NUM_MAX), 256);
    assert_eq!((read(&regs, 0xb0), read(&regs, 0xbc)), (u32::MAX, u32::MAX));
}

#[test]
fn features_not_offered_or_legacy_are_not_ok() {
    assert_eq!(negotiate(&mut machine(), VERSION_1), 11);
    assert_eq!(negotiate(&mut machine(), OFFERED), 11);
    assert_eq!(negotiate(&mut machine(), VERSION_1 | 1), 3);
    assert_eq!(negotiate(&mut machine(), 1 << 29), 3);
    assert_eq!(negotiate(&mut machine(), 0), 3);
}

#[test]
fn features_are_frozen_once_they_are_ok() {
    let mut regs = machine();
    negotiate(&mut regs, VERSION_1);
    write(&mut regs, reg::DRIVER_FEATURES_SEL, 0);
    write(&mut regs, reg::DRIVER_FEATURES, 1 << 5);
    assert_eq!(write(&mut regs, reg::STATUS, 15), Some(Action::Activate));
    assert_eq!(regs.activation().features, VERSION_1);
}

#[test]
fn status_bits_out_of_order_are_ignored() {
    let mut regs = machine();
    assert_eq!(write(&mut regs, reg::STATUS, 4), None);
    assert_eq!(read(&regs, reg::STATUS), 0);
    write(&mut regs, reg::DRIVER_FEATURES_SEL, 1);
    write(&mut regs, reg::DRIVER_FEATURES, 1);
    write(&mut regs, reg::STATUS, 8);
    assert_eq!(read(&regs, reg::STATUS), 0);
    // All at once are in order.
    assert_eq!(write(&mut regs, reg::STATUS, 15), Some(Action::Activate));
    assert_eq!(write(&mut regs, reg::STATUS, 15), None, "one start for one reset");
    write(&mut regs, reg::STATUS, 1);
    assert_eq!(read(&regs, reg::STATUS), 15, "a driver cannot clear bits");
    assert_eq!(write(&mut regs, reg::STATUS, 0), Some(Action::Reset));
}

#[test]
fn driver_that_gave_up_is_not_started() {
    let mut regs = machine();
    negotiate(&mut regs, VERSION_1);
    write(&mut regs, reg::STATUS, status::FAILED);
    assert_eq!(write(&mut regs, reg::STATUS, 15), None);
}

#[test]
fn ring_outside_ram_needs_a_reset_and_starts_nothing() {
    let mut regs = machine();
    negotiate(&mut regs, VERSION_1);
    assert!(!set_up(&mut regs, Ring { desc: RAM, ..RING }));
    assert_eq!(read(&regs, reg::STATUS), 11 | status::NEEDS_RESET);
    assert_eq!(write(&mut regs, reg::STATUS, 15), None);
    write(&mut regs, reg::STATUS, 0);
    assert_eq!(read(&regs, reg::STATUS), 0);
    negotiate(&mut regs, VERSION_1);
    assert!(set_up(&mut regs, RING));
}

#[test]
fn ring_parts_are_checked_whole_on_both_sides_of_each_limit() {
    let regions = regions();
    let end = RAM / 2;
    let within = |ring: Ring| ring.is_within(&regions);
    assert!(within(RING));
    assert!(within(Ring { desc: end - 16 * 8, ..RING }));
    assert!(!within(Ring { desc: end - 16 * 7, ..RING }));
    // flags, idx, ring, used_event: 2 + 2 + 2 * 8 + 2 bytes.
    assert!(within(Ring { avail: end - 22, ..RING }));
    assert!(!within(Ring { avail: end - 20, ..RING }));
    // flags, idx, ring, avail_event: 2 + 2 + 8 * 8 + 2 bytes, in steps of 4.
    assert!(within(Ring { used: end - 72, ..RING }));
    assert!(!within(Ring { used: end - 68, ..RING }));
    assert!(!within(Ring { desc: 0x1008, ..RING }));
    assert!(!within(Ring { avail: 0x2001, ..RING }));
    assert!(!within(Ring { used: 0x3002, ..RING }));
    assert!(within(Ring { desc: 1 << 32, ..RING }));
    assert!(!within(Ring { desc: (1 << 32) - 16, ..RING }), "starts below the second region");
    assert!(within(Ring { desc: (1 << 32) + end - 128, ..RING }));
    assert!(!within(Ring { desc: u64::MAX - 15, ..RING }));
    assert!(!within(Ring { size: 0, ..RING }));
    assert!(!within(Ring { size: 7, ..RING }));
    assert!(within(Ring { size: 1, ..RING }));
}

#[test]
fn queue_sizes_that_cannot_be_make_no_queue_ready() {
    for (size, ready) in
        [(0, false), (1, true), (3, false), (256, true), (257, false), (512, false), (65536 + 8, false)]
    {
        let mut regs = machine();
        negotiate(&mut regs, VERSION_1);
        set_up(&mut regs, RING);
        write(&mut regs, reg::QUEUE_READY, 0);
        write(&mut regs, reg::QUEUE_NUM, size);
        write(&mut regs, reg::QUEUE_READY, 1);
        assert_eq!(read(&regs, reg::QUEUE_READY) == 1, ready, "{size}");
    }
}

#[test]
fn queue_is_frozen_while_ready_and_all_are_from_driver_ok_on() {
    let mut regs = machine();
    negotiate(&mut regs, VERSION_1);
    assert!(set_up(&mut regs, RING));
    set_up(&mut regs, Ring { size: 16, desc: 0x5000, ..RING });
    assert_eq!(regs.rings(), [RING]);
    assert_eq!(write(&mut regs, reg::STATUS, 15), Some(Action::Activate));
    assert_eq!(regs.activation().rings, [RING]);
    write(&mut regs, reg::QUEUE_READY, 0);
    assert_eq!(read(&regs, reg::QUEUE_READY), 1);
    assert!(!set_up(&mut regs, Ring { index: 1, ..RING }));
}

#[test]
fn queue_beyond_the_last_is_not_there() {
    let mut regs = machine();
    negotiate(&mut regs, VERSION_1);
    assert!(set_up(&mut regs, Ring { index: QUEUES - 1, ..RING }));
    assert!(!set_up(&mut regs, Ring { index: QUEUES, ..RING }));
    assert_eq!(read(&regs, reg::QUEUE_NUM_MAX), 0);
    write(&mut regs, reg::QUEUE_SEL, u32::MAX);
    assert_eq!(read(&regs, reg::QUEUE_NUM_MAX), 0);
    // Index 65536 is not index 0.
    write(&mut regs, reg::QUEUE_SEL, 65536);
    write(&mut regs, reg::QUEUE_NUM, 8);
    assert_eq!(regs.rings().len(), 1);
}

#[test]
fn broken_device_needs_a_reset_for_ever() {
    let mut regs = machine();
    assert!(!regs.set_needs_reset(), "no interrupt before DRIVER_OK");
    assert_eq!(read(&regs, reg::STATUS), status::NEEDS_RESET);
    write(&mut regs, reg::STATUS, 0);
    negotiate(&mut regs, VERSION_1);
    assert_eq!(write(&mut regs, reg::STATUS, 15), None);
    assert_eq!(read(&regs, reg::STATUS), 11 | status::NEEDS_RESET);
}

fn access() -> impl Strategy<Value = Access> {
    let offset = prop_oneof![
        8 => (0_u64..0x48).prop_map(|word| word * 4),
        1 => 0_u64..0x300,
        1 => any::<u64>(),
    ];
    let value = prop_oneof![0_u32..20, Just(0x1000), Just(0x2000), Just(u32::MAX), any::<u32>()];
    let bytes = prop_oneof![
        6 => value.prop_map(|value| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ];
    let address = prop_oneof![
        4 => (0_u64..8).prop_map(|page| page * 0x1000),
        1 => RAM / 2 - 256..RAM / 2 + 256,
        1 => any::<u64>(),
    ];
    let ring = (0_u16..5, prop_oneof![Just(8), Just(256), any::<u16>()], address.clone(), address.clone(), address)
        .prop_map(|(index, size, desc, avail, used)| Ring { index, size, desc, avail, used });
    prop_oneof![
        6 => (offset.clone(), prop_oneof![4 => Just(4_usize), 1 => 0_usize..17]).prop_map(|(at, n)| Access::Read(at, n)),
        20 => (offset, bytes).prop_map(|(at, data)| Access::Write(at, data)),
        2 => prop_oneof![Just(VERSION_1), Just(OFFERED), any::<u64>()].prop_map(Access::Negotiate),
        4 => ring.prop_map(Access::SetUp),
        4 => (0_u8..16).prop_map(|bits| Access::Write(reg::STATUS, vec![bits, 0, 0, 0])),
        1 => prop::collection::vec(any::<u8>(), 0..300).prop_map(Access::Config),
        1 => Just(Access::Break),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_accesses_in_any_order_keep_the_promises(accesses in prop::collection::vec(access(), 1..80)) {
        keep_promises(accesses);
    }
}
