//! Backends that are mute, slow or malicious: each is over within its deadline, hangs no vCPU, and is named.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use super::super::regs::{reg, status};
use super::super::thread::{Deadlines, build};
use super::bench::{Bench, VERSION_1, spec};
use super::peer::{Backend, Reaction, Seen, answer};
use testkit::wait::PATIENCE;

/// Requests of the handshake, of an activation and of a reset, with an answer each.
const HANDSHAKE: [u32; 4] = [1, 15, 17, 24];
const ACTIVATION: [u32; 9] = [2, 5, 8, 9, 10, 12, 13, 18, 2];
const NAMES: [(u32, &str); 14] = [
    (1, "GET_FEATURES"),
    (2, "SET_FEATURES"),
    (5, "SET_MEM_TABLE"),
    (8, "SET_VRING_NUM"),
    (9, "SET_VRING_ADDR"),
    (10, "SET_VRING_BASE"),
    (11, "GET_VRING_BASE"),
    (12, "SET_VRING_KICK"),
    (13, "SET_VRING_CALL"),
    (15, "GET_PROTOCOL_FEATURES"),
    (17, "GET_QUEUE_NUM"),
    (18, "SET_VRING_ENABLE"),
    (24, "GET_CONFIG"),
    (25, "SET_CONFIG"),
];

fn name(request: u32) -> &'static str {
    NAMES.iter().find(|(number, _)| *number == request).unwrap().1
}

/// (Of SET_VRING_NUM that of the activation: what becomes of those of the handshake is told where sizes are.)
fn at(request: u32, deed: fn(&Seen) -> Reaction) -> impl FnMut(&Seen) -> Reaction + Send {
    let tries = |seen: &Seen| seen.request == 8 && seen.body[4..] == 256u32.to_le_bytes();
    move |seen| if seen.request == request && !tries(seen) { deed(seen) } else { Reaction::Behave }
}

/// Runs the handshake, an activation and a reset against a backend that does `deed` at `request`, and returns
/// what the device said of it.
fn attack(request: u32, deed: fn(&Seen) -> Reaction) -> String {
    let (socket, _peer) = Backend::default().serve(at(request, deed));
    let mut bench = Bench::hurried(spec(2, socket));
    if HANDSHAKE.contains(&request) {
        bench.handshake_error();
    } else {
        bench.device.wait_ready(PATIENCE).unwrap();
        bench.drive(VERSION_1, 1);
        if ACTIVATION.contains(&request) {
            assert_ne!(bench.status() & status::NEEDS_RESET, 0, "{}", name(request));
            assert_eq!(bench.read(reg::INTERRUPT_STATUS), 3);
        }
        bench.write(reg::STATUS, 0);
        assert_eq!(bench.status(), status::NEEDS_RESET, "{}: a broken device stays broken", name(request));
        // It interrupted the driver to say so.
        let config_call = bench.wiring.registered().calls[0].read();
        assert!(config_call.is_ok());
    }
    let why = bench.failure();
    assert!(why.starts_with("Virtio device 2: "), "{why}");
    why
}

const EVERY: [u32; 13] = [1, 15, 17, 24, 2, 5, 8, 9, 10, 12, 13, 18, 11];

/// Tries each request in a thread of its own: waiting for deadlines takes time, but no processor.
fn at_once(requests: &[u32], attempt: impl Fn(u32) + Sync) {
    std::thread::scope(|scope| {
        for &request in requests {
            let attempt = &attempt;
            scope.spawn(move || attempt(request));
        }
    });
}

#[test]
fn mute_backend_fails_at_the_deadline_of_each_request() {
    at_once(&EVERY, |request| {
        let why = attack(request, |_| Reaction::Mute);
        assert!(why.contains("did not answer") && why.contains(name(request)), "{why}");
    });
}

#[test]
fn backend_that_closes_fails_at_once_at_each_request() {
    for request in EVERY {
        let why = attack(request, |_| Reaction::Close);
        assert!(why.contains("closed its socket") && why.contains(name(request)), "{why}");
    }
}

#[test]
fn slow_drip_does_not_stretch_the_deadline() {
    at_once(&[1, 24, 5, 11], |request| {
        let why = attack(request, |_| Reaction::Drip);
        assert!(why.contains("did not answer"), "{why}");
    });
}

#[test]
fn answer_to_another_request_is_refused() {
    for request in EVERY {
        let why = attack(request, |_| Reaction::Raw(answer(3, &[0; 8])));
        assert!(why.contains("an answer to another request"), "{why}");
    }
}

#[test]
fn answer_of_a_wrong_size_is_refused() {
    for request in EVERY {
        for size in [1, 4, 7, 9, 12, 268] {
            let why = attack_body(request, size);
            assert!(why.contains("broke the vhost-user protocol"), "{request} {size}: {why}");
        }
    }
}

fn attack_body(request: u32, size: usize) -> String {
    match size {
        1 => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 1]))),
        4 => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 4]))),
        7 => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 7]))),
        9 => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 9]))),
        12 => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 12]))),
        _ => attack(request, |seen| Reaction::Raw(answer(seen.request, &[1; 268]))),
    }
}

#[test]
fn huge_answer_is_refused_by_its_header() {
    for request in EVERY {
        // The longest body that any answer has is 268 bytes; here the body does not even come.
        let why = attack(request, |seen| Reaction::Raw([seen.request, 5, 269].map(u32::to_le_bytes).concat()));
        assert!(why.contains("longer than any"), "{why}");
        let why = attack(request, |seen| Reaction::Raw([seen.request, 5, u32::MAX].map(u32::to_le_bytes).concat()));
        assert!(why.contains("longer than any"), "{why}");
    }
}

#[test]
fn message_that_is_no_answer_or_of_another_version_is_refused() {
    for flags in [0, 1, 4, 6, 7] {
        static FLAGS: AtomicUsize = AtomicUsize::new(0);
        FLAGS.store(flags, Ordering::SeqCst);
        let raw = |seen: &Seen| {
            let flags = FLAGS.load(Ordering::SeqCst) as u32;
            Reaction::Raw([&[seen.request, flags, 8].map(u32::to_le_bytes).concat()[..], &[0; 8]].concat())
        };
        let why = attack(5, raw);
        assert!(why.contains("not an answer of version 1"), "{why}");
    }
}

#[test]
fn descriptors_with_an_answer_are_refused_and_never_received() {
    for request in [1, 24, 5, 11] {
        let why = attack(request, |_| Reaction::ExtraFd);
        assert!(why.contains("a descriptor came with an answer"), "{why}");
    }
    // Held by nobody: the pipe's other end sees its end once the peer dropped its own copy.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut read, write) = UnixStream::pair().unwrap();
    super::peer::send_with(&ours, &[0; 12], &write);
    drop(write);
    let got = super::super::socket::read_some(std::os::fd::AsFd::as_fd(&theirs), &mut [0; 12]);
    assert_eq!(got, Ok(None));
    assert_eq!(std::io::Read::read(&mut read, &mut [0]).unwrap(), 0);
}

#[test]
fn nack_of_any_request_names_it_and_the_code() {
    for request in ACTIVATION {
        let why = attack(request, |_| Reaction::Nack(7));
        assert!(why.contains(&format!("refused {} with 7", name(request))), "{why}");
    }
}

#[test]
fn stop_of_another_ring_is_refused() {
    let why = attack(11, |_| Reaction::Raw(answer(11, &[9, 0, 0, 0, 0, 0, 0, 0])));
    assert!(why.contains("it names another ring"), "{why}");
}

#[test]
fn legacy_backend_is_refused() {
    let why = attack(1, |_| Reaction::Raw(answer(1, &(1_u64 << 30).to_le_bytes())));
    assert!(why.contains("VIRTIO_F_VERSION_1"), "{why}");
}

#[test]
fn backend_that_never_reads_meets_the_deadline() {
    let (socket, peer) = UnixStream::pair().unwrap();
    // Fill the socket, so that not even the first request fits.
    socket.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &socket, &[0; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let mut bench = Bench::hurried(spec(2, socket));
    assert!(bench.failure().contains("did not answer SET_OWNER"));
    drop(peer);
}

#[test]
fn backend_that_goes_away_while_idle_is_reported() {
    for (last_words, expected) in [(false, "closed its socket"), (true, "speaks unasked")] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let spare = ours.try_clone().unwrap();
        let peer = std::thread::spawn(move || Backend::default().run(ours, |_| Reaction::Behave));
        let mut bench = Bench::hurried(spec(2, theirs)).ready();
        bench.drive(VERSION_1, 2);
        if last_words {
            std::io::Write::write_all(&mut &spare, &[1]).unwrap();
        } else {
            spare.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let why = bench.failure();
        assert!(why.contains(expected), "{why}");
        assert_eq!(bench.status(), 15 | status::NEEDS_RESET);
        assert_eq!(bench.read(reg::INTERRUPT_STATUS), 3);
        drop(spare);
        peer.join().unwrap();
    }
}

#[test]
fn mute_backend_holds_no_vcpu_longer_than_its_deadline_and_other_vcpus_read_on() {
    let (asks, asked) = channel();
    let (socket, _peer) = Backend::default().serve(move |seen| match seen.request {
        5 => {
            asks.send(()).unwrap();
            Reaction::Mute
        }
        _ => Reaction::Behave,
    });
    let bench = Bench::new(spec(2, socket)).ready();
    bench.prepare(VERSION_1, 2);
    let (device, written) = (&bench.device, AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            device.write(reg::STATUS, &[15, 0, 0, 0]);
            written.store(true, Ordering::SeqCst);
            assert!(start.elapsed() >= Deadlines::default().operation);
        });
        asked.recv().unwrap();
        assert_eq!(bench.status(), 15);
        assert!(!written.load(Ordering::SeqCst), "a read never waits");
        // A write of another vCPU waits for the first, and no longer.
        bench.write(reg::INTERRUPT_ACK, 1);
    });
    assert_eq!(bench.status(), 15 | status::NEEDS_RESET);
}

#[test]
fn device_thread_that_does_not_run_in_time_holds_no_vcpu() {
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    let mut bench = Bench::hurried(spec(2, socket)).ready();
    let (until, stall) = channel();
    bench.wiring.registered().stall = Some(stall);
    bench.drive(VERSION_1, 1);
    assert_eq!(bench.status(), 15 | status::NEEDS_RESET);
    // Once it runs again, it says so and ends.
    drop::<Sender<()>>(until);
    assert!(bench.failure().contains("did not run in time"));
}

#[test]
fn panic_of_the_device_thread_is_reported_and_holds_no_vcpu() {
    let (socket, _peer) = Backend::default().serve(|_| Reaction::Behave);
    let mut bench = Bench::new(spec(2, socket)).ready();
    bench.wiring.registered().panics = true;
    bench.drive(VERSION_1, 1);
    assert!(bench.failure().contains("panicked"));
    assert_eq!(bench.status(), 15 | status::NEEDS_RESET);
}

#[test]
fn broken_device_takes_any_access_without_waiting() {
    let (socket, _peer) = Backend::default().serve(at(5, |_| Reaction::Close));
    let mut bench = Bench::new(spec(2, socket)).ready();
    bench.drive(VERSION_1, 2);
    bench.failure();
    // A hundred deadlines would be more than a test may take.
    for _ in 0..100 {
        bench.write(reg::STATUS, 0);
        bench.drive(VERSION_1, 2);
        bench.device.write(reg::CONFIG, &[1]);
    }
    assert_ne!(bench.status() & status::NEEDS_RESET, 0);
    assert_eq!(bench.status() & status::DRIVER_OK, 0);
}

#[test]
fn device_whose_thread_never_ran_says_so_at_once() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let events = Box::new(super::bench::Wiring::default());
    let built = build(spec(2, socket), super::bench::memfd(), super::bench::regions(), events, Deadlines::default());
    let (device, thread) = built.unwrap();
    assert!(device.wait_ready(Duration::from_millis(1)).unwrap_err().to_string().contains("not through after 1ms"));
    drop(thread);
    assert!(device.wait_ready(PATIENCE).unwrap_err().to_string().contains("thread is gone"));
}
