//! The twin examples, behind one frontend: what it sees of the two is the same. What the kernel sees is not.

use testrig::frontend::*;
use vhost::VhostBackend;

const ON_DEVICE: &str = env!("CARGO_BIN_EXE_rng-on-device");
const ON_VHOST_USER_BACKEND: &str = env!("CARGO_BIN_EXE_rng-on-vhost-user-backend");
const BOTH: [&str; 2] = [ON_DEVICE, ON_VHOST_USER_BACKEND];
const DATA: u64 = 0x20_0000;

fn connect(program: &str) -> Machine {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rng.sock");
    let mut backend = start(program, &["--socket-path", path.to_str().unwrap()], vec![]);
    let socket = backend.takes(&path);
    Machine::connect(backend, socket, 1)
}

/// What a buffer of so many bytes is filled with; nothing beyond it is.
fn draw(machine: &Machine, queue: &mut Queue, size: u32) -> Vec<u8> {
    machine.ram.write(DATA, &[0; 0x2000]);
    let written = queue.round_trip(&machine.ram, &[into(DATA, size)]) as usize;
    assert_eq!(machine.ram.read(DATA + written as u64, 0x1000), [0; 0x1000]);
    machine.ram.read(DATA, written)
}

#[test]
fn each_twin_fills_buffers_with_bytes_that_are_never_the_same_over_two_lives_of_the_device() {
    for program in BOTH {
        let mut machine = connect(program);
        assert_eq!(machine.offered & VERSION_1, VERSION_1);
        for _ in 0..2 {
            machine.ram.write(0x10000, &[0; 0x10000]);
            let mut queue = machine.begin(0, 1, 16).remove(0);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..40 {
                let bytes = draw(&machine, &mut queue, 64);
                assert_eq!(bytes.len(), 64, "{program}");
                assert!(seen.insert(bytes), "{program}");
            }
            assert!(signalled(&queue.call), "{program}");
            assert_eq!(machine.frontend.get_vring_base(0).unwrap(), 40, "{program}");
        }
        machine.hang_up();
    }
}

#[test]
fn each_twin_gives_as_much_as_there_is_room_for_up_to_its_limit_and_to_pieces_alike() {
    for program in BOTH {
        let mut machine = connect(program);
        let mut queue = machine.begin(0, 1, 16).remove(0);
        for (room, given) in [(1, 1), (255, 255), (256, 256), (257, 256), (0x1000, 256)] {
            assert_eq!(draw(&machine, &mut queue, room).len(), given, "{program}: {room}");
        }
        assert_eq!(queue.round_trip(&machine.ram, &[into(DATA, 16), into(DATA + 0x1000, 16)]), 32, "{program}");
        assert_ne!(machine.ram.read(DATA + 0x1000, 16), [0; 16], "{program}");
        machine.hang_up();
    }
}

#[test]
fn chains_that_have_no_room_or_lie_nowhere_come_back_from_each_twin_and_the_next_is_served() {
    for program in BOTH {
        let mut machine = connect(program);
        let mut queue = machine.begin(0, 1, 16).remove(0);
        assert_eq!(queue.round_trip(&machine.ram, &[out(DATA, 16)]), 0, "{program}");
        assert_eq!(queue.round_trip(&machine.ram, &[into(1 << 40, 16)]), 0, "{program}");
        assert_eq!(draw(&machine, &mut queue, 8).len(), 8, "{program}");
        machine.hang_up();
    }
}

#[test]
fn each_thread_of_the_twin_on_device_is_confined_and_those_of_the_other_are_not() {
    let threads = |machine: &Machine| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", machine.backend.child.pid())).unwrap();
        let state = |task: std::io::Result<std::fs::DirEntry>| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            (field("Name:"), field("Seccomp:"), field("NoNewPrivs:"))
        };
        let mut threads: Vec<_> = tasks.map(state).collect();
        threads.sort();
        threads
    };
    let narrow = |name: &str| (name.to_owned(), "2".to_owned(), "1".to_owned());
    let mut machine = connect(ON_DEVICE);
    machine.begin(0, 1, 16);
    assert_eq!(threads(&machine), [narrow("rng-on-device"), narrow("worker0")]);
    machine.hang_up();

    let mut machine = connect(ON_VHOST_USER_BACKEND);
    machine.begin(0, 1, 16);
    let ours = std::fs::read_to_string("/proc/self/status").unwrap();
    let inherited = ours.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap().trim();
    assert!(threads(&machine).iter().all(|(_, seccomp, _)| seccomp == inherited));
    machine.hang_up();
}
