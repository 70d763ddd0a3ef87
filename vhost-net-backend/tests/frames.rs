//! The real backend on a real TAP: frames in both directions, with and without offloads.

mod wire;

use std::time::Duration;
use testrig::frontend::*;
use vhost::VhostBackend;
use wire::*;

const OUT: u64 = 0x100000;
const IN: u64 = 0x400000;
const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4;

/// Offers `count` receive buffers of `len` bytes, one behind the other from `IN` on.
fn offer(machine: &Machine, queue: &mut Queue, count: u64, len: u32) {
    for n in 0..count {
        machine.ram.write(IN + n * u64::from(len), &vec![0xaa; len as usize]);
        queue.add(&machine.ram, &[into(IN + n * u64::from(len), len)]);
    }
    queue.kick();
}

/// Sends a frame out of two parts.
fn send(machine: &Machine, queue: &mut Queue, header: &[u8], frame: &[u8]) {
    let mut bytes = header.to_vec();
    bytes.resize(HEADER, 0);
    bytes.extend(frame);
    machine.ram.write(OUT, &bytes);
    let split = bytes.len() as u32 / 3;
    let parts = [out(OUT, split), out(OUT + u64::from(split), bytes.len() as u32 - split)];
    assert_eq!(queue.round_trip(&machine.ram, &parts), 0);
}

#[test]
fn a_frame_from_the_guest_arrives_at_the_interface_unchanged() {
    let wire = Wire::new(false);
    let (machine, _receive, mut transmit) = wire.boot(EVENT_IDX, 256);
    for len in [60, 61, 1514] {
        let frame = frame(len, len as u8);
        send(&machine, &mut transmit, &[], &frame);
        assert_eq!(wire.receive(|bytes| is_ours(bytes, 0)), frame);
    }
    assert!(signalled(&transmit.call));
    machine.hang_up();
}

#[test]
fn a_frame_to_the_guest_has_a_header_that_says_one_buffer() {
    let wire = Wire::new(false);
    for features in [0, MRG_RXBUF, EVENT_IDX | MRG_RXBUF] {
        let (machine, mut receive, _transmit) = wire.boot(features, 256);
        offer(&machine, &mut receive, 4, 1536);
        for n in 0..3u64 {
            let frame = frame(60 + 700 * n as usize, n as u8);
            wire.send(&frame);
            assert_eq!(receive.wait_used(&machine.ram), (n as u16, (HEADER + frame.len()) as u32));
            let mut header = [0; HEADER];
            header[10] = 1;
            assert_eq!(machine.ram.read(IN + 1536 * n, HEADER), header);
            assert_eq!(machine.ram.read(IN + 1536 * n + 12, frame.len()), frame);
        }
        assert!(signalled(&receive.call));
        // One buffer was not used: it is given back as if it had not been taken.
        assert_eq!(machine.frontend.get_vring_base(0).unwrap(), 3);
        machine.hang_up();
    }
}

#[test]
fn a_large_segment_to_the_guest_is_merged_over_buffers_with_its_offload_header() {
    let wire = Wire::new(true);
    let (machine, mut receive, _transmit) = wire.boot(OFFLOADS | MRG_RXBUF | EVENT_IDX, 256);
    offer(&machine, &mut receive, 20, 4096);
    for round in 0..2 {
        let (header, frame) = tcp(30_000, 1448);
        wire.send(&[&header[..], &frame].concat());
        let total = HEADER + frame.len();
        let buffers = total.div_ceil(4096);
        let mut bytes = Vec::new();
        for n in 0..buffers {
            let (head, len) = receive.wait_used(&machine.ram);
            assert_eq!(usize::from(head), round * buffers + n);
            bytes.extend(machine.ram.read(IN + 4096 * u64::from(head), len as usize));
            // The others are there as soon as the first is.
            if n == 0 {
                assert_eq!(usize::from(machine.ram.u16(receive.used + 2)), (round + 1) * buffers);
            }
        }
        assert_eq!(bytes.len(), total);
        assert_eq!(bytes[0] & NEEDS_CSUM, NEEDS_CSUM);
        assert_eq!(bytes[1], GSO_TCPV4);
        assert_eq!(bytes[4..6], 1448u16.to_le_bytes());
        assert_eq!(bytes[10..12], (buffers as u16).to_le_bytes());
        assert_eq!(bytes[12..], frame);
    }
    machine.hang_up();
}

#[test]
fn without_offloads_the_guest_gets_small_frames_with_checksums_done() {
    let wire = Wire::new(true);
    let (machine, mut receive, _transmit) = wire.boot(MRG_RXBUF, 256);
    offer(&machine, &mut receive, 20, 1536);
    let (header, frame) = tcp(3000, 1000);
    wire.send(&[&header[..], &frame].concat());
    for n in 0..3 {
        let (head, len) = receive.wait_used(&machine.ram);
        let bytes = machine.ram.read(IN + 1536 * u64::from(head), len as usize);
        assert_eq!(bytes[..10], [0; 10], "no offload");
        assert_eq!(bytes.len(), HEADER + 54 + 1000);
        let segment = &bytes[HEADER..];
        assert_eq!(segment[54..], frame[54 + 1000 * n..54 + 1000 * (n + 1)]);
        let mut pseudo = segment[26..34].to_vec();
        pseudo.extend([0, 6]);
        pseudo.extend(1020u16.to_be_bytes());
        pseudo.extend(&segment[34..]);
        assert_eq!(checksum(&pseudo, 0), 0);
    }
    machine.hang_up();
}

#[test]
fn a_large_segment_from_the_guest_keeps_its_offload_header() {
    let wire = Wire::new(true);
    let (machine, _receive, mut transmit) = wire.boot(OFFLOADS, 256);
    let (header, frame) = tcp(60_000, 1448);
    send(&machine, &mut transmit, &header, &frame);
    let there = wire.receive(|bytes| bytes.len() > 10_000);
    assert_eq!((there[0], there[1]), (NEEDS_CSUM, GSO_TCPV4));
    assert_eq!(there[4..6], 1448u16.to_le_bytes());
    assert_eq!(there[10..], frame);
    machine.hang_up();
}

#[test]
fn a_frame_that_finds_too_few_buffers_waits_for_more_and_loses_nothing() {
    let wire = Wire::new(true);
    let (machine, mut receive, _transmit) = wire.boot(OFFLOADS | MRG_RXBUF | EVENT_IDX, 256);
    offer(&machine, &mut receive, 3, 4096);
    let (header, frame) = tcp(20_000, 1448);
    wire.send(&[&header[..], &frame].concat());
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(receive.poll_used(&machine.ram), None);
    // One more is still too few; then there are enough.
    for n in 3..5u64 {
        receive.add(&machine.ram, &[into(IN + 4096 * n, 4096)]);
        receive.kick();
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut bytes = Vec::new();
    for _ in 0..5 {
        let (head, len) = receive.wait_used(&machine.ram);
        bytes.extend(machine.ram.read(IN + 4096 * u64::from(head), len as usize));
    }
    assert_eq!(bytes[10..12], 5u16.to_le_bytes());
    assert_eq!(bytes[1], GSO_TCPV4);
    assert_eq!(bytes[12..], frame);
    machine.hang_up();
}

#[test]
fn a_frame_that_no_ring_could_take_is_dropped_and_the_next_arrives() {
    let wire = Wire::new(true);
    let (machine, mut receive, _transmit) = wire.boot(OFFLOADS | MRG_RXBUF, 4);
    offer(&machine, &mut receive, 4, 1024);
    let (header, large) = tcp(20_000, 1448);
    wire.send(&[&header[..], &large].concat());
    wire.send(&[&[0; 10][..], &frame(100, 1)].concat());
    assert_eq!(receive.wait_used(&machine.ram), (0, 112));
    machine.hang_up();

    // Without merging: one buffer, one frame.
    let (machine, mut receive, _transmit) = wire.boot(OFFLOADS, 4);
    offer(&machine, &mut receive, 4, 1024);
    wire.send(&[&[0; 10][..], &frame(1013, 1)].concat());
    wire.send(&[&[0; 10][..], &frame(1012, 2)].concat());
    assert_eq!(receive.wait_used(&machine.ram), (0, 1024));
    assert_eq!(machine.ram.read(IN + 12, 1012), frame(1012, 2));
    machine.hang_up();
}

/// Clock ticks of processor time that a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn while_the_guest_has_no_buffers_frames_wait_in_the_kernel_and_no_time_is_spent() {
    let wire = Wire::new(false);
    let (machine, mut receive, _transmit) = wire.boot(MRG_RXBUF | EVENT_IDX, 256);
    for n in 0..50 {
        wire.send(&frame(100, n));
    }
    let pid = machine.backend.child.pid();
    let before = ticks(pid);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(pid) - before <= 2, "the worker is not busy");
    offer(&machine, &mut receive, 60, 256);
    for n in 0..50u16 {
        assert_eq!(receive.wait_used(&machine.ram), (n, 112));
        assert_eq!(machine.ram.read(IN + 256 * u64::from(n) + 12, 100), frame(100, n as u8));
    }
    machine.hang_up();
}

#[test]
fn a_partial_frame_that_waits_costs_no_time_either() {
    let wire = Wire::new(true);
    let (machine, mut receive, _transmit) = wire.boot(OFFLOADS | MRG_RXBUF | EVENT_IDX, 256);
    offer(&machine, &mut receive, 2, 4096);
    let (header, frame) = tcp(20_000, 1448);
    wire.send(&[&header[..], &frame].concat());
    let pid = machine.backend.child.pid();
    std::thread::sleep(Duration::from_millis(50));
    let before = ticks(pid);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(pid) - before <= 2, "the worker is not busy");
    machine.hang_up();
}

#[test]
fn thousands_of_frames_go_both_ways_in_order() {
    let wire = Wire::new(false);
    let (machine, mut receive, mut transmit) = wire.boot(MRG_RXBUF | EVENT_IDX, 256);
    offer(&machine, &mut receive, 256, 2048);
    for n in 0..3000u32 {
        let mut bytes = frame(200, 3);
        bytes[20..24].copy_from_slice(&n.to_le_bytes());
        wire.send(&bytes);
        let (head, len) = receive.wait_used(&machine.ram);
        assert_eq!(len, 212);
        let at = IN + 2048 * u64::from(head);
        assert_eq!(machine.ram.read(at + 12 + 20, 4), n.to_le_bytes());
        receive.make_available(&machine.ram, head);
        receive.kick();
        send(&machine, &mut transmit, &[], &bytes);
        assert_eq!(wire.receive(|bytes| is_ours(bytes, 0) && bytes[20..24] == n.to_le_bytes()), bytes);
    }
    machine.hang_up();
}

#[test]
fn configuration_space_has_mac_link_status_and_mtu() {
    let wire = Wire::new(false);
    let mut machine = wire.connect(&["--mtu", "1400"]);
    assert_ne!(machine.offered & MTU, 0);
    let config = machine.config(12);
    assert_eq!(config, [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0x78, 5]);
    machine.hang_up();
    let machine = wire.connect(&[]);
    assert_eq!(machine.offered & MTU, 0);
    machine.hang_up();
}
