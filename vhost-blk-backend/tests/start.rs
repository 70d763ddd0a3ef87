//! How the program starts, what it refuses, and how it ends.

mod disk;

use disk::*;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Command;
use testrig::frontend::*;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

#[test]
fn capabilities_are_printed_as_the_conventions_want_them() {
    let output = Command::new(PROGRAM).arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n");
}

fn socket() -> OwnedFd {
    pair().1
}

#[test]
fn an_image_of_odd_size_is_named_with_the_remedy() {
    for (size, words) in [(511, "multiple of 512"), (513, "multiple of 512"), (0, "empty")] {
        let image = image(size);
        let path = image.path().to_str().unwrap();
        refused(&["--fd={}", "--blk-file", path], vec![socket()], &[path, words, "truncate --size"]);
    }
}

#[test]
fn a_missing_image_and_one_that_is_no_disk_are_refused() {
    refused(&["--fd={}", "--blk-file", "/nonexistent/disk"], vec![socket()], &["/nonexistent/disk", "exists"]);
    refused(&["--fd={}", "--blk-file", "/dev/null"], vec![socket()], &["/dev/null", "neither"]);
    refused(&["--fd={}"], vec![socket()], &["--blk-fd N or --blk-file PATH"]);
    let image = image(512);
    refused(&["--blk-file", image.path().to_str().unwrap()], vec![], &["--fd N or --socket-path PATH"]);
}

#[test]
fn a_disk_that_is_open_for_the_wrong_thing_is_refused() {
    let image = image(4096);
    let open = |options: &mut OpenOptions| OwnedFd::from(options.open(image.path()).unwrap());
    let args = ["--fd={}", "--blk-fd={}"];
    let reader = open(OpenOptions::new().read(true));
    refused(&args, vec![socket(), reader], &["for reading only", "--read-only"]);
    let writer = open(OpenOptions::new().write(true));
    refused(&args, vec![socket(), writer], &["for writing only"]);
    let appender = open(OpenOptions::new().read(true).append(true));
    refused(&args, vec![socket(), appender], &["O_APPEND"]);
}

#[test]
fn descriptors_that_are_not_there_are_named() {
    let image = image(512);
    let path = image.path().to_str().unwrap();
    refused(&["--fd", "77", "--blk-file", path], vec![], &["--fd=77"]);
    refused(&["--fd", "1", "--blk-file", path], vec![], &["--fd=1", "standard streams"]);
    refused(&["--fd={}", "--blk-fd", "78"], vec![socket()], &["--blk-fd=78"]);
    let file = OwnedFd::from(image.reopen().unwrap());
    refused(&["--fd={}", "--blk-file", path], vec![file], &["connected Unix socket", "on non-socket"]);
    refused(&["--fd={}", "--control-fd", "79", "--blk-file", path], vec![socket()], &["--control-fd=79"]);
}

#[test]
fn two_machines_cannot_write_to_one_image_and_two_can_read_it() {
    let image = image(4096);
    let path = image.path().to_str().unwrap();
    let (writer, _queue) = boot(&image, &[], FLUSH);
    refused(&["--fd={}", "--blk-file", path], vec![socket()], &[path, "in use"]);
    refused(&["--fd={}", "--read-only", "--blk-file", path], vec![socket()], &[path, "in use"]);
    writer.hang_up();
    let (one, _queue) = boot(&image, &["--read-only"], FLUSH);
    let (two, _queue) = boot(&image, &["--read-only"], FLUSH);
    refused(&["--fd={}", "--blk-file", path], vec![socket()], &[path, "in use"]);
    one.hang_up();
    two.hang_up();
    boot(&image, &[], FLUSH).0.hang_up();
}

#[test]
fn a_disk_given_as_descriptor_is_served() {
    let image = image(4096);
    let disk = OpenOptions::new().read(true).write(true).open(image.path()).unwrap();
    let (ours, theirs) = pair();
    let backend = start(PROGRAM, &["--fd={}", "--blk-fd={}"], vec![theirs, disk.into()]);
    let mut machine = Machine::connect(backend, ours, 1);
    let mut queues = machine.begin(FLUSH, 1, 16);
    assert_eq!(request(&machine.ram, &mut queues[0], T_OUT, 0, &[out(DATA, 512)]), OK);
    machine.hang_up();
}

#[test]
fn a_listening_backend_serves_one_frontend_and_ends() {
    let image = image(4096);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.sock");
    let args = ["--socket-path", path.to_str().unwrap(), "--blk-file", image.path().to_str().unwrap()];
    for _ in 0..2 {
        // The second time over the socket that the first left behind.
        let mut backend = start(PROGRAM, &args, vec![]);
        let ours = backend.takes(&path);
        let mut machine = Machine::connect(backend, ours, 1);
        let mut queues = machine.begin(FLUSH, 1, 16);
        assert_eq!(request(&machine.ram, &mut queues[0], T_OUT, 0, &[out(DATA, 512)]), OK);
        machine.hang_up();
    }
}

#[test]
fn a_socket_that_somebody_listens_on_is_left_alone() {
    let image = image(4096);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.sock");
    let _alive = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let args = ["--socket-path", path.to_str().unwrap(), "--blk-file", image.path().to_str().unwrap()];
    refused(&args, vec![], &["disk.sock", "listen"]);
}

#[test]
fn ring_sizes_that_are_no_power_of_two_up_to_1024_are_refused() {
    let (_image, machine) = fresh(&[]);
    for size in [1, 2, 1024] {
        machine.frontend.set_vring_num(0, size).unwrap();
    }
    for size in [0, 3, 1023, 2048] {
        let (_image, mut machine) = fresh(&[]);
        assert!(machine.frontend.set_vring_num(0, size).is_err());
        machine.backend.fails_saying(&["ring 0", "power of two"]);
    }
}

#[test]
fn rings_outside_the_memory_are_refused() {
    let end = 64 * MIB;
    // The last place where the used ring of 128 entries fits, and the first where it does not.
    let (_image, machine) = fresh(&[]);
    let mut machine = machine;
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    let used = end - (6 + 8 * 128);
    let start = |machine: &mut Machine, used: u64| {
        let queue = Queue { used, ..Queue::new(0, 128, 0) };
        machine.frontend.set_vring_num(0, 128).unwrap();
        machine.frontend.set_vring_addr(0, &queue.config()).unwrap();
        machine.frontend.set_vring_kick(0, &queue.kick).unwrap();
        machine.frontend.set_vring_enable(0, true)
    };
    start(&mut machine, used & !3).unwrap();
    machine.hang_up();
    let (_image, mut machine) = fresh(&[]);
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    assert!(start(&mut machine, (used & !3) + 4).is_err());
    machine.backend.fails_saying(&["used ring", "memory"]);
}

#[test]
fn features_that_were_not_offered_and_rings_that_are_not_there_are_refused() {
    let (_image, mut machine) = fresh(&[]);
    assert!(machine.frontend.set_features(VERSION_1 | PROTOCOL | 1 << 34).is_err());
    machine.backend.fails_saying(&["0x400000000"]);
    let (_image, mut machine) = fresh(&[]);
    assert!(machine.frontend.set_vring_num(1, 128).is_err());
    machine.backend.fails_saying(&["ring 1", "no such ring"]);
    // A legacy driver's ring is not started.
    let image = image(4096);
    let mut machine = connect(&image, &[]);
    machine.frontend.set_features(PROTOCOL).unwrap();
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    let queue = Queue::new(0, 128, 0);
    machine.frontend.set_vring_num(0, 128).unwrap();
    machine.frontend.set_vring_addr(0, &queue.config()).unwrap();
    machine.frontend.set_vring_kick(0, &queue.kick).unwrap();
    assert!(machine.frontend.set_vring_enable(0, true).is_err());
    machine.backend.fails_saying(&["VIRTIO_F_VERSION_1"]);
}

#[test]
fn a_running_ring_is_not_reconfigured() {
    let image = image(4096);
    let (mut machine, _queue) = boot(&image, &[], FLUSH);
    assert!(machine.frontend.set_vring_num(0, 64).is_err());
    machine.backend.fails_saying(&["ring 0", "running"]);
    let (mut machine, _queue) = boot(&image, &[], FLUSH);
    assert!(machine.frontend.set_features(VERSION_1 | PROTOCOL).is_err());
    machine.backend.fails_saying(&["features"]);
}

#[test]
fn a_message_that_never_ends_and_one_that_is_no_message_end_the_backend() {
    let image = image(4096);
    let path = image.path().to_str().unwrap();
    let begin = |bytes: &[u8]| {
        let (mut ours, theirs) = pair();
        ours.write_all(bytes).unwrap();
        (ours, start(PROGRAM, &["--fd={}", "--read-only", "--blk-file", path], vec![theirs]))
    };
    // A byte of the header is missing; five of the body are.
    let (_one, mut short_header) = begin(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    let (_two, mut short_body) = begin(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1, 2, 3]);
    let (_three, mut nonsense) = begin(&[0xff; 12]);
    nonsense.fails_saying(&["not understood"]);
    short_header.fails_saying(&["unfinished", "5 s"]);
    short_body.fails_saying(&["unfinished", "5 s"]);
    // A hang-up within a message is a hang-up.
    let (ours, mut backend) = begin(&[1, 0, 0]);
    ours.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(backend.end().0.code(), Some(0));
}

#[test]
fn a_ring_may_be_enabled_before_the_features_are_set() {
    use std::io::Read;
    let image = image(4096);
    let mut machine = connect(&image, &[]);
    let mut enable = [18u32, 9, 8, 0, 1].map(u32::to_ne_bytes).concat();
    machine.socket.write_all(&enable).unwrap();
    let mut answer = [0; 20];
    machine.socket.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..], [18u32, 5, 8, 0, 0].map(u32::to_ne_bytes).concat());
    machine.frontend.set_features(VERSION_1 | PROTOCOL).unwrap();
    machine.frontend.set_mem_table(&[machine.ram.region()]).unwrap();
    let mut queue = Queue::new(0, 128, 0);
    machine.frontend.set_vring_num(0, 128).unwrap();
    machine.frontend.set_vring_addr(0, &queue.config()).unwrap();
    machine.frontend.set_vring_call(0, &queue.call).unwrap();
    machine.frontend.set_vring_kick(0, &queue.kick).unwrap();
    assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
    machine.hang_up();

    let mut machine = connect(&image, &[]);
    enable[16] = 2;
    machine.socket.write_all(&enable).unwrap();
    machine.backend.fails_saying(&["not understood"]);
}

#[test]
fn a_kick_that_is_no_eventfd_ends_the_backend_rather_than_keeping_it_busy() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    use vmm_sys_util::eventfd::EventFd;
    let image = image(4096);
    let (mut machine, _queue) = boot(&image, &[], FLUSH);
    let empty = tempfile::tempfile().unwrap();
    // SAFETY: the number is that of the file, which is given up here.
    let kick = unsafe { EventFd::from_raw_fd(empty.into_raw_fd()) };
    // Whether the answer comes before the end is up to the two threads.
    let _ = machine.frontend.set_vring_kick(0, &kick);
    machine.backend.fails_saying(&["kick"]);
}

#[test]
fn sixteen_queues_are_served_and_none_or_seventeen_refused() {
    let image = image(4096);
    let path = image.path().to_str().unwrap();
    for count in ["0", "17"] {
        refused(&["--fd={}", "--queues", count, "--blk-file", path], vec![socket()], &["--queues", "1 to 16"]);
    }
    let mut machine = connect(&image, &["--queues", "16"]);
    let mut queues = machine.begin(FLUSH | MQ, 14, 16); // as many as the test's memory map has room for
    assert_eq!(request(&machine.ram, &mut queues[13], T_IN, 0, &[into(DATA, 512)]), OK);
    machine.hang_up();
}
