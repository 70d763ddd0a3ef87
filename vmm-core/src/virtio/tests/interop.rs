//! A backend that nobody here wrote: the vhost-user-blk export of QEMU's storage daemon serves a driver written
//! here through this frontend. Skipped, with a line that says so, where the daemon is not installed.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::regs::reg;
use super::bench::{Bench, VERSION_1, ring_at, spec};

const DAEMON: &str = "qemu-storage-daemon";
const PATIENCE: Duration = Duration::from_secs(20);
const SECTOR: usize = 512;

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Daemon {
    /// None where it is not installed.
    fn start(dir: &Path) -> Option<(Daemon, UnixStream)> {
        let socket = dir.join("blk.sock");
        let child = Command::new(DAEMON)
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", dir.join("disk").display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,num-queues=2",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        let daemon = match child {
            Ok(child) => Daemon(child),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => panic!("{DAEMON}: {error}"),
        };
        let start = Instant::now();
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => return Some((daemon, stream)),
                Err(error) => assert!(start.elapsed() < PATIENCE, "{DAEMON}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The least virtio-blk driver there is: one request at a time.
struct Driver<'a> {
    bench: &'a Bench,
    queue: u32,
    requests: u16,
}

impl Driver<'_> {
    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.bench.ram.write_all_at(bytes, gpa).unwrap();
    }

    fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.bench.ram.read_exact_at(&mut bytes, gpa).unwrap();
        bytes
    }

    /// VIRTIO_BLK_T_IN (0) or OUT (1) of one sector at `data`; returns the status byte.
    fn transfer(&mut self, out: bool, sector: u64, data: u64) -> u8 {
        let [desc, avail, used] = ring_at(self.queue).map(u64::from);
        let (header, status) = (0x8000, 0x8100);
        self.put(header, &[u64::from(out).to_le_bytes(), sector.to_le_bytes()].concat());
        self.put(status, &[0xff]);
        let (next, write) = (1_u16, 2_u16);
        let chain =
            [(header, 16_u32, next), (data, SECTOR as u32, next | if out { 0 } else { write }), (status, 1, write)];
        for (index, (address, length, flags)) in (0_u16..).zip(chain) {
            let entry =
                [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &(index + 1).to_le_bytes()];
            self.put(desc + 16 * u64::from(index), &entry.concat());
        }
        self.put(avail + 4 + 2 * u64::from(self.requests % 8), &[0, 0]);
        self.requests = self.requests.wrapping_add(1);
        self.put(avail + 2, &self.requests.to_le_bytes());
        let registered = self.bench.wiring.registered();
        let (_, kick) = registered.kicks.iter().rev().find(|(queue, _)| u32::from(*queue) == self.queue).unwrap();
        kick.write(1).unwrap();
        let start = Instant::now();
        while u16::from_le_bytes(self.get(used + 2)) != self.requests {
            assert!(start.elapsed() < PATIENCE, "the request was not served");
            std::thread::sleep(Duration::from_millis(1));
        }
        while !registered.calls.iter().any(|call| call.read().is_ok()) {
            assert!(start.elapsed() < PATIENCE, "no interrupt came");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.get::<1>(status)[0]
    }
}

#[test]
fn qemu_storage_daemon_serves_a_disk_over_two_lives_of_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let image: Vec<u8> = (0..64 * SECTOR).map(|at| (at / SECTOR) as u8 ^ at as u8).collect();
    std::fs::write(dir.path().join("disk"), &image).unwrap();
    let Some((_daemon, socket)) = Daemon::start(dir.path()) else {
        return testkit::skip!("{DAEMON} is not installed (Debian: qemu-system-common)");
    };
    let bench = Bench::new(spec(2, socket)).ready();
    assert_eq!(bench.queues(), 2);
    assert_eq!(bench.config(8), 64_u64.to_le_bytes());
    let flush_and_config_wce = 1 << 9 | 1 << 11;
    assert_eq!(bench.offered() & flush_and_config_wce, flush_and_config_wce);
    for life in 0..2_u8 {
        for queue in 0..2 {
            // A driver starts with rings that hold nothing.
            let zero = [0; 0x1000];
            bench.ram.write_all_at(&zero, u64::from(ring_at(queue)[0])).unwrap();
        }
        bench.drive(VERSION_1 | flush_and_config_wce, 2);
        assert_eq!(bench.status(), 15);
        for queue in 0..2 {
            let mut driver = Driver { bench: &bench, queue, requests: 0 };
            assert_eq!(driver.transfer(false, 5, 0x9000), 0);
            assert_eq!(driver.get::<SECTOR>(0x9000), image[5 * SECTOR..6 * SECTOR]);
            let written = [0xa0 + life + queue as u8; SECTOR];
            driver.put(0xa000, &written);
            assert_eq!(driver.transfer(true, 9, 0xa000), 0);
            assert_eq!(driver.transfer(false, 9, 0x9000), 0);
            assert_eq!(driver.get::<SECTOR>(0x9000), written);
            assert_ne!(driver.transfer(false, 64, 0x9000), 0, "past the end of the disk");
        }
        // The write-cache switch is a field that a driver writes (Virtio 1.2, 5.2.4).
        let switch = |on: u8| {
            bench.device.write(reg::CONFIG + 32, &[on]);
            bench.config(33)[32]
        };
        assert_eq!((switch(0), switch(1)), (0, 1));
        bench.write(reg::STATUS, 0);
        assert_eq!(bench.status(), 0);
    }
}
