//! The real backend against a hostile driver: whatever it writes into the rings costs it its ring at most.

mod disk;

use disk::*;
use testrig::frontend::*;
use vhost::VhostBackend;

/// A request that has to work still, after whatever went before.
fn still_serves(machine: &Machine, queue: &mut Queue) {
    assert_eq!(request(&machine.ram, queue, T_IN, 0, &[into(DATA, 512)]), OK);
}

/// A malformed chain comes back with nothing written.
fn comes_back_unserved(machine: &Machine, queue: &mut Queue, head: u16) {
    queue.kick();
    assert_eq!(queue.wait_used(&machine.ram), (head, 0));
    still_serves(machine, queue);
}

#[test]
fn a_chain_that_loops_comes_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    let part = out(HEAD, 16);
    queue.set_descriptor(&machine.ram, 100, Part { flags: NEXT, ..part }, 101);
    queue.set_descriptor(&machine.ram, 101, Part { flags: NEXT, ..part }, 100);
    queue.make_available(&machine.ram, 100);
    comes_back_unserved(&machine, &mut queue, 100);
    // Onto itself.
    queue.set_descriptor(&machine.ram, 102, Part { flags: NEXT, ..part }, 102);
    queue.make_available(&machine.ram, 102);
    comes_back_unserved(&machine, &mut queue, 102);
    machine.hang_up();
}

#[test]
fn a_chain_that_leads_out_of_the_table_comes_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    for next in [128, 0xffff] {
        let part = Part { flags: NEXT, ..out(HEAD, 16) };
        queue.set_descriptor(&machine.ram, 100, part, next);
        queue.make_available(&machine.ram, 100);
        comes_back_unserved(&machine, &mut queue, 100);
    }
    machine.hang_up();
}

#[test]
fn parts_outside_the_memory_come_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    let end = machine.ram.size;
    machine.ram.write(HEAD, &header(T_IN, 0));
    for (at, len) in [(end, 512), (end - 511, 512), (u64::MAX - 255, 512), (u64::MAX, 1), (1 << 52, 512), (0, u32::MAX)]
    {
        let head = queue.add(&machine.ram, &[out(HEAD, 16), into(at, len), into(STATUS, 1)]);
        comes_back_unserved(&machine, &mut queue, head);
    }
    // One byte less is served.
    machine.ram.write(HEAD, &header(T_IN, 0));
    assert_eq!(queue.round_trip(&machine.ram, &[out(HEAD, 16), into(end - 512, 512), into(STATUS, 1)]), 513);
    machine.hang_up();
}

#[test]
fn readable_parts_behind_writable_ones_come_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    let head = queue.add(&machine.ram, &[into(STATUS, 1), out(HEAD, 16)]);
    comes_back_unserved(&machine, &mut queue, head);
    machine.hang_up();
}

#[test]
fn requests_without_header_or_status_get_what_can_be_given() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    machine.ram.write(HEAD, &header(T_IN, 0));
    // No room for a status.
    assert_eq!(queue.round_trip(&machine.ram, &[out(HEAD, 16)]), 0);
    // A header one byte short, or none at all.
    for parts in [vec![out(HEAD, 15), into(STATUS, 1)], vec![into(STATUS, 1)]] {
        machine.ram.write(STATUS, &[0xee]);
        assert_eq!(queue.round_trip(&machine.ram, &parts), 1);
        assert_eq!(machine.ram.read(STATUS, 1), [IOERR]);
    }
    // A header in sixteen pieces is as good as one.
    let mut parts: Vec<Part> = (0..16).map(|n| out(HEAD + n, 1)).collect();
    parts.extend([into(DATA, 512), into(STATUS, 1)]);
    assert_eq!(queue.round_trip(&machine.ram, &parts), 513);
    assert_eq!(machine.ram.read(STATUS, 1), [OK]);
    // Empty parts count for nothing.
    let parts = [out(HEAD, 16), out(DATA, 0), into(DATA, 0), into(DATA, 512), into(STATUS, 1), into(DATA, 0)];
    assert_eq!(queue.round_trip(&machine.ram, &parts), 513);
    still_serves(&machine, &mut queue);
    machine.hang_up();
}

/// Puts an indirect table of `count` one-byte data parts between header and status; the table's length in bytes.
fn indirect(machine: &Machine, count: u32) -> u32 {
    let table = 0x400000;
    let mut at = table;
    let mut put = |part: Part, last: bool, index: u32| {
        let flags = part.flags | if last { 0 } else { NEXT };
        machine.ram.write(at, &descriptor(Part { flags, ..part }, (index + 1) as u16));
        at += 16;
    };
    put(out(HEAD, 16), false, 0);
    for n in 0..count {
        put(into(DATA + u64::from(n), 1), false, n + 1);
    }
    put(into(STATUS, 1), true, count + 1);
    16 * (count + 2)
}

fn add_indirect(machine: &Machine, queue: &mut Queue, len: u32, flags: u16) -> u16 {
    let part = Part { at: 0x400000, len, flags: INDIRECT | flags };
    queue.add(&machine.ram, &[part])
}

#[test]
fn a_chain_of_1023_parts_is_served_and_of_1024_comes_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH | INDIRECT_DESC);
    machine.ram.write(HEAD, &header(T_GET_ID, 0));
    let len = indirect(&machine, 1021);
    add_indirect(&machine, &mut queue, len, 0);
    queue.kick();
    assert_eq!(queue.wait_used(&machine.ram).1, 1022);
    let len = indirect(&machine, 1022);
    let head = add_indirect(&machine, &mut queue, len, 0);
    comes_back_unserved(&machine, &mut queue, head);
    machine.hang_up();
}

#[test]
fn indirect_tables_that_make_no_sense_come_back_unserved() {
    let image = image(4096);
    let (machine, mut queue) = boot(&image, &[], FLUSH | INDIRECT_DESC);
    for len in [0, 15, 17, 16 * 65536] {
        indirect(&machine, 1);
        let head = add_indirect(&machine, &mut queue, len, 0);
        comes_back_unserved(&machine, &mut queue, head);
    }
    // A table in a table.
    machine.ram.write(0x400000, &descriptor(Part { at: 0x400000, len: 16, flags: INDIRECT }, 0));
    let head = add_indirect(&machine, &mut queue, 16, 0);
    comes_back_unserved(&machine, &mut queue, head);
    // A table of 65535 entries that goes around in it.
    for n in 0..65535u64 {
        let part = Part { flags: NEXT, ..out(HEAD, 1) };
        machine.ram.write(0x400000 + 16 * n, &descriptor(part, ((n + 1) % 65535) as u16));
    }
    let head = add_indirect(&machine, &mut queue, 16 * 65535, 0);
    comes_back_unserved(&machine, &mut queue, head);
    machine.hang_up();
}

#[test]
fn parts_that_overlap_are_served_and_harm_the_guest_only() {
    let image = image(1 << 20);
    let (machine, mut queue) = boot(&image, &[], FLUSH);
    machine.ram.write(HEAD, &header(T_IN, 0));
    // Data over the header, over the status, and over the ring's own descriptors.
    let status = into(HEAD, 1);
    queue.round_trip(&machine.ram, &[out(HEAD, 16), into(HEAD, 512), into(HEAD, 512), status]);
    let desc = queue.desc;
    machine.ram.write(HEAD, &header(T_IN, 0));
    queue.round_trip(&machine.ram, &[out(HEAD, 16), into(desc, 2048), into(STATUS, 1)]);
    still_serves(&machine, &mut queue);
    machine.hang_up();
}

#[test]
fn an_impossible_available_index_stops_the_ring_and_signals_its_error() {
    let image = image(4096);
    let (mut machine, queue) = boot(&image, &[], FLUSH);
    machine.ram.set_u16(queue.avail + 2, 129); // more than the ring has
    queue.kick();
    assert!(signalled(&queue.err));
    // The frontend can have it, and start it afresh.
    machine.frontend.get_vring_base(0).unwrap();
    machine.ram.set_u16(queue.avail + 2, 0);
    let mut queue = machine.start_ring(0, 128, 0);
    still_serves(&machine, &mut queue);
    machine.hang_up();
}

#[test]
fn a_head_outside_the_table_stops_the_ring_and_the_process_stays() {
    let image = image(4096);
    let mut machine = connect(&image, &["--queues", "2"]);
    let mut queues = machine.begin(FLUSH, 2, 128);
    queues[0].make_available(&machine.ram, 128);
    queues[0].kick();
    assert!(signalled(&queues[0].err));
    still_serves(&machine, &mut queues[1]);
    machine.hang_up();
}

#[test]
fn a_driver_that_rewrites_its_ring_all_the_time_stops_nothing_but_itself() {
    let image = image(4096);
    let mut machine = connect(&image, &["--queues", "2"]);
    let mut queues = machine.begin(FLUSH | EVENT_IDX | INDIRECT_DESC, 2, 128);
    // A fixed sequence of pseudo-random bytes over descriptors, indices and event fields.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let noisy = &queues[0];
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(2) {
        for _ in 0..64 {
            let index = (random() % 128) as u16;
            let part = Part {
                at: random() % (machine.ram.size * 2),
                len: random() as u32 >> (random() % 32),
                flags: random() as u16 & 7,
            };
            noisy.set_descriptor(&machine.ram, index, part, (random() % 130) as u16);
            machine.ram.set_u16(noisy.avail + 4 + 2 * (random() % 129), (random() % 129) as u16);
        }
        let step = machine.ram.u16(noisy.used + 2).wrapping_add((random() % 128) as u16);
        machine.ram.set_u16(noisy.avail + 2, step);
        noisy.kick();
    }
    // The noise may have hit the other ring's memory: it starts afresh.
    machine.frontend.get_vring_base(1).unwrap();
    let old = &queues[1];
    machine.ram.write(old.desc, &[0; 0x9000]);
    let mut queue = machine.start_ring(1, 128, 0);
    still_serves(&machine, &mut queue);
    assert_eq!(std::fs::metadata(image.path()).unwrap().len(), 4096);
    queues.clear();
    machine.hang_up();
}
