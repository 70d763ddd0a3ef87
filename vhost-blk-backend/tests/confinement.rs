//! What the running backend still may do, and its control link.

mod disk;

use capnp::traits::HasTypeId;
use disk::*;
use schema::device_capnp::device_backend;
use std::io::Write;
use std::os::fd::OwnedFd;
use testrig::frontend::*;

/// A backend with a control link, and the link's other end.
fn boot_with_control(image: &tempfile::NamedTempFile) -> (Machine, Queue, OwnedFd) {
    let (ours, theirs) = pair();
    let (link, their_link) = std::os::unix::net::UnixStream::pair().unwrap();
    let path = image.path().to_str().unwrap();
    let args = ["--fd={}", "--control-fd={}", "--blk-file", path];
    let backend = start(PROGRAM, &args, vec![theirs, their_link.into()]);
    let mut machine = Machine::connect(backend, ours, 1);
    let queue = machine.begin(FLUSH, 1, 128).remove(0);
    (machine, queue, link.into())
}

#[test]
fn the_control_link_tells_what_the_device_is_and_does() {
    let image = image(4096);
    let (machine, mut queue, link) = boot_with_control(&image);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 0, &[out(DATA, 1024)]), OK);
    assert_eq!(request(&machine.ram, &mut queue, T_OUT, 8, &[out(DATA, 512)]), IOERR);
    ipc::run(async {
        let connection = ipc::Connection::from_fd(link).unwrap();
        let backend: device_backend::Client = connection.bootstrap();
        let promise = backend.info_request().send();
        let response = connection.call("look at the device", PATIENCE, promise).await.unwrap();
        let info = response.get().unwrap().get_info().unwrap();
        assert_eq!(info.get_virtio_type(), 2);
        assert_eq!(info.get_features(), machine.offered);
        assert_eq!(info.get_acked_features(), FLUSH | VERSION_1 | PROTOCOL);
        assert!(info.get_connected());
        let queues = info.get_queues().unwrap();
        assert_eq!(queues.len(), 1);
        let stats = queues.get(0);
        assert!(stats.get_started());
        assert_eq!((stats.get_chains(), stats.get_bytes(), stats.get_errors()), (2, 1024, 1));
        testrig::handed::knows_only(device_backend::Client::TYPE_ID, &connection).await;
    })
    .unwrap();
    // The connection was dropped: the link's end is the backend's.
    let Machine { mut backend, .. } = machine;
    let (status, said) = backend.end();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn a_control_link_that_breaks_the_protocol_ends_the_backend_with_one_line() {
    let image = image(4096);
    let (machine, _queue, link) = boot_with_control(&image);
    // One segment of far more words than a message may have.
    let message = [0u32, 0x0fff_ffff].map(u32::to_le_bytes).concat();
    std::os::unix::net::UnixStream::from(link).write_all(&message).unwrap();
    let Machine { mut backend, .. } = machine;
    let (status, said) = backend.end();
    assert_eq!((status.code(), said.lines().count()), (Some(1), 1), "{said}");
}

#[test]
fn the_process_keeps_no_capability_no_file_and_only_its_own_descriptors() {
    let image = image(4096);
    let (machine, _queue, _link) = boot_with_control(&image);
    let pid = machine.backend.child.pid();
    let process = format!("/proc/{pid}");
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("{process}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        threads.push(field("Name:"));
        assert_eq!(field("Seccomp:"), "2", "{status}");
        assert_eq!(field("NoNewPrivs:"), "1");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000");
        }
    }
    threads.sort();
    assert_eq!(threads, ["control", "vhost-blk-backe", "worker0"]);
    let mut open: Vec<String> = std::fs::read_dir(format!("{process}/fd"))
        .unwrap()
        .map(|fd| std::fs::read_link(fd.unwrap().path()).unwrap().display().to_string())
        .map(|name| name.split([':', '(']).next().unwrap().trim_end().to_owned())
        .collect();
    open.sort();
    // The three standard streams; sockets of frontend (twice) and control link (the runtime watches it twice more at
    // most); mailbox, kick, call and error; memory; disk; the runtime's own.
    let disk = image.path().display().to_string();
    assert_eq!(open.iter().filter(|name| **name == disk).count(), 1, "{open:?}");
    let known = ["/dev/null", "anon_inode", "socket", "/memfd"];
    for name in &open {
        assert!(*name == disk || known.contains(&name.as_str()) || name.contains("/tmp/"), "{open:?}");
    }
    machine.hang_up();
}

#[test]
fn strict_confinement_either_serves_or_names_what_is_missing() {
    let image = image(4096);
    let (ours, theirs) = pair();
    let path = image.path().to_str().unwrap();
    let args = ["--fd={}", "--confinement", "strict", "--blk-file", path];
    let mut backend = start(PROGRAM, &args, vec![theirs]);
    if confine::missing().is_empty() {
        let mut machine = Machine::connect(backend, ours, 1);
        let mut queue = machine.begin(FLUSH, 1, 16).remove(0);
        assert_eq!(request(&machine.ram, &mut queue, T_IN, 0, &[into(DATA, 512)]), OK);
        machine.hang_up();
    } else {
        backend.fails_saying(&["strict"]);
    }
}
