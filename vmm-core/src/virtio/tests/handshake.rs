//! The order of vhost-user requests, what they carry, and what a driver is offered, against a backend that behaves.

use std::sync::mpsc::channel;

use super::super::regs::{reg, status};
use super::super::{DeviceSpec, MAX_QUEUES, thread};
use super::bench::{Bench, VERSION_1, Wiring, memfd, regions, ring_at, spec};
use super::peer::{Backend, Reaction, Seen, number};

const SYNTHETIC: u64 = 0x1000_0000_0000;

fn requests(seen: &[Seen]) -> Vec<u32> {
    seen.iter().map(|message| message.request).collect()
}

fn words(body: &[u8]) -> Vec<u32> {
    body.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn longs(body: &[u8]) -> Vec<u64> {
    body.chunks(8).map(|long| u64::from_le_bytes(long.try_into().unwrap())).collect()
}

/// Ends the device and returns what the backend saw.
fn end(bench: Bench, peer: std::thread::JoinHandle<Vec<Seen>>) -> Vec<Seen> {
    // The peer ends when the device's thread does, which ends with the process or with a backend that misbehaves.
    drop(bench);
    peer.join().unwrap()
}

/// A backend that misbehaves at the request after `count` others, which ends the test.
fn until(request: u32, times: usize) -> impl FnMut(&Seen) -> Reaction + Send {
    let mut left = times;
    move |seen| {
        if seen.request == request {
            left -= 1;
            if left == 0 {
                return Reaction::Close;
            }
        }
        Reaction::Behave
    }
}

#[test]
fn requests_come_in_the_order_that_the_design_fixes() {
    let backend = Backend { config: vec![7; 96], ..Backend::default() };
    // The second stop ends the test.
    let (socket, peer) = backend.serve(until(11, 3));
    let mut bench = Bench::new(spec(2, socket)).ready();
    bench.drive(VERSION_1, 2);
    assert_eq!(bench.status(), 15);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.status(), 0);
    bench.drive(VERSION_1, 1);
    assert_eq!(bench.status(), 15);
    bench.write(reg::STATUS, 0);
    assert!(bench.failure().contains("closed its socket during GET_VRING_BASE"));
    let seen = end(bench, peer);
    let handshake = [3, 1, 15, 16, 17, 24, 8, 8];
    let start_two = [2, 5, 8, 8, 9, 10, 13, 12, 9, 10, 13, 12, 18, 18];
    let stop_two = [18, 18, 11, 11];
    let start_one = [2, 5, 8, 9, 10, 13, 12, 18];
    let stop_one = [18, 11];
    assert_eq!(requests(&seen), [&handshake[..], &start_two, &stop_two, &start_one, &stop_one].concat());
    for message in &seen[4..] {
        let own_answer = [1, 11, 15, 17, 24].contains(&message.request);
        assert_eq!(message.need_reply, !own_answer, "{message:?}");
    }
}

#[test]
fn activation_carries_synthetic_addresses_the_memfd_and_both_eventfds() {
    let (socket, peer) = Backend::default().serve(until(11, 1));
    let mut bench = Bench::new(spec(2, socket)).ready();
    bench.drive(VERSION_1, 2);
    {
        let registered = bench.wiring.registered();
        assert_eq!(registered.kicks.iter().map(|(queue, _)| *queue).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(registered.calls.len(), 3, "one a ring and one for the configuration");
        for (_, kick) in &registered.kicks {
            assert_eq!(kick.read().unwrap(), 1, "each ring is looked at once after its start");
        }
    }
    bench.write(reg::STATUS, 0);
    bench.failure();
    let seen = end(bench, peer);
    let start = seen.iter().position(|message| message.request == 2).unwrap();
    let one = |request| seen[start..].iter().find(|message| message.request == request).unwrap();
    assert_eq!(number(&one(2).body), VERSION_1 | 1 << 30);
    let table = one(5);
    assert_eq!(table.fds.len(), 2);
    assert_eq!(words(&table.body[..8]), [2, 0]);
    let expected: Vec<u64> = regions().iter().flat_map(|r| [r.gpa, r.size, r.gpa + SYNTHETIC, r.offset]).collect();
    assert_eq!(longs(&table.body[8..]), expected);
    assert_eq!(words(&one(8).body), [0, 8]);
    assert_eq!(words(&one(10).body), [0, 0]);
    let [desc, avail, used] = ring_at(0).map(|gpa| u64::from(gpa) + SYNTHETIC);
    assert_eq!(longs(&one(9).body), [0, desc, used, avail, 0]);
    assert_eq!((one(12).fds.len(), one(13).fds.len()), (1, 1));
    assert_eq!(words(&one(18).body), [0, 1]);
}

#[test]
fn reset_parts_all_eventfds_and_a_new_start_has_new_ones() {
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(2, socket)).ready();
    bench.drive(VERSION_1, 2);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.wiring.registered().unregistered, 4);
    bench.drive(VERSION_1, 2);
    assert_eq!(bench.wiring.registered().kicks.len(), 4);
    assert_eq!(bench.status(), 15);
}

#[test]
fn rings_that_are_not_ready_are_not_started() {
    let (socket, peer) = Backend::default().serve(until(11, 1));
    let mut bench = Bench::new(spec(2, socket)).ready();
    bench.prepare(VERSION_1, 2);
    bench.write(reg::QUEUE_SEL, 0);
    bench.write(reg::QUEUE_READY, 0);
    bench.write(reg::STATUS, 15);
    bench.write(reg::STATUS, 0);
    bench.failure();
    let seen = end(bench, peer);
    let rings: Vec<u32> = seen.iter().filter(|m| m.request == 9).map(|m| words(&m.body)[0]).collect();
    assert_eq!(rings, [1]);
}

#[test]
fn driver_is_offered_no_more_than_backend_and_transport_have() {
    let everything = u64::MAX;
    let (socket, _peer) = Backend { features: everything, ..Backend::default() }.serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(2, socket)).ready();
    let offered = bench.offered();
    for bit in [24, 25, 26, 27, 30, 31, 33, 34, 35, 36, 37, 38, 39, 40, 41, 49] {
        assert_eq!(offered >> bit & 1, 0, "bit {bit}");
    }
    for bit in [0, 9, 23, 28, 29, 32, 50, 63] {
        assert_eq!(offered >> bit & 1, 1, "bit {bit}");
    }
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    assert_eq!(Bench::new(spec(2, socket)).ready().offered(), VERSION_1);
}

#[test]
fn network_features_without_their_queue_or_field_are_hidden() {
    let features = u64::MAX;
    // DPDK's way: no configuration space; then there is no MAC, no link status, no MTU to read.
    let bare = Backend { features, protocol: 0b1001, config: Vec::new(), queues: 1 };
    let (socket, _peer) = bare.clone().serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(1, socket)).ready();
    assert_eq!(bench.queues(), 2);
    for bit in [3, 5, 16, 17, 21, 22, 63] {
        assert_eq!(bench.offered() >> bit & 1, 0, "bit {bit}");
    }
    // With the configuration from the command line, its fields are there; the control queue is not.
    let (socket, _peer) = bare.clone().serve(|_| Reaction::Behave);
    let bench = Bench::new(super::super::DeviceSpec { config: Some(vec![2; 12]), ..spec(1, socket) }).ready();
    assert_eq!(bench.offered() & (1 << 3 | 1 << 5 | 1 << 16), 1 << 3 | 1 << 5 | 1 << 16);
    assert_eq!(bench.offered() & (1 << 17 | 1 << 22), 0);
    assert_eq!(bench.config(14), [&[2; 12][..], &[0, 0]].concat());
    // With three queues, it is.
    let (socket, _peer) = bare.serve(|_| Reaction::Behave);
    let spec = super::super::DeviceSpec { config: Some(vec![2; 12]), queues: Some(3), ..spec(1, socket) };
    let bench = Bench::new(spec).ready();
    assert_eq!(bench.queues(), 3);
    assert_eq!(bench.offered() & (1 << 17 | 1 << 22), 1 << 17 | 1 << 22);
}

#[test]
fn backend_without_protocol_features_works() {
    let backend = Backend { features: VERSION_1, ..Backend::default() };
    let (socket, peer) = backend.serve(until(11, 1));
    let spec = super::super::DeviceSpec { queues: Some(2), config: Some(vec![9; 60]), ..spec(2, socket) };
    let mut bench = Bench::new(spec).ready();
    assert_eq!((bench.queues(), bench.config(1)), (2, vec![9]));
    bench.drive(VERSION_1, 2);
    assert_eq!(bench.status(), 15);
    bench.write(reg::STATUS, 0);
    bench.failure();
    let seen = end(bench, peer);
    // No enabling, and GET_FEATURES at the end tells that all was handled.
    assert_eq!(requests(&seen), [3, 1, 2, 5, 8, 8, 9, 10, 13, 12, 9, 10, 13, 12, 1, 11]);
    assert!(seen.iter().all(|message| !message.need_reply));
    assert_eq!(number(&seen[2].body), VERSION_1);
}

#[test]
fn backend_with_neither_acks_nor_queue_count_works() {
    let backend = Backend { protocol: 1 << 9, config: vec![1; 8], ..Backend::default() };
    let (socket, _peer) = backend.serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(19, socket)).ready();
    assert_eq!((bench.queues(), bench.config(9)), (3, vec![1, 1, 1, 1, 1, 1, 1, 1, 0]));
    bench.drive(VERSION_1, 3);
    assert_eq!(bench.status(), 15);
}

#[test]
fn numbers_out_of_range_are_refused_before_any_byte() {
    let try_spec = |change: fn(&mut super::super::DeviceSpec)| {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut spec = spec(2, socket);
        change(&mut spec);
        let events = Box::new(Wiring::default());
        thread::build(spec, memfd(), regions(), events, thread::Deadlines::default()).is_ok()
    };
    assert!(try_spec(|spec| spec.queue_size = 2));
    assert!(try_spec(|spec| spec.queue_size = 32768));
    assert!(!try_spec(|spec| spec.queue_size = 1));
    assert!(!try_spec(|spec| spec.queue_size = 0));
    assert!(!try_spec(|spec| spec.queue_size = 100));
    assert!(try_spec(|spec| spec.queues = Some(1)));
    assert!(try_spec(|spec| spec.queues = Some(MAX_QUEUES)));
    assert!(!try_spec(|spec| spec.queues = Some(0)));
    assert!(!try_spec(|spec| spec.queues = Some(MAX_QUEUES + 1)));
    assert!(try_spec(|spec| spec.config = Some(vec![0; 256])));
    assert!(!try_spec(|spec| spec.config = Some(vec![0; 257])));
}

#[test]
fn more_queues_than_the_backend_has_is_an_error_that_says_so() {
    let asked = |virtio_id, queues| {
        let (socket, _peer) = Backend { queues: 4, ..Backend::default() }.serve(|_| Reaction::Behave);
        let bench = Bench::new(super::super::DeviceSpec { queues: Some(queues), ..spec(virtio_id, socket) });
        bench.device.wait_ready(testkit::wait::PATIENCE).map_err(|error| error.to_string())
    };
    assert_eq!(asked(2, 4), Ok(()));
    assert!(asked(2, 5).unwrap_err().contains("has 4 queues where 5 are asked for"));
    // A network backend may count pairs.
    assert_eq!(asked(1, 8), Ok(()));
    assert!(asked(1, 10).is_err());
}

#[test]
fn interrupt_status_names_the_rings_while_they_run_and_only_then() {
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    let bench = Bench::new(spec(2, socket)).ready();
    bench.prepare(VERSION_1, 1);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
    bench.write(reg::STATUS, bench.status() | status::DRIVER_OK);
    bench.write(reg::INTERRUPT_ACK, 3);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 1);
    bench.write(reg::STATUS, 0);
    assert_eq!(bench.read(reg::INTERRUPT_STATUS), 0);
}

/// What QueueNumMax says of both queues with a backend that takes rings up to `most`, and the sizes that it saw at the start.
fn negotiated(most: u32, asked: u16) -> (Vec<u32>, Vec<u32>) {
    let (send, sizes) = channel();
    let script = move |seen: &Seen| match words(&seen.body)[..] {
        [_, size] if seen.request == 8 => {
            send.send(size).unwrap();
            if size > most { Reaction::Nack(1) } else { Reaction::Behave }
        }
        _ => Reaction::Behave,
    };
    let (socket, _peer) = Backend::default().serve(script);
    let bench = Bench::new(DeviceSpec { queue_size: asked, ..spec(2, socket) }).ready();
    let said = [0, 1].map(|queue| {
        bench.write(reg::QUEUE_SEL, queue);
        bench.read(reg::QUEUE_NUM_MAX)
    });
    (said.to_vec(), sizes.try_iter().collect())
}

#[test]
fn queues_are_as_long_as_the_backend_takes_them() {
    assert_eq!(negotiated(1024, 256), (vec![256, 256], vec![256, 256]));
    assert_eq!(negotiated(128, 256), (vec![128, 128], vec![256, 128, 128]));
    assert_eq!(negotiated(127, 256), (vec![64, 64], vec![256, 128, 64, 64]));
    assert_eq!(negotiated(2, 8), (vec![2, 2], vec![8, 4, 2, 2]));
}

#[test]
fn one_short_queue_makes_all_as_short() {
    let script = |seen: &Seen| match words(&seen.body)[..] {
        [1, size] if seen.request == 8 && size > 64 => Reaction::Nack(1),
        _ => Reaction::Behave,
    };
    let (socket, _peer) = Backend::default().serve(script);
    let bench = Bench::new(DeviceSpec { queue_size: 256, ..spec(2, socket) }).ready();
    assert_eq!(bench.read(reg::QUEUE_NUM_MAX), 64);
}

#[test]
fn backend_that_takes_no_ring_or_ends_at_the_first_is_named_with_the_sizes_tried() {
    let refuses = |seen: &Seen| if seen.request == 8 { Reaction::Nack(1) } else { Reaction::Behave };
    let (socket, _peer) = Backend::default().serve(refuses);
    let mut bench = Bench::new(DeviceSpec { queue_size: 16, ..spec(2, socket) });
    let why = bench.failure();
    assert!(
        why.contains("16, 8, 4, 2;") && why.contains("queue-size") && why.contains("refused SET_VRING_NUM"),
        "{why}"
    );
    // As the Rust crate's daemon does: it says no, and closes.
    let (socket, _peer) = Backend::default().serve(until(8, 1));
    let mut bench = Bench::new(DeviceSpec { queue_size: 256, ..spec(2, socket) });
    let why = bench.failure();
    assert!(why.contains("256;") && why.contains("closed its socket during SET_VRING_NUM"), "{why}");
    // Who does not answer is not asked: the first size has to do.
    let mute = Backend { protocol: 1 << 0 | 1 << 9, ..Backend::default() };
    let (socket, _peer) = mute.serve(|seen| if seen.request == 8 { Reaction::Close } else { Reaction::Behave });
    let bench = Bench::new(DeviceSpec { queue_size: 256, ..spec(2, socket) }).ready();
    assert_eq!(bench.read(reg::QUEUE_NUM_MAX), 256);
}
