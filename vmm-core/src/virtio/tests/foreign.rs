//! A backend that nobody here wrote, and that is everywhere: a device on the crate `vhost-user-backend`, whose protocol, memory,
//! rings and threads are its own, behind this frontend. Each of its two queues answers with what it was sent, each byte and the
//! queue's number added up.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::vhost_user::{Listener, message::VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::super::DeviceSpec;
use super::super::regs::{reg, status};
use super::bench::{Bench, SHORT, VERSION_1, ring_at, spec};
use testkit::wait::PATIENCE;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Where it ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// With its frontend.
    Orderly,
    /// It refuses what a driver writes to its configuration space, which this crate does not go on after.
    WriteConfig,
    /// By an error, where a ring is stopped.
    StopRing,
    /// By a panic, where it is told the features.
    Features,
    /// It falls silent, where it is given the memory.
    Memory,
}

struct Foreign {
    protocol: VhostUserProtocolFeatures,
    end: End,
    config: Vec<u8>,
    memory: Option<Memory>,
    /// Features, as each driver took them.
    acked: Arc<Mutex<Vec<u64>>>,
}

impl VhostUserBackendMut for Foreign {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }
    fn max_queue_size(&self) -> usize {
        64
    }
    fn features(&self) -> u64 {
        VERSION_1 | 1 << 30
    }
    fn acked_features(&mut self, features: u64) {
        assert_ne!(self.end, End::Features, "as the test wants it");
        self.acked.lock().unwrap().push(features);
    }
    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.protocol
    }
    fn set_event_idx(&mut self, _enabled: bool) {}
    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.get(offset as usize..(offset + size) as usize).unwrap_or_default().to_vec()
    }
    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.end == End::WriteConfig {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.config[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        if self.end == End::Memory {
            std::thread::sleep(4 * SHORT);
        }
        self.memory = Some(memory);
        Ok(())
    }
    fn queues_per_thread(&self) -> Vec<u64> {
        vec![1, 2] // a thread for each
    }
    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
    fn stop_vring(&mut self, _index: u32) -> io::Result<()> {
        if self.end == End::StopRing { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }
    fn handle_event(&mut self, event: u16, _set: EventSet, vrings: &[VringMutex], thread: usize) -> io::Result<()> {
        assert_eq!((event, vrings.len()), (0, 1), "each thread has the one ring");
        let memory = self.memory.as_ref().unwrap().memory();
        let mut vring = vrings[0].get_mut();
        while let Some(chain) = vring.get_queue_mut().pop_descriptor_chain(memory.clone()) {
            let parts: Vec<_> = chain.clone().collect();
            let mut bytes = vec![0; parts[0].len() as usize];
            memory.read_slice(&mut bytes, parts[0].addr()).unwrap();
            bytes.iter_mut().for_each(|byte| *byte += 1 + thread as u8);
            memory.write_slice(&bytes, parts[1].addr()).unwrap();
            vring.add_used(chain.head_index(), bytes.len() as u32).unwrap();
        }
        vring.signal_used_queue()
    }
}

const ALL: [VhostUserProtocolFeatures; 3] =
    [VhostUserProtocolFeatures::MQ, VhostUserProtocolFeatures::CONFIG, VhostUserProtocolFeatures::REPLY_ACK];

impl Foreign {
    fn new(protocol: &[VhostUserProtocolFeatures], end: End) -> Foreign {
        let protocol = protocol.iter().copied().collect();
        Foreign { protocol, end, config: (1..=60).collect(), memory: None, acked: Arc::default() }
    }

    /// Serves the other end of the socket to its end. The thread's result says whether that was an error.
    fn serve(self) -> (UnixStream, JoinHandle<bool>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let socket = UnixStream::connect(&path).unwrap();
        let thread = std::thread::spawn(move || {
            // SAFETY: the descriptor is the listener's, which has given it up.
            let mut listener = unsafe { Listener::from_raw_fd(listener.into_raw_fd()) };
            let memory = Memory::new(GuestMemoryMmap::new());
            let mut daemon = VhostUserDaemon::new("foreign".into(), Arc::new(Mutex::new(self)), memory).unwrap();
            daemon.start(&mut listener).unwrap();
            daemon.wait().is_err()
        });
        (socket, thread)
    }
}

/// The rings of a driver that begins.
fn clear_rings(bench: &Bench) {
    for queue in 0..2 {
        bench.ram.write_all_at(&[0; 0x1000], u64::from(ring_at(queue)[0])).unwrap();
    }
}

/// Sends `bytes` on a queue, as its `count`th chain; what comes back.
fn exchange(bench: &Bench, queue: u32, count: u16, bytes: &[u8; 8]) -> [u8; 8] {
    let [desc, avail, used] = ring_at(queue).map(u64::from);
    let (sent, answer) = (0x8000 + u64::from(queue) * 0x100, 0x9000 + u64::from(queue) * 0x100);
    let put = |gpa, bytes: &[u8]| bench.ram.write_all_at(bytes, gpa).unwrap();
    put(sent, bytes);
    let (next, write) = (1_u16, 2_u16);
    for (index, (address, flags)) in (0_u16..).zip([(sent, next), (answer, write)]) {
        let descriptor =
            [&address.to_le_bytes()[..], &8_u32.to_le_bytes(), &flags.to_le_bytes(), &(index + 1).to_le_bytes()];
        put(desc + 16 * u64::from(index), &descriptor.concat());
    }
    put(avail + 4 + 2 * u64::from(count % 8), &[0, 0]);
    put(avail + 2, &(count + 1).to_le_bytes());
    let registered = bench.wiring.registered();
    let (_, kick) = registered.kicks.iter().rev().find(|(index, _)| u32::from(*index) == queue).unwrap();
    kick.write(1).unwrap();
    let begun = Instant::now();
    let mut back = [0; 8];
    let is_used = || {
        let mut index = [0; 2];
        bench.ram.read_exact_at(&mut index, used + 2).unwrap();
        u16::from_le_bytes(index) == count + 1
    };
    while !is_used() || !registered.calls.iter().any(|call| call.read().is_ok()) {
        assert!(begun.elapsed() < PATIENCE, "the chain was not served");
        std::thread::sleep(Duration::from_millis(1));
    }
    bench.ram.read_exact_at(&mut back, answer).unwrap();
    back
}

fn two_lives(protocol: &[VhostUserProtocolFeatures]) {
    let foreign = Foreign::new(protocol, End::Orderly);
    let acked = Arc::clone(&foreign.acked);
    let (socket, thread) = foreign.serve();
    let until = socket.try_clone().unwrap();
    let bench = Bench::new(DeviceSpec { queue_size: 64, queues: Some(2), ..spec(2, socket) }).ready();
    assert_eq!(bench.offered(), VERSION_1);
    assert_eq!(bench.queues(), 2);
    assert_eq!(bench.config(61), [(1..=60).collect(), vec![0]].concat());
    for life in 0..2_u8 {
        clear_rings(&bench);
        bench.drive(VERSION_1, 2);
        assert_eq!(bench.status(), 15);
        for count in 0..10 {
            assert_eq!(exchange(&bench, 0, count, b"abcdefgh"), *b"bcdefghi");
            assert_eq!(exchange(&bench, 1, count, b"abcdefgh"), *b"cdefghij");
        }
        bench.device.write(reg::CONFIG + 32, &[0x80 + life]);
        assert_eq!(bench.config(33)[32], 0x80 + life);
        bench.write(reg::STATUS, 0);
        assert_eq!(bench.status(), 0);
    }
    // Its features are the driver's, and that of the protocol itself.
    assert_eq!(*acked.lock().unwrap(), [VERSION_1 | 1 << 30; 2]);
    until.shutdown(std::net::Shutdown::Both).unwrap();
    thread.join().unwrap();
}

#[test]
fn device_on_vhost_user_backend_serves_two_queues_and_its_configuration_over_two_lives() {
    two_lives(&ALL);
}

#[test]
fn without_reply_ack_all_is_done_before_a_driver_goes_on_all_the_same() {
    two_lives(&ALL[..2]);
}

#[test]
fn rings_are_as_long_as_it_takes_and_one_size_more_names_what_was_tried() {
    let with = |queue_size| {
        let (socket, thread) = Foreign::new(&ALL, End::Orderly).serve();
        (Bench::new(DeviceSpec { queue_size, ..spec(2, socket) }), thread)
    };
    let (bench, _thread) = with(64);
    assert_eq!(bench.ready().read(reg::QUEUE_NUM_MAX), 64);
    let (bench, thread) = with(128);
    let why = bench.handshake_error();
    assert!(why.contains("takes no rings of so many descriptors: 128, 64"), "{why}");
    assert!(thread.join().unwrap(), "it does not go on after it has refused a request");
}

/// A device that runs, of a backend that ends so; and what is said of it once `ends` was done.
fn failure(end: End, ends: impl Fn(&Bench)) -> String {
    let (socket, thread) = Foreign::new(&ALL, end).serve();
    let mut bench = Bench::hurried(DeviceSpec { queue_size: 64, ..spec(2, socket) }).ready();
    clear_rings(&bench);
    bench.drive(VERSION_1, 2);
    ends(&bench);
    assert_ne!(bench.status() & status::NEEDS_RESET, 0);
    let why = bench.failure();
    drop(bench);
    thread.join().unwrap();
    why
}

#[test]
fn backend_that_ends_in_the_middle_of_a_request_fails_the_device_and_names_the_request() {
    let why = failure(End::StopRing, |bench| bench.write(reg::STATUS, 0));
    assert!(why.contains("closed its socket during GET_VRING_BASE"), "{why}");
    let why = failure(End::WriteConfig, |bench| bench.device.write(reg::CONFIG + 32, &[1]));
    assert!(why.contains("closed its socket during GET_CONFIG"), "{why}");
    let why = failure(End::Features, |_| {});
    assert!(why.contains("closed its socket during SET_FEATURES"), "{why}");
    let why = failure(End::Memory, |_| {});
    assert!(why.contains("did not answer SET_MEM_TABLE in time"), "{why}");
}
