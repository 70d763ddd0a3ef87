//! The real program, driven over its control link, running guests of a few instructions: what it does from start to end without a
//! kernel. Needs /dev/kvm, and says so where there is none.

mod harness;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::{Core, PATIENCE, Spec, readable};
use ipc::Code;
use schema::vm_capnp::exit::Reason;
use schema::vm_capnp::vm_info::State;
use testkit::guest::{OUT_AL, POWEROFF, RESET, SPIN, elf, flood, print};

const MEMORY: u64 = 32 << 20;
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b]; // ud2, without an IDT

/// Runs `test` with a core that runs `code`, or says why it cannot.
fn with_guest(code: &[u8], vcpus: u16, test: impl AsyncFnOnce(Core)) {
    with_devices(code, vcpus, Vec::new(), test);
}

fn with_devices(code: &[u8], vcpus: u16, devices: Vec<(String, OwnedFd)>, test: impl AsyncFnOnce(Core)) {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return testkit::skip!("/dev/kvm cannot be opened");
    }
    let image = elf(code, 0);
    ipc::run(async {
        let spec = Spec { kernel: &image, initrd: None, cmdline: "", memory: MEMORY, vcpus, devices };
        test(Core::spawn(Path::new(env!("CARGO_BIN_EXE_vmm-core")), spec)).await;
    })
    .unwrap();
}

async fn ends(core: &mut Core, reason: Reason) {
    let exit = core.wait().await.unwrap();
    assert!(exit.0 == reason && exit.1.is_empty(), "{exit:?}");
    assert!(core.info().await.unwrap().0 == State::Stopped);
    let status = core.ended(PATIENCE).expect("the process ends after it told why");
    assert!(status.success(), "{status:?}");
}

fn console(core: &mut Core) -> String {
    let mut text = String::new();
    core.console.set_read_timeout(Some(PATIENCE)).unwrap();
    core.console.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn guest_prints_and_resets_through_the_i8042() {
    let code = [&print("Volt")[..], RESET, SPIN].concat();
    with_guest(&code, 1, async |mut core| {
        assert!(core.info().await.unwrap().0 == State::Created);
        core.start().await.unwrap();
        ends(&mut core, Reason::Reset).await;
        assert_eq!(console(&mut core), "Volt");
    });
}

#[test]
fn guest_powers_off_through_the_sleep_control_register() {
    with_guest(&[POWEROFF, SPIN].concat(), 2, async |mut core| {
        core.start().await.unwrap();
        ends(&mut core, Reason::Poweroff).await;
    });
}

#[test]
fn triple_fault_is_a_reset() {
    with_guest(TRIPLE_FAULT, 1, async |mut core| {
        core.start().await.unwrap();
        ends(&mut core, Reason::Reset).await;
    });
}

#[test]
fn started_machine_is_not_started_again() {
    with_guest(SPIN, 1, async |mut core| {
        core.start().await.unwrap();
        assert_eq!(core.start().await.unwrap_err().code, Code::WrongState);
        assert!(core.info().await.unwrap().0 == State::Running);
        core.stop(0).await.unwrap();
        ends(&mut core, Reason::Stopped).await;
    });
}

#[test]
fn machine_that_was_never_started_can_be_stopped_and_not_started_after() {
    with_guest(SPIN, 1, async |mut core| {
        core.stop(60_000).await.unwrap();
        assert_eq!(core.start().await.unwrap_err().code, Code::WrongState);
        core.stop(0).await.unwrap();
        ends(&mut core, Reason::Stopped).await;
    });
}

#[test]
fn guest_that_ignores_the_power_button_is_stopped_after_its_grace_time() {
    with_guest(SPIN, 2, async |mut core| {
        core.start().await.unwrap();
        let begin = Instant::now();
        core.stop(300).await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        ends(&mut core, Reason::Stopped).await;
    });
}

#[test]
fn grace_time_beyond_the_limit_is_refused() {
    with_guest(SPIN, 1, async |core| {
        core.start().await.unwrap();
        assert_eq!(core.stop(600_001).await.unwrap_err().code, Code::InvalidArgument);
        assert!(core.info().await.unwrap().0 == State::Running);
    });
}

#[test]
fn process_ends_with_its_control_link_while_the_guest_runs() {
    with_guest(SPIN, 2, async |core| {
        core.start().await.unwrap();
        let Core { mut child, connection, vm, .. } = core;
        drop((connection, vm));
        tokio_yield().await;
        assert!(readable(child.pidfd(), PATIENCE));
        assert!(child.wait().unwrap().success());
    });
}

/// Lets the dropped connection's task go, which is what closes its socket.
async fn tokio_yield() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn console_that_nobody_reads_holds_up_neither_the_guest_nor_its_end() {
    with_guest(&flood(), 1, async |mut core| {
        core.start().await.unwrap();
        let limit = Instant::now() + PATIENCE;
        let mut dropped = 0;
        while dropped < 1000 && Instant::now() < limit {
            dropped = core.info().await.unwrap().1;
        }
        assert!(dropped >= 1000, "the guest goes on, and what nobody reads is dropped and counted");
        core.stop(0).await.unwrap();
        ends(&mut core, Reason::Stopped).await;
    });
}

#[test]
fn input_of_the_console_reaches_the_guest_in_order() {
    // mov dx, 0x3fd; wait: in al, dx; test al, 1; jz wait; mov dx, 0x3f8; in al, dx; out dx, al; cmp al, '.'; jne start
    let echo = [
        &[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'.'][..],
        &[0x75, 0xed],
        RESET,
        SPIN,
    ]
    .concat();
    with_guest(&echo, 1, async |mut core| {
        core.start().await.unwrap();
        // More than the FIFO's 64 bytes at once.
        let text = format!("{}.", "0123456789".repeat(30));
        core.console.write_all(text.as_bytes()).unwrap();
        ends(&mut core, Reason::Reset).await;
        assert_eq!(console(&mut core), text);
    });
}

#[test]
fn accesses_of_every_size_to_every_port_and_address_leave_the_machine_running() {
    // for dx in steps of 17 up to 0xffff: in al/ax/eax; then string and wide MMIO accesses; then reset.
    let code = [
        &[0x31, 0xd2][..],                                                   // xor edx, edx
        &[0xec, 0x66, 0xed, 0xed],                                           // in al, dx; in ax, dx; in eax, dx
        &[0x66, 0x81, 0xc2, 0x11, 0x00],                                     // add dx, 17
        &[0x73, 0xf5],                                                       // jnc to the first in
        &[0xb8, 0x00, 0x00, 0x10, 0x30], // mov eax, 0x30100000 (below 1 GiB, beyond RAM)
        &[0x48, 0x8b, 0x18, 0x48, 0x89, 0x18, 0x8a, 0x18, 0x66, 0x89, 0x18], // mov rbx, [rax]; mov [rax], rbx; mov bl, [rax]; mov [rax], bx
        &[0xbe, 0x00, 0x00, 0x20, 0x00],                                     // mov esi, 0x200000
        &[0xb9, 0x00, 0x10, 0x00, 0x00],                                     // mov ecx, 4096
        &[0x66, 0xba, 0x10, 0x06, 0xf3, 0x6e],                               // mov dx, 0x610; rep outsb
        RESET,
        SPIN,
    ]
    .concat();
    with_guest(&code, 1, async |mut core| {
        core.start().await.unwrap();
        ends(&mut core, Reason::Reset).await;
    });
}

#[test]
fn device_whose_backend_is_gone_fails_the_start_and_ends_the_machine() {
    let (socket, backend) = UnixStream::pair().unwrap();
    drop(backend);
    with_devices(SPIN, 1, vec![("virtio-id=2".into(), socket.into())], async |mut core| {
        assert_eq!(core.start().await.unwrap_err().code, Code::Unavailable);
        let (reason, detail) = core.wait().await.unwrap();
        assert!(reason == Reason::DeviceFailed && !detail.is_empty(), "{detail}");
        assert_eq!(core.ended(PATIENCE).unwrap().code(), Some(1));
    });
}

/// Writes to registers or memory, one after the other: mov eax, address; mov dword [rax], value.
fn writes(writes: &[(u32, u32)]) -> Vec<u8> {
    let one = |(address, value): &(u32, u32)| {
        [&[0xb8][..], &address.to_le_bytes(), &[0xc7, 0], &value.to_le_bytes()].concat()
    };
    writes.iter().flat_map(one).collect()
}

#[test]
fn driver_of_a_disk_starts_resets_and_starts_it_again() {
    let backend = Path::new(env!("CARGO_BIN_EXE_vmm-core")).with_file_name("vhost-blk-backend");
    if !backend.exists() {
        return testkit::skip!("{} is not built", backend.display());
    }
    const DEVICE: u32 = 0xd000_0000;
    // Page tables are for the first GiB: one more page directory, with a page for the device.
    let map = writes(&[(0xa018, 0x20_0003), (0x20_0400, DEVICE | 0x83)]);
    let status = |value: u32| (DEVICE + 0x70, value);
    // Features, one queue of 16 entries at 3 MiB, DRIVER_OK (Virtio 1.2, 3.1.1 and 4.2.2); then the status is printed.
    let (low, high) = ([(DEVICE + 0x24, 0), (DEVICE + 0x20, 0)], [(DEVICE + 0x24, 1), (DEVICE + 0x20, 1)]);
    let queue = [(0x30, 0), (0x38, 16), (0x80, 0x30_0000), (0x90, 0x30_1000), (0xa0, 0x30_2000), (0x44, 1)];
    let queue = queue.map(|(register, value)| (DEVICE + register, value));
    let start = [&[status(0), status(1), status(3)][..], &low, &high, &[status(0xb)], &queue, &[status(0xf)]].concat();
    let print_status = [&[0xb8][..], &(DEVICE + 0x70).to_le_bytes(), &[0x8b, 0], OUT_AL].concat();
    let round = [writes(&start), print_status].concat();
    let code = [&map[..], &round, &round, RESET, SPIN].concat();

    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let (socket, theirs) = UnixStream::pair().unwrap();
    let mut spawn = confine::Spawn::new(&backend);
    let number = spawn.fd(theirs.into());
    spawn.args(["--fd", &number.to_string(), "--blk-file"]).arg(disk.path()).die_with_parent();
    let mut backend = spawn.spawn().unwrap();
    with_devices(&code, 1, vec![("virtio-id=2".into(), socket.into())], async |mut core| {
        core.start().await.unwrap();
        ends(&mut core, Reason::Reset).await;
        assert_eq!(console(&mut core).as_bytes(), [0xf, 0xf]);
    });
    assert!(backend.wait_for(PATIENCE).unwrap().is_none_or(|status| status.success()));
}

#[test]
fn mute_backend_fails_the_start_within_its_deadline() {
    let (socket, backend) = UnixStream::pair().unwrap();
    with_devices(SPIN, 1, vec![("virtio-id=2".into(), socket.into())], async |core| {
        let fault = core.start().await.unwrap_err();
        assert!(
            fault.code == Code::Unavailable && fault.why.contains("did not answer GET_FEATURES in time"),
            "{fault}"
        );
    });
    drop(backend);
}

#[test]
fn kernel_that_could_still_change_is_refused_by_name() {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return testkit::skip!("/dev/kvm cannot be opened");
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&elf(SPIN, 0)).unwrap();
    ipc::run(async {
        let spec = Spec { kernel: &[], initrd: None, cmdline: "", memory: MEMORY, vcpus: 1, devices: Vec::new() };
        let mut core = Core::spawn_with(Path::new(env!("CARGO_BIN_EXE_vmm-core")), file.into(), spec);
        assert_eq!(core.ended(PATIENCE).unwrap().code(), Some(1));
    })
    .unwrap();
}

#[test]
fn missing_argument_is_named_on_one_line() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmm-core")).args(["--vcpus", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--memory") && text.lines().count() == 1, "{text}");
}
