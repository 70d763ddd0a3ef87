//! The guest's memory as frontends give it: in files of every kind, at once or in slots, and cut short.

mod disk;

use disk::*;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use testrig::frontend::*;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

#[test]
fn memory_whose_file_is_one_page_short_is_refused_and_the_right_size_is_taken() {
    let (_image, mut machine) = fresh(&[]);
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    machine.ram = Ram::with(4 * MIB, 4 * MIB, seals);
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    machine.ram = Ram::with(4 * MIB, 4 * MIB - 4096, seals);
    assert!(machine.frontend.set_mem_table(&[machine.ram.region()]).is_err());
    machine.backend.fails_saying(&["4190208", "4194304", "SIGBUS"]);
}

#[test]
fn memory_behind_an_offset_past_the_end_of_its_file_is_refused() {
    let (_image, mut machine) = fresh(&[]);
    let mut region = machine.ram.region();
    region.mmap_offset = 4096;
    assert!(machine.frontend.set_mem_table(&[region]).is_err());
    machine.backend.fails_saying(&["region 0"]);
}

#[test]
fn memory_that_can_shrink_is_refused_with_the_remedy_where_sealed_memory_is_required() {
    let (_image, mut machine) = fresh(&["--require-sealed-memory"]);
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    machine.ram = Ram::with(4 * MIB, 4 * MIB, SealFlags::GROW);
    assert!(machine.frontend.set_mem_table(&[machine.ram.region()]).is_err());
    machine.backend.fails_saying(&["F_SEAL_SHRINK", "memory-backend-memfd", "--require-sealed-memory"]);

    let (_image, mut machine) = fresh(&["--require-sealed-memory"]);
    let file = file(MIB);
    assert!(machine.frontend.set_mem_table(&[region(&file, MIB, 0)]).is_err());
    machine.backend.fails_saying(&["F_SEAL_SHRINK"]);
}

/// A file on disk.
fn file(size: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; size as usize]).unwrap();
    file
}

/// Guest memory from 0 on.
fn region(file: &impl AsRawFd, size: u64, offset: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: size,
        userspace_addr: USER,
        mmap_offset: offset,
        mmap_handle: file.as_raw_fd(),
    }
}

#[test]
fn memory_that_can_shrink_is_used_and_its_end_is_the_backend_s_in_one_line() {
    let image = image(4096);
    let mut machine = connect(&image, &[]);
    machine.ram = Ram::with(4 * MIB, 4 * MIB, SealFlags::empty());
    let mut queue = machine.begin(FLUSH, 1, 16).remove(0);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    // The rings stay, what a request names goes; then all of it. The test itself touches nothing of what has gone.
    machine.ram.write(HEAD, &header(T_IN, 0));
    queue.add(&machine.ram, &[out(HEAD, 16), into(DATA, 512), into(STATUS, 1)]);
    machine.ram.file.set_len(HEAD).unwrap();
    queue.kick();
    machine.backend.fails_saying(&["vhost-blk-backend", "SIGBUS", "cut"]);
}

#[test]
fn memory_in_files_of_any_kind_is_served_and_what_is_no_file_refused() {
    let image = image(4096);
    for at in ["/tmp", "/dev/shm"] {
        let mut machine = connect(&image, &[]);
        let file = tempfile::tempfile_in(at).unwrap();
        file.set_len(4 * MIB).unwrap();
        machine.ram = Ram::of(file, 4 * MIB);
        let mut queue = machine.begin(FLUSH, 1, 16).remove(0);
        assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
        machine.hang_up();
    }
    let (_image, mut machine) = fresh(&[]);
    let zero = File::options().read(true).write(true).open("/dev/zero").unwrap();
    assert!(machine.frontend.set_mem_table(&[region(&zero, MIB, 0)]).is_err());
    machine.backend.fails_saying(&["region 0", "no file"]);
    let (_image, mut machine) = fresh(&[]);
    assert!(machine.frontend.set_mem_table(&[region(&file(MIB), 4096, 512)]).is_err());
    machine.backend.fails_saying(&["region 0", "0x200", "4096"]);
}

/// Huge pages for the time of a test, where this host has memory for them.
struct HugePages(u64);

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn new(count: u64) -> Option<HugePages> {
        let read = || std::fs::read_to_string(Self::COUNT).ok()?.trim().parse::<u64>().ok();
        let before = read()?;
        std::fs::write(Self::COUNT, (before + count).to_string()).ok()?;
        let pages = HugePages(before);
        (read()? >= before + count).then_some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::COUNT, self.0.to_string());
    }
}

#[test]
fn regions_within_huge_pages_are_mapped_from_the_page_s_start_and_given_back() {
    const HUGE: u64 = 2 * MIB;
    let Some(_pages) = HugePages::new(4) else {
        return testkit::skip!("this host gives no huge pages of 2 MiB (root, and memory that is free in one piece)");
    };
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let huge = || {
        let file = File::from(rustix::fs::memfd_create("huge", flags).unwrap());
        file.set_len(2 * HUGE).unwrap();
        file
    };
    let image = image(4096);
    let mut machine = connect(&image, &[]);
    machine.ram = Ram::of(huge(), 2 * HUGE);
    machine.frontend.set_features(FLUSH | VERSION_1 | PROTOCOL).unwrap();
    // What a PC has: memory below and above a hole that ends within a huge page. It is given twice, the first is unmapped.
    let part = |machine: &Machine, from: u64, to: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: from,
        memory_size: to - from,
        userspace_addr: USER + from,
        mmap_offset: from,
        mmap_handle: machine.ram.file.as_raw_fd(),
    };
    for _ in 0..2 {
        let table = [part(&machine, 0, 0xa0000), part(&machine, 0xc0000, 2 * HUGE)];
        machine.frontend.set_mem_table(&table).unwrap();
    }
    let mut queue = machine.start_ring(0, 16, 0);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 0, &[out(DATA, 512)]), OK);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", machine.backend.child.pid())).unwrap();
    assert_eq!(maps.lines().filter(|line| line.contains("huge")).count(), 2, "{maps}");
    assert!(machine.frontend.set_mem_table(&[part(&machine, 0, 2 * HUGE + 4096)]).is_err());
    machine.backend.fails_saying(&["4194304", "4198400"]);
}

/// The n-th MiB of the machine's memory.
fn slot(machine: &Machine, n: u64) -> VhostUserMemoryRegionInfo {
    let n = n * MIB;
    let at = VhostUserMemoryRegionInfo { guest_phys_addr: n, userspace_addr: USER + n, ..machine.ram.region() };
    VhostUserMemoryRegionInfo { memory_size: MIB, mmap_offset: n, ..at }
}

#[test]
fn sixty_four_slots_are_taken_one_by_one_and_given_back_and_a_sixty_fifth_refused() {
    let (_image, mut machine) = fresh(&[]);
    machine.ram = Ram::new(65 * MIB);
    assert_eq!(machine.frontend.get_max_mem_slots().unwrap(), 64);
    for n in 0..64 {
        machine.frontend.add_mem_region(&slot(&machine, n)).unwrap();
    }
    let mapped = || std::fs::read_to_string(format!("/proc/{}/maps", machine.backend.child.pid())).unwrap();
    let before = mapped().lines().count();
    let mut one = slot(&machine, 7);
    for _ in 0..3 {
        machine.frontend.remove_mem_region(&one).unwrap();
        machine.frontend.add_mem_region(&one).unwrap();
    }
    assert_eq!(mapped().lines().count(), before);
    one.guest_phys_addr = 64 * MIB;
    one.userspace_addr = USER + 64 * MIB;
    assert!(machine.frontend.add_mem_region(&one).is_err());
    machine.backend.fails_saying(&["64"]);

    let (_image, mut machine) = fresh(&[]);
    assert!(machine.frontend.remove_mem_region(&slot(&machine, 0)).is_err());
    machine.backend.fails_saying(&["0x100000 bytes at 0x0", "none"]);
}

#[test]
fn a_ring_whose_memory_goes_waits_for_it_and_goes_on_when_it_comes_back() {
    let image = image(4096);
    let mut machine = connect(&image, &[]);
    machine.frontend.set_features(FLUSH | VERSION_1 | PROTOCOL).unwrap();
    for n in 0..4 {
        machine.frontend.add_mem_region(&slot(&machine, n)).unwrap();
    }
    let mut queue = machine.start_ring(0, 16, 0);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    // The rings are in the first, the third has the data.
    for n in [0, 2] {
        machine.frontend.remove_mem_region(&slot(&machine, n)).unwrap();
        let head = queue.add(&machine.ram, &[out(HEAD, 16), into(DATA, 512), into(STATUS, 1)]);
        queue.kick();
        if n == 0 {
            machine.frontend.get_features().unwrap();
            assert_eq!(queue.poll_used(&machine.ram), None);
            machine.frontend.add_mem_region(&slot(&machine, n)).unwrap();
        }
        let served = if n == 0 { 513 } else { 0 };
        assert_eq!(queue.wait_used(&machine.ram), (head, served));
    }
    machine.hang_up();
}

#[test]
fn eight_regions_are_taken_and_nine_or_overlapping_ones_refused() {
    let (_image, mut machine) = fresh(&[]);
    let region = |machine: &Machine, n: u64| {
        let mut region = machine.ram.region();
        region.memory_size = MIB;
        region.guest_phys_addr = n * MIB;
        region.userspace_addr = USER + n * MIB;
        region.mmap_offset = n * MIB;
        region
    };
    let table = |machine: &Machine, count: u64| (0..count).rev().map(|n| region(machine, n)).collect::<Vec<_>>();
    machine.frontend.set_mem_table(&table(&machine, 8)).unwrap();
    assert!(machine.frontend.set_mem_table(&table(&machine, 9)).is_err());
    machine.backend.fails_saying(&["9 regions"]);

    for field in [0, 1] {
        let (_image, mut machine) = fresh(&[]);
        let (one, mut two) = (region(&machine, 0), region(&machine, 1));
        match field {
            0 => two.guest_phys_addr = MIB - 1,
            _ => two.userspace_addr = USER + MIB - 1,
        }
        assert!(machine.frontend.set_mem_table(&[one, two]).is_err());
        machine.backend.fails_saying(&["overlap"]);
    }
}

#[test]
fn a_buffer_over_the_seam_of_two_regions_is_served_whole_and_one_over_a_hole_is_not() {
    let image = image(1 << 20);
    std::fs::write(image.path(), vec![7; 1 << 20]).unwrap();
    let mut machine = connect(&image, &[]);
    machine.frontend.set_features(FLUSH | VERSION_1 | PROTOCOL).unwrap();
    let hole = 2 * MIB + MIB / 2;
    let regions = [(0, 2 * MIB), (2 * MIB, MIB / 2), (3 * MIB, MIB)].map(|(at, size)| VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        memory_size: size,
        userspace_addr: USER + at,
        mmap_offset: at,
        ..machine.ram.region()
    });
    machine.frontend.set_mem_table(&regions).unwrap();
    let mut queue = machine.start_ring(0, 128, 0);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(2 * MIB - 100, 512)]), OK);
    assert_eq!(machine.ram.read(2 * MIB - 100, 512), [7; 512]);
    machine.ram.write(HEAD, &header(T_IN, 0));
    for at in [hole - 100, 3 * MIB - 100] {
        queue.add(&machine.ram, &[out(HEAD, 16), into(at, 512), into(STATUS, 1)]);
        queue.kick();
        assert_eq!(queue.wait_used(&machine.ram).1, 0, "comes back unserved");
        // Not the part of it that is there either.
        assert_eq!(machine.ram.read(at, 512), [0; 512]);
    }
    machine.hang_up();
}
