//! Configuration space: how long it is found to be, what a driver writes to it, and changes that a backend tells.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;
use std::time::Instant;

use super::super::regs::reg;
use super::bench::{Bench, VERSION_1, spec};
use super::peer::{Backend, Reaction, Seen};
use testkit::wait::{PATIENCE, eventually};

/// A backend whose BACKEND_REQ channel the test gets.
fn with_channel(config: Vec<u8>) -> (Bench, UnixStream) {
    let (sender, receiver) = channel();
    let backend = Backend { protocol: 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9, config, ..Backend::default() };
    let mut asked = 0;
    let script = move |seen: &Seen| {
        if seen.request == 21 {
            let fd = seen.fds[0].try_clone().unwrap();
            sender.send(UnixStream::from(fd)).unwrap();
        }
        if seen.request == 24 && seen.body.len() == 12 + 8 {
            asked += 1;
            // Each time it is asked, another content.
            return Reaction::Raw(super::peer::answer(24, &[&seen.body[..12], &[asked; 8]].concat()));
        }
        Reaction::Behave
    };
    let (socket, _peer) = backend.serve(script);
    let bench = Bench::hurried(spec(19, socket)).ready();
    (bench, receiver.recv_timeout(PATIENCE).unwrap())
}

#[test]
fn length_of_the_space_is_found_whatever_the_device() {
    for virtio_id in [1, 2, 19, 4, 99] {
        for length in [0, 1, 7, 8, 20, 60, 127, 128, 255, 256, 300] {
            let backend = Backend { config: (0..length as u32).map(|at| at as u8).collect(), ..Backend::default() };
            let (socket, _peer) = backend.clone().serve(|_| Reaction::Behave);
            let bench = Bench::new(spec(virtio_id, socket)).ready();
            let known = super::super::kinds::config_sizes(virtio_id);
            let found = known.iter().copied().find(|size| *size <= length).unwrap_or(length.min(256));
            let padded = [&backend.config[..found], &[0; 300][found..]].concat();
            assert_eq!(bench.config(300), padded, "device {virtio_id}, {length} bytes");
        }
    }
}

#[test]
fn refusal_in_the_way_of_the_vhost_crate_is_understood() {
    let refuse = |seen: &Seen| match seen.request {
        24 => Reaction::Raw(super::peer::answer(24, &[&seen.body[..4], &[0; 8]].concat())),
        _ => Reaction::Behave,
    };
    let (socket, _peer) = Backend::default().serve(refuse);
    let spec = super::super::DeviceSpec { config: Some(vec![5; 4]), ..spec(2, socket) };
    assert_eq!(Bench::new(spec).ready().config(5), [5, 5, 5, 5, 0]);
}

#[test]
fn wrong_part_of_the_space_is_refused() {
    for at in [0, 4] {
        let lie = move |seen: &Seen| {
            if seen.request != 24 {
                return Reaction::Behave;
            }
            let mut body = seen.body.clone();
            body[at] ^= 1;
            Reaction::Raw(super::peer::answer(24, &body))
        };
        let (socket, _peer) = Backend::default().serve(lie);
        let why = Bench::hurried(spec(2, socket)).handshake_error();
        assert!(why.contains("it is not the part asked for"), "{why}");
    }
}

#[test]
fn reads_of_each_width_are_bounded_and_others_are_zero() {
    let backend = Backend { config: (1..=8).collect(), ..Backend::default() };
    let (socket, _peer) = backend.serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(19, socket)).ready();
    let read = |at: u64, width: usize| {
        let mut data = vec![0xee; width];
        bench.device.read(reg::CONFIG + at, &mut data);
        data
    };
    assert_eq!(read(7, 1), [8]);
    assert_eq!(read(2, 2), [3, 4]);
    assert_eq!(read(4, 4), [5, 6, 7, 8]);
    assert_eq!(read(0, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(6, 4), [7, 8, 0, 0]);
    assert_eq!(read(8, 8), [0; 8]);
    assert_eq!(read(u64::MAX - reg::CONFIG, 8), [0; 8]);
    assert_eq!(read(0, 3), [0; 3]);
    assert_eq!(read(0, 16), [0; 16]);
}

#[test]
fn driver_writes_reach_the_backend_and_the_answer_is_read_back() {
    let (sender, receiver) = channel();
    let script = move |seen: &Seen| {
        if seen.request == 25 {
            sender.send(seen.body.clone()).unwrap();
            return Reaction::Nack(1); // Refused: which a device may do, and which is no failure.
        }
        Reaction::Behave
    };
    let (socket, _peer) = Backend::default().serve(script);
    let bench = Bench::new(spec(2, socket)).ready();
    bench.device.write(reg::CONFIG + 32, &[1]);
    assert!(receiver.try_recv().is_err(), "before FEATURES_OK a driver may only read");
    bench.drive(VERSION_1, 2);
    bench.device.write(reg::CONFIG + 32, &[1]);
    let expected = [&[32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0][..], &[1]].concat();
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), expected);
    assert_eq!(bench.config(60), [7; 60]);
    bench.device.write(reg::CONFIG + 57, &[1; 4]);
    bench.device.write(reg::CONFIG + 57, &[1; 3]);
    bench.device.write(u64::MAX, &[1; 8]);
    assert!(receiver.try_recv().is_err(), "past the end, or of an odd width");
    assert_eq!(bench.status(), 15);
}

#[test]
fn change_told_by_the_backend_raises_generation_and_interrupts() {
    let (bench, mut requests) = with_channel(vec![0; 8]);
    bench.drive(VERSION_1, 2);
    let generation = bench.read(reg::CONFIG_GENERATION);
    let before = bench.config(8);
    requests.write_all(&[2, 1 | 8, 0].map(u32::to_le_bytes).concat()).unwrap();
    let mut ack = [0; 20];
    requests.read_exact(&mut ack).unwrap();
    assert_eq!(ack, [&[2, 5, 8].map(u32::to_le_bytes).concat()[..], &[0; 8]].concat()[..]);
    eventually("its content is another", || bench.config(8) != before);
    assert_ne!(bench.read(reg::CONFIG_GENERATION), generation);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 3);
    bench.write(reg::INTERRUPT_ACK, 2);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 1);
    eventually("it interrupts", || bench.wiring.registered().calls[0].read().is_ok());
}

#[test]
fn other_requests_of_the_backend_are_refused_and_do_no_harm() {
    let (bench, mut requests) = with_channel(vec![0; 8]);
    for request in [1, 3, 6, 100] {
        requests.write_all(&[request, 1 | 8, 8].map(u32::to_le_bytes).concat()).unwrap();
        requests.write_all(&[0; 8]).unwrap();
        let mut ack = [0; 20];
        requests.read_exact(&mut ack).unwrap();
        assert_eq!(ack[12..], [1, 0, 0, 0, 0, 0, 0, 0]);
    }
    drop(requests);
    bench.drive(VERSION_1, 2);
    assert_eq!(bench.status(), 15);
}

#[test]
fn malformed_requests_of_the_backend_end_the_device() {
    for (message, expected) in [
        ([2, 1, 257].map(u32::to_le_bytes).concat(), "longer than any"),
        ([2, 5, 0].map(u32::to_le_bytes).concat(), "not a request of version 1"),
        ([2, 2, 0].map(u32::to_le_bytes).concat(), "not a request of version 1"),
    ] {
        let (mut bench, mut requests) = with_channel(vec![0; 8]);
        requests.write_all(&message).unwrap();
        let why = bench.failure();
        assert!(why.contains(expected), "{why}");
    }
    let (mut bench, requests) = with_channel(vec![0; 8]);
    super::peer::send_with(&requests, &[0; 12], &requests);
    assert!(bench.failure().contains("a descriptor came with it"));
}

#[test]
fn backend_that_floods_its_channel_and_reads_no_answer_is_ended() {
    let (mut bench, mut requests) = with_channel(vec![0; 8]);
    let message = [3, 1 | 8, 0].map(u32::to_le_bytes).concat();
    requests.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < PATIENCE
        && !matches!(requests.write(&message), Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe)
    {}
    assert!(bench.failure().contains("does not read the answers"));
}

#[test]
fn backend_that_asks_while_it_should_answer_is_served_meanwhile() {
    // As a backend with one thread does: it sends CONFIG_CHANGE and waits for the answer before it goes on.
    let mut requests: Option<UnixStream> = None;
    let script = move |seen: &Seen| {
        if seen.request == 21 {
            requests = Some(UnixStream::from(seen.fds[0].try_clone().unwrap()));
        }
        if let (5, Some(requests)) = (seen.request, &mut requests) {
            requests.set_read_timeout(Some(PATIENCE)).unwrap();
            requests.write_all(&[2, 1 | 8, 0].map(u32::to_le_bytes).concat()).unwrap();
            requests.read_exact(&mut [0; 20]).unwrap();
        }
        Reaction::Behave
    };
    let backend = Backend { protocol: 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9, ..Backend::default() };
    let (socket, _peer) = backend.serve(script);
    let bench = Bench::hurried(spec(2, socket)).ready();
    bench.drive(VERSION_1, 2);
    assert_eq!(bench.status(), 15);
}
