//! The real backend against a scripted frontend and driver: what a well-behaved guest gets.

mod disk;

use disk::*;
use std::os::unix::fs::FileExt;
use testrig::frontend::*;
use vhost::VhostBackend;

#[test]
fn what_was_written_is_read_back_and_lies_in_the_image_at_its_sector() {
    let image = image(1 << 20);
    let (machine, mut queue) = boot(&image, &[], FLUSH | EVENT_IDX);
    let data: Vec<u8> = (0..8192u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    machine.ram.write(DATA, &data);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 7, &[out(DATA, 4096), out(DATA + 4096, 4096)]), OK);
    assert_eq!(request(&machine.ram, &mut queue, T_FLUSH, 0, &[]), OK);
    let mut there = vec![0; 8192];
    image.as_file().read_exact_at(&mut there, 7 * 512).unwrap();
    assert_eq!(there, data);

    // Scattered over pieces that are no sectors.
    let pieces = [into(DATA + MIB, 1), into(DATA + MIB + 1, 511), into(DATA + MIB + 512, 7680)];
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 7, &pieces), OK);
    assert_eq!(machine.ram.read(DATA + MIB, 8192), data);
    assert!(signalled(&queue.call));
    assert_eq!(machine.frontend.get_vring_base(0).unwrap(), 3);
    machine.hang_up();
}

#[test]
fn an_image_that_says_to_be_of_another_format_is_raw_all_the_same() {
    let image = image(1 << 20);
    // A qcow2 header, as a guest may write one, that names a file of the host as what is below.
    let mut header = b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\0\x48\0\0\0\x0b".to_vec();
    header.resize(0x48, 0);
    header.extend(b"/etc/passwd");
    header.resize(512, 0);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    machine.ram.write(DATA, &header);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 0, &[out(DATA, 512)]), OK);
    machine.hang_up();
    let (mut machine, mut queue) = boot(&image, &[], FLUSH);
    assert_eq!(machine.config(8), 2048u64.to_le_bytes());
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA + MIB, 512)]), OK);
    assert_eq!(machine.ram.read(DATA + MIB, 512), header);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 1, &[into(DATA + MIB, 512)]), OK);
    assert_eq!(machine.ram.read(DATA + MIB, 512), [0; 512]);
    machine.hang_up();
}

#[test]
fn the_last_sector_is_reached_and_the_one_behind_it_is_not() {
    let image = image(64 * 512);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    for (kind, part) in [(T_OUT, out(DATA, 512)), (T_IN, into(DATA, 512))] {
        assert_eq!(request(&machine.ram, &mut queue, kind, 63, &[part]), OK);
        assert_eq!(request(&machine.ram, &mut queue, kind, 64, &[part]), IOERR);
        assert_eq!(request(&machine.ram, &mut queue, kind, u64::MAX, &[part]), IOERR);
        let two = Part { len: 1024, ..part };
        assert_eq!(request(&machine.ram, &mut queue, kind, 62, &[two]), OK);
        assert_eq!(request(&machine.ram, &mut queue, kind, 63, &[two]), IOERR);
        let odd = Part { len: 511, ..part };
        assert_eq!(request(&machine.ram, &mut queue, kind, 0, &[odd]), IOERR);
    }
    assert_eq!(image.as_file().metadata().unwrap().len(), 64 * 512);
    machine.hang_up();
}

#[test]
fn get_id_gives_the_serial_padded_with_zeros_and_unknown_requests_are_unsupported() {
    let image = image(512);
    let (machine, mut queue) = boot(&image, &["--serial", "volt-disk-0"], 0);
    machine.ram.write(DATA, &[0xff; 32]);
    assert_eq!(request(&machine.ram, &mut queue, T_GET_ID, 0, &[into(DATA, 20)]), OK);
    assert_eq!(machine.ram.read(DATA, 21), b"volt-disk-0\0\0\0\0\0\0\0\0\0\xff");
    machine.ram.write(DATA, &[0xff; 32]);
    assert_eq!(request(&machine.ram, &mut queue, T_GET_ID, 0, &[into(DATA, 4)]), OK);
    assert_eq!(machine.ram.read(DATA, 5), b"volt\xff");
    for kind in [2, 3, 11, 13, u32::MAX] {
        assert_eq!(request(&machine.ram, &mut queue, kind, 0, &[into(DATA, 20)]), UNSUPP);
    }
    machine.hang_up();
}

#[test]
fn a_read_only_disk_reads_refuses_writes_and_says_so() {
    let image = image(4096);
    image.as_file().write_all_at(&[0x5a; 4096], 0).unwrap();
    let (machine, mut queue) = boot(&image, &["--read-only"], FLUSH);
    assert_ne!(machine.offered & RO, 0);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 1, &[into(DATA, 512)]), OK);
    assert_eq!(machine.ram.read(DATA, 512), [0x5a; 512]);
    machine.ram.write(DATA, &[1; 512]);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 1, &[out(DATA, 512)]), IOERR);
    assert_eq!(request(&machine.ram, &mut queue, T_FLUSH, 0, &[]), OK);
    assert_eq!(std::fs::read(image.path()).unwrap(), [0x5a; 4096]);
    machine.hang_up();
}

#[test]
fn configuration_space_has_capacity_segments_and_block_size_and_ends_in_zeros() {
    let image = image(3 << 20);
    let (mut machine, _queue) = boot(&image, &[], FLUSH);
    assert_eq!(machine.offered & (RO | MQ), 0);
    assert_eq!(machine.offered & (FLUSH | SEG_MAX | BLK_SIZE), FLUSH | SEG_MAX | BLK_SIZE);
    let config = machine.config(256);
    assert_eq!(config[..8], (3u64 << 11).to_le_bytes());
    assert_eq!(config[12..16], 126u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[60..], [0; 196]);
    machine.hang_up();
}

#[test]
fn a_ring_of_1024_serves_many_requests_over_the_wrap_of_its_index() {
    let image = image(1 << 20);
    let mut machine = connect(&image, &[]);
    machine.frontend.set_features(FLUSH | EVENT_IDX | VERSION_1 | PROTOCOL).unwrap();
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    let base = 0xff80;
    machine.ram.set_u16(0x10000 + 0x8002, base); // the used index that a former life left behind
    machine.ram.set_u16(0x10000 + 0x4002, base);
    let mut queue = machine.start_ring(0, 1024, base);
    for n in 0..300u64 {
        machine.ram.write(DATA, &n.to_le_bytes());
        assert_eq!(request(&machine.ram, &mut queue, T_OUT, n, &[out(DATA, 512)]), OK);
    }
    for n in 0..300u64 {
        assert_eq!(request(&machine.ram, &mut queue, T_IN, n, &[into(DATA, 512)]), OK);
        assert_eq!(machine.ram.read(DATA, 8), n.to_le_bytes());
    }
    assert_eq!(machine.frontend.get_vring_base(0).unwrap(), u32::from(base.wrapping_add(600)));
    machine.hang_up();
}

#[test]
fn a_stopped_ring_is_not_touched_and_goes_on_where_it_was() {
    let image = image(1 << 20);
    let (mut machine, mut queue) = boot(&image, &[], 0);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    assert_eq!(machine.frontend.get_vring_base(0).unwrap(), 1);
    machine.ram.write(HEAD, &header(T_IN, 0));
    queue.add(&machine.ram, &[out(HEAD, 16), into(DATA, 512), into(STATUS, 1)]);
    queue.kick();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(queue.poll_used(&machine.ram), None);
    // Started again, it serves what is there without another kick.
    let again = machine.start_ring(0, queue.size, 1);
    queue.kick = again.kick;
    queue.call = again.call;
    queue.wait_used(&machine.ram);
    machine.hang_up();
}

#[test]
fn disabling_pauses_a_ring_and_enabling_resumes_it() {
    use vhost::vhost_user::VhostUserFrontend;
    let image = image(1 << 20);
    let (mut machine, mut queue) = boot(&image, &[], 0);
    machine.frontend.set_vring_enable(0, false).unwrap();
    machine.ram.write(HEAD, &header(T_IN, 0));
    queue.add(&machine.ram, &[out(HEAD, 16), into(DATA, 512), into(STATUS, 1)]);
    queue.kick();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(queue.poll_used(&machine.ram), None);
    machine.frontend.set_vring_enable(0, true).unwrap();
    queue.wait_used(&machine.ram);
    machine.hang_up();
}

#[test]
fn two_queues_serve_at_the_same_time() {
    let image = image(1 << 20);
    let mut machine = connect(&image, &["--queues", "2"]);
    assert_ne!(machine.offered & MQ, 0);
    assert_eq!(machine.config(36)[34..], 2u16.to_le_bytes());
    let mut queues = machine.begin(FLUSH | MQ, 2, 128);
    for (n, queue) in queues.iter_mut().enumerate() {
        let at = DATA + 0x1000 * n as u64;
        machine.ram.write(at, &[n as u8 + 1; 512]);
        assert_eq!(request(&machine.ram, queue, T_OUT, n as u64, &[out(at, 512)]), OK);
    }
    let bytes = std::fs::read(image.path()).unwrap();
    assert_eq!((bytes[0], bytes[512]), (1, 2));
    machine.hang_up();
}

#[test]
fn calls_are_suppressed_until_the_event_index_the_driver_asked_for() {
    let image = image(1 << 20);
    let (machine, mut queue) = boot(&image, &[], EVENT_IDX);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    assert!(signalled(&queue.call)); // used_event is 0: the first
    machine.ram.set_u16(queue.avail + 4 + 2 * u64::from(queue.size), 2); // used_event
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(queue.call.read().is_err());
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    assert!(signalled(&queue.call));
    machine.hang_up();
}

#[test]
fn a_new_memory_table_is_taken_over_by_a_running_ring() {
    let image = image(1 << 20);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 0, &[out(DATA, 512)]), OK);
    // Another file with the same content at the same addresses.
    let other = Ram::new(machine.ram.size);
    other.write(0, &machine.ram.read(0, machine.ram.size as usize));
    machine.frontend.set_mem_table(&[other.region()]).unwrap();
    other.write(DATA, &[0x77; 512]);
    assert_eq!(request(&other, &mut queue, T_OUT, 3, &[out(DATA, 512)]), OK);
    assert_eq!(std::fs::read(image.path()).unwrap()[3 * 512..4 * 512], [0x77; 512]);
    machine.hang_up();
}

#[test]
fn an_image_that_was_truncated_under_the_backend_gives_read_errors_and_nothing_worse() {
    let image = image(8192);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    image.as_file().set_len(1024).unwrap();
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 1, &[into(DATA, 1024)]), IOERR);
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 1, &[into(DATA, 512)]), OK);
    machine.hang_up();
}
