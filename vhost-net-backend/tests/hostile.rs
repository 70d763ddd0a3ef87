//! The real backend against a hostile driver, a TAP that is taken away, and wrong arguments.

mod wire;

use std::process::Command;
use testrig::frontend::*;
use wire::*;

const OUT: u64 = 0x100000;
const IN: u64 = 0x400000;

/// Frames both ways have to work still.
fn still_connects(wire: &Wire, machine: &Machine, receive: &mut Queue, transmit: &mut Queue) {
    let mut bytes = vec![0; HEADER];
    bytes.extend(frame(100, 9));
    machine.ram.write(OUT, &bytes);
    assert_eq!(transmit.round_trip(&machine.ram, &[out(OUT, 112)]), 0);
    assert_eq!(wire.receive(|bytes| is_ours(bytes, 0)), frame(100, 9));
    let head = receive.add(&machine.ram, &[into(IN, 2048)]);
    receive.kick();
    wire.send(&frame(80, 4));
    assert_eq!(receive.wait_used(&machine.ram), (head, 92));
    assert_eq!(machine.ram.read(IN + 12, 80), frame(80, 4));
}

#[test]
fn malformed_chains_to_send_come_back_and_nothing_is_sent() {
    let wire = Wire::new(false);
    let (machine, mut receive, mut transmit) = wire.boot(EVENT_IDX | MRG_RXBUF, 256);
    let ram = &machine.ram;
    let end = ram.size;
    let wrong: [&[Part]; 8] = [
        &[out(OUT, 11)],               // no header
        &[out(OUT, 12)],               // no frame
        &[out(OUT, 13)],               // no Ethernet header
        &[out(OUT, 12 + 65535 + 19)],  // longer than any frame
        &[out(OUT, 60), into(IN, 60)], // a writable part
        &[into(IN, 60)],               // nothing else
        &[out(end - 10, 60)],          // outside the memory
        &[out(OUT, u32::MAX), out(OUT, 60)],
    ];
    for parts in wrong {
        assert_eq!(transmit.round_trip(ram, parts), 0);
    }
    // A header that the kernel refuses: checksum outside the frame.
    let mut bytes = vec![NEEDS_CSUM, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    bytes.extend(frame(60, 1));
    ram.write(OUT, &bytes);
    assert_eq!(transmit.round_trip(ram, &[out(OUT, bytes.len() as u32)]), 0);
    // One that it takes: a checksum that is written over what has been looked at, and other work than was offered.
    for (flags, segments, offset) in [(NEEDS_CSUM, 0, 10), (NEEDS_CSUM, 3, 6), (0, GSO_TCPV4, 0)] {
        let mut bytes = vec![flags, segments, 0, 0, 8, 0, 20, 0, offset, 0, 0, 0];
        bytes.extend(frame(60, 1));
        ram.write(OUT, &bytes);
        assert_eq!(transmit.round_trip(ram, &[out(OUT, bytes.len() as u32)]), 0);
    }
    // A chain that goes around.
    transmit.set_descriptor(ram, 200, Part { flags: NEXT, ..out(OUT, 60) }, 200);
    transmit.make_available(ram, 200);
    transmit.kick();
    assert_eq!(transmit.wait_used(ram), (200, 0));
    still_connects(&wire, &machine, &mut receive, &mut transmit);
    machine.hang_up();
}

#[test]
fn unusable_receive_buffers_come_back_empty_and_frames_go_into_the_others() {
    for features in [MRG_RXBUF, 0] {
        let wire = Wire::new(true);
        let offloads = GUEST_CSUM | GUEST_TSO4;
        let (machine, mut receive, _transmit) = wire.boot(features | offloads, 64);
        let ram = &machine.ram;
        let end = ram.size;
        let mut good = Vec::new();
        for n in 0..6u64 {
            receive.add(ram, &[into(IN, 11)]); // no room for a header
            receive.add(ram, &[out(IN, 2048)]); // readable
            receive.add(ram, &[into(end - 1, 2048)]); // outside the memory
            receive.set_descriptor(ram, 50, Part { flags: NEXT | WRITE, ..into(IN, 10) }, 50);
            receive.make_available(ram, 50); // goes around
            good.push(receive.add(ram, &[into(IN + 0x1000 * n, 4096)]));
        }
        receive.kick();
        let send = |frame: &[u8], header: &[u8]| wire.send(&[header, frame].concat());
        let (header, large) = tcp(10_000, 1448);
        let mut expected = vec![(frame(60, 7), 1)];
        send(&expected[0].0, &[0; 10]);
        if features == MRG_RXBUF {
            send(&large, &header);
            expected.push((large, 3));
        }
        for (frame, buffers) in expected {
            let mut bytes = Vec::new();
            for _ in 0..buffers {
                let head = good.remove(0);
                let (found, len) = loop {
                    match receive.wait_used(ram) {
                        (dud, 0) => assert!(!good.contains(&dud)),
                        entry => break entry,
                    }
                };
                assert_eq!(found, head);
                let n = 6 - good.len() as u64 - 1;
                bytes.extend(ram.read(IN + 0x1000 * n, len as usize));
            }
            assert_eq!(bytes[10..12], (buffers as u16).to_le_bytes());
            assert_eq!(bytes[12..], frame);
        }
        machine.hang_up();
    }
}

#[test]
fn a_driver_that_rewrites_its_rings_all_the_time_stops_nothing_but_itself() {
    let wire = Wire::new(false);
    let (machine, receive, transmit) = wire.boot(EVENT_IDX | MRG_RXBUF | INDIRECT_DESC, 256);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(2) {
        for queue in [&receive, &transmit] {
            for _ in 0..64 {
                let part = Part {
                    at: random() % (machine.ram.size + 4096),
                    len: random() as u32 >> (random() % 32),
                    flags: random() as u16 & 7,
                };
                queue.set_descriptor(&machine.ram, (random() % 256) as u16, part, (random() % 258) as u16);
                machine.ram.set_u16(queue.avail + 4 + 2 * (random() % 257), (random() % 256) as u16);
            }
            let step = machine.ram.u16(queue.used + 2).wrapping_add((random() % 250) as u16);
            machine.ram.set_u16(queue.avail + 2, step);
            queue.kick();
        }
        wire.send(&frame(60 + (random() % 1400) as usize, 0));
    }
    machine.hang_up();
}

#[test]
fn an_interface_that_is_taken_away_ends_the_backend_with_a_line() {
    let wire = Wire::new(false);
    let (mut machine, mut receive, _transmit) = wire.boot(MRG_RXBUF, 64);
    receive.add(&machine.ram, &[into(IN, 2048)]);
    receive.kick();
    std::thread::sleep(std::time::Duration::from_millis(50));
    delete_link(wire.index);
    machine.backend.fails_saying(&["gone"]);
}

/// As somebody does by hand, or another tool while it sets the host up.
#[test]
fn an_interface_that_is_down_for_a_while_takes_no_frame_and_ends_nothing() {
    let wire = Wire::new(false);
    let (machine, mut receive, mut transmit) = wire.boot(MRG_RXBUF, 64);
    still_connects(&wire, &machine, &mut receive, &mut transmit);
    for _ in 0..50 {
        wire.set_up(false);
        for length in [1, 13, 60] {
            let mut bytes = vec![0; 12];
            bytes.extend(frame(60, 7));
            machine.ram.write(OUT, &bytes);
            // Those that are no frame at all as well.
            assert_eq!(transmit.round_trip(&machine.ram, &[out(OUT, 12 + length)]), 0);
        }
        wire.set_up(true);
    }
    still_connects(&wire, &machine, &mut receive, &mut transmit);
    machine.hang_up();
}

/// RTM_DELLINK.
fn delete_link(index: i32) {
    use rustix::net::*;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    let mut message = 32u32.to_ne_bytes().to_vec();
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, padding, type
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]); // flags, change
    send(&socket, &message, SendFlags::empty()).unwrap();
    let mut answer = [0; 64];
    recv(&socket, &mut answer[..], RecvFlags::empty()).unwrap();
    assert_eq!(answer[16..20], [0; 4]);
}

#[test]
fn capabilities_are_printed_as_the_conventions_want_them() {
    let output = Command::new(PROGRAM).arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"{\"type\":\"net\",\"features\":[]}\n");
}

#[test]
fn wrong_arguments_are_refused_with_the_remedy() {
    own_namespace();
    let refused = |args: &[&str], fds, words: &[&str]| start(PROGRAM, args, fds).fails_saying(words);
    let socket = || pair().1;
    refused(&["--fd={}", "--tap-fd", "77", "--mac", MAC], vec![socket()], &["--tap-fd=77"]);
    refused(&["--fd={}", "--mac", MAC], vec![socket()], &["--tap-fd N"]);
    let tap = open_tap("tap-a", TAP);
    refused(&["--fd={}", "--tap-fd={}"], vec![socket(), tap], &["--mac"]);
    let args = ["--fd={}", "--tap-fd={}", "--mac", MAC];
    refused(&args, vec![socket(), socket()], &["no TAP"]);
    let plain = open_tap("tap-b", libc::IFF_TAP | libc::IFF_NO_PI);
    refused(&args, vec![socket(), plain], &["IFF_VNET_HDR"]);
    let tun = open_tap("tun-c", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    refused(&args, vec![socket(), tun], &["IFF_TAP"]);
}
