//! A scripted frontend and driver for tests of the real backends: guest memory in a sealed memfd, split virtqueues
//! driven by hand, and the vhost crate's frontend.
#![allow(missing_docs)]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use confine::{Child, Spawn};
use rustix::fs::{MemfdFlags, SealFlags};
use testkit::wait::is_listening;
pub use testkit::wait::{PATIENCE, until};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const MIB: u64 = 1 << 20;
/// How far the frontend's addresses are from the guest's: nobody's real ones.
pub const USER: u64 = 0x1000_0000_0000;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL: u64 = 1 << 30;

/// A backend process that dies with the test.
pub struct Backend {
    pub child: Child,
    pub stderr: File,
}

/// Starts a program with `args`, where `{}` stands for the number of the next of `fds` in the child.
pub fn start(program: &str, args: &[&str], fds: Vec<OwnedFd>) -> Backend {
    let mut spawn = Spawn::new(Path::new(program));
    let mut fds = fds.into_iter();
    for arg in args {
        if arg.contains("{}") {
            let number = spawn.fd(fds.next().expect("as many fds as {}"));
            spawn.arg(arg.replace("{}", &number.to_string()));
        } else {
            spawn.arg(arg);
        }
    }
    let stderr = tempfile::tempfile().unwrap();
    spawn.stderr(stderr.try_clone().unwrap().into());
    Backend { child: spawn.spawn().unwrap(), stderr }
}

impl Backend {
    /// Waits until its socket takes connections, for a peer that tries once.
    pub fn listens(&mut self, socket: &Path) {
        until("it listens", || if is_listening(socket) { Ok(()) } else { Err(self.said()) });
    }

    /// Waits until it takes a connection.
    pub fn takes(&mut self, socket: &Path) -> UnixStream {
        until("it takes a connection", || UnixStream::connect(socket).map_err(|e| format!("{e}: {}", self.said())))
    }

    /// Waits for its end.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let status = self.child.wait_for(PATIENCE).unwrap().expect("the backend ends");
        (status, self.said())
    }

    /// What it said, without the lines about layers that this kernel lacks.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        self.stderr.seek(SeekFrom::Start(0)).unwrap();
        self.stderr.read_to_string(&mut text).unwrap();
        text.lines().filter(|line| !line.contains("runs without")).collect::<Vec<_>>().join("\n")
    }

    /// Asserts that it ended with status 1 and one line that has all of `words`.
    pub fn fails_saying(&mut self, words: &[&str]) {
        let (status, said) = self.end();
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {said:?}");
        }
    }
}

/// Guest memory.
pub struct Ram {
    pub file: File,
    pub map: GuestMemoryMmap<()>,
    pub size: u64,
}

impl Ram {
    pub fn new(size: u64) -> Ram {
        Ram::with(size, size, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
    }

    /// Memory of `size` bytes in a file of `file_size`.
    pub fn with(size: u64, file_size: u64, seals: SealFlags) -> Ram {
        let fd = rustix::fs::memfd_create("ram", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(file_size).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        Ram { size, ..Ram::of(file, file_size) }
    }

    /// Memory in a file.
    pub fn of(file: File, size: u64) -> Ram {
        let range = (GuestAddress(0), size as usize, Some(FileOffset::new(file.try_clone().unwrap(), 0)));
        let map = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        Ram { file, map, size }
    }

    pub fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: self.size,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.map.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        self.map.load(GuestAddress(at), Ordering::SeqCst).unwrap()
    }

    pub fn set_u16(&self, at: u64, value: u16) {
        self.map.store(value, GuestAddress(at), Ordering::SeqCst).unwrap();
    }
}

/// The frontend's end of a connection to a backend under test.
pub struct Machine {
    pub backend: Backend,
    pub frontend: Frontend,
    pub ram: Ram,
    pub offered: u64,
    pub socket: UnixStream,
}

/// A socket pair: the test's end has a deadline put on it by a watchdog that ends the connection.
pub fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let watchdog = ours.try_clone().unwrap();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(300));
        let _ = watchdog.shutdown(std::net::Shutdown::Both);
    });
    (ours, theirs.into())
}

impl Machine {
    /// Everything up to the features that the backend offers.
    pub fn connect(backend: Backend, socket: UnixStream, rings: u64) -> Machine {
        let mut frontend = Frontend::from_stream(socket.try_clone().unwrap(), rings);
        frontend.set_owner().unwrap();
        let offered = frontend.get_features().unwrap();
        assert_ne!(offered & PROTOCOL, 0);
        let protocol = frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        assert_eq!(protocol, wanted);
        frontend.set_protocol_features(wanted).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        Machine { backend, frontend, ram: Ram::new(64 * MIB), offered, socket }
    }

    /// Takes `features` beside those every modern driver takes, and hands over memory and rings.
    pub fn begin(&mut self, features: u64, rings: u64, size: u16) -> Vec<Queue> {
        self.frontend.set_features(features | VERSION_1 | PROTOCOL).unwrap();
        self.frontend.set_mem_table(&[self.ram.region()]).unwrap();
        (0..rings).map(|index| self.start_ring(index as usize, size, 0)).collect()
    }

    pub fn start_ring(&mut self, index: usize, size: u16, base: u16) -> Queue {
        let queue = Queue::new(index, size, base);
        self.frontend.set_vring_num(index, size).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &queue.config()).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_err(index, &queue.err).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
        queue
    }

    pub fn config(&mut self, len: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        self.frontend.get_config(0, len as u32, flags, &vec![0; len]).unwrap().1
    }

    /// Hangs up and expects an orderly end.
    pub fn hang_up(self) {
        let Machine { mut backend, socket, .. } = self;
        // The watchdog has a copy: closing would not do.
        socket.shutdown(std::net::Shutdown::Both).unwrap();
        let (status, said) = backend.end();
        assert_eq!(status.code(), Some(0), "{said}");
        assert_eq!(said, "");
    }
}

/// One part of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    pub at: u64,
    pub len: u32,
    pub flags: u16,
}

pub fn out(at: u64, len: u32) -> Part {
    Part { at, len, flags: 0 }
}

pub fn into(at: u64, len: u32) -> Part {
    Part { at, len, flags: WRITE }
}

/// A driver's side of one ring. Descriptors are taken in turn; tests do not outrun the ring.
pub struct Queue {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub next_avail: u16,
    pub last_used: u16,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
}

impl Queue {
    pub fn new(index: usize, size: u16, base: u16) -> Queue {
        let start = 0x10000 * (index as u64 + 1);
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        Queue {
            size,
            desc: start,
            avail: start + 0x4000,
            used: start + 0x8000,
            next_desc: 0,
            next_avail: base,
            last_used: base,
            kick: event(),
            call: event(),
            err: event(),
        }
    }

    pub fn config(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: USER + self.desc,
            used_ring_addr: USER + self.used,
            avail_ring_addr: USER + self.avail,
            log_addr: None,
        }
    }

    pub fn set_descriptor(&self, ram: &Ram, index: u16, part: Part, next: u16) {
        let at = self.desc + 16 * u64::from(index);
        ram.write(at, &descriptor(part, next));
    }

    /// Makes `head` available without asking whether it makes sense.
    pub fn make_available(&mut self, ram: &Ram, head: u16) {
        ram.set_u16(self.avail + 4 + 2 * u64::from(self.next_avail % self.size), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        ram.set_u16(self.avail + 2, self.next_avail);
    }

    /// Makes a chain available; its head.
    pub fn add(&mut self, ram: &Ram, parts: &[Part]) -> u16 {
        let head = self.next_desc;
        for (n, part) in parts.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (self.next_desc + 1) % self.size;
            let more = if n + 1 < parts.len() { NEXT } else { 0 };
            self.set_descriptor(ram, index, Part { flags: part.flags | more, ..*part }, self.next_desc);
        }
        self.make_available(ram, head);
        head
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// The next used entry, if there is one by now.
    pub fn poll_used(&mut self, ram: &Ram) -> Option<(u16, u32)> {
        if ram.u16(self.used + 2) == self.last_used {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = ram.read(self.used + 4 + 8 * u64::from(self.last_used % self.size), 8);
        self.last_used = self.last_used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }

    /// The next used entry: its chain's head and its length.
    pub fn wait_used(&mut self, ram: &Ram) -> (u16, u32) {
        let begun = Instant::now();
        loop {
            if let Some(entry) = self.poll_used(ram) {
                return entry;
            }
            assert!(begun.elapsed() < PATIENCE, "the chain comes back");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Adds, kicks, waits; the length that came back.
    pub fn round_trip(&mut self, ram: &Ram, parts: &[Part]) -> u32 {
        let head = self.add(ram, parts);
        self.kick();
        let (id, len) = self.wait_used(ram);
        assert_eq!(id, head);
        len
    }
}

pub fn descriptor(part: Part, next: u16) -> Vec<u8> {
    let mut bytes = part.at.to_le_bytes().to_vec();
    bytes.extend(part.len.to_le_bytes());
    bytes.extend(part.flags.to_le_bytes());
    bytes.extend(next.to_le_bytes());
    bytes
}

/// Whether an eventfd is signalled within a while.
pub fn signalled(event: &EventFd) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if event.read().is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}
