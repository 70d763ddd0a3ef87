//! Frontends that no one here wrote, with guest memory as each of them has it: QEMU, whose firmware's driver boots from the disk,
//! and the crate `virtio-driver`.

mod disk;

use disk::*;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use testrig::frontend::*;
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

/// The QEMU to use, and its first arguments, where it is not the one that is installed.
const QEMU: &str = "VOLT_TEST_QEMU";

/// A boot sector: writes itself to the disk's second sector by the firmware (INT 13h, function 3), and ends QEMU by its port.
const BOOT: [u8; 35] = [
    0x31, 0xc0, 0x8e, 0xc0, 0x8e, 0xd8, // xor ax, ax; mov es, ax; mov ds, ax
    0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, // mov ax, 0x301; mov cx, 2
    0xba, 0x80, 0x00, 0xbb, 0x00, 0x7c, 0xcd, 0x13, // mov dx, 0x80; mov bx, 0x7c00; int 0x13
    0xb0, 0x10, 0x73, 0x02, 0xb0, 0x11, // mov al, 0x10; jnc +2; mov al, 0x11
    0xba, 0xf4, 0x00, 0xee, // mov dx, 0xf4; out dx, al
    0xf4, 0xeb, 0xfd, 0x00, 0x00, // hlt; jmp -3
];
/// What QEMU ends with then.
const WRITTEN: i32 = 0x10 << 1 | 1;

fn qemu() -> Command {
    let words = std::env::var(QEMU).unwrap_or("qemu-system-x86_64".into());
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// A backend that listens, with more arguments.
fn listening(folder: &Path, image: &Path) -> Backend {
    let socket = folder.join("disk.sock");
    let _left = std::fs::remove_file(&socket);
    let args = ["--socket-path", socket.to_str().unwrap(), "--blk-file", image.to_str().unwrap()];
    let mut backend = start(PROGRAM, &args, vec![]);
    backend.listens(&socket);
    backend
}

/// Boots from the disk, with guest memory of that kind. What QEMU said, if it has no such kind.
fn boot_with(memory: &str, folder: &Path) -> Result<(), Output> {
    let image = image(1 << 20);
    image.as_file().write_all_at(&BOOT, 0).unwrap();
    image.as_file().write_all_at(&[0x55, 0xaa], 510).unwrap();
    let mut backend = listening(folder, image.path());
    let out = qemu()
        .args(["-accel", "tcg", "-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-object", &format!("{memory},id=ram,size=64M,share=on"), "-machine", "memory-backend=ram"])
        .args(["-chardev", &format!("socket,id=disk,path={}", folder.join("disk.sock").display())])
        .args(["-device", "vhost-user-blk-pci,chardev=disk,bootindex=0", "-device", "isa-debug-exit,iobase=0xf4"])
        .output()
        .unwrap();
    if String::from_utf8_lossy(&out.stderr).contains("does not accept value") {
        backend.child.kill().unwrap();
        return Err(out);
    }
    assert_eq!(out.status.code(), Some(WRITTEN), "{memory}: {out:?}, and the backend: {}", backend.said());
    let (status, said) = backend.end();
    assert_eq!((status.code(), &said[..]), (Some(0), ""), "{memory}");
    let sector = |at| {
        let mut sector = [0; 512];
        image.as_file().read_exact_at(&mut sector, at).unwrap();
        sector
    };
    assert_eq!(sector(512), sector(0), "{memory}: the boot sector has written itself");
    Ok(())
}

#[test]
fn qemu_boots_from_the_disk_with_memory_of_every_kind_that_it_shares() {
    let said = match qemu().arg("--version").output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(error) => return testkit::skip!("qemu-system-x86_64 (Debian: qemu-system-x86): {error}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let on_disk = format!("memory-backend-file,mem-path={}", folder.path().join("ram").display());
    for memory in [
        "memory-backend-memfd",
        "memory-backend-memfd,seal=off",
        "memory-backend-file,mem-path=/dev/shm",
        &on_disk,
        "memory-backend-shm",
    ] {
        if boot_with(memory, folder.path()).is_err() {
            println!("not tried: {memory}: this QEMU does not know it: {}", said.lines().next().unwrap_or_default());
        }
    }
    // Before version 10 such memory has no file that could be handed over.
    let major = said.split_once("version ").and_then(|(_, version)| version.split('.').next()?.parse::<u32>().ok());
    if major >= Some(10) {
        boot_with("memory-backend-ram", folder.path()).unwrap();
    } else {
        println!(
            "not tried: memory-backend-ram: this QEMU cannot share it: {}",
            said.lines().next().unwrap_or_default()
        );
    }
}

#[test]
fn the_crate_virtio_driver_reads_and_writes_the_disk() {
    const SIZE: usize = 4096;
    let image = image(1 << 20);
    let folder = tempfile::tempdir().unwrap();
    let mut backend = listening(folder.path(), image.path());
    let path = folder.path().join("disk.sock");
    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let transport = VhostUser::new(path.to_str().unwrap(), features.bits()).unwrap();
    let mut transport = Box::new(transport) as Box<VirtioBlkTransport>;
    assert_eq!(u64::from(transport.get_config().unwrap().capacity), 2048);

    // Memory that is not sealed, at an offset of a file that has more.
    let file = File::from(rustix::fs::memfd_create("buffers", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4 * SIZE as u64).unwrap();
    // SAFETY: a new mapping of a file that this test alone has; it stays until the process ends.
    let buffers = unsafe {
        let (protection, offset) = (libc::PROT_READ | libc::PROT_WRITE, SIZE as libc::off_t);
        let at = libc::mmap(std::ptr::null_mut(), 2 * SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), offset);
        assert_ne!(at, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(at.cast::<u8>(), 2 * SIZE)
    };
    let at = buffers.as_ptr() as usize;
    transport.map_mem_region(at, 2 * SIZE, file.as_raw_fd(), SIZE as i64).unwrap();
    let mut queue = VirtioBlkQueue::setup_queues(&mut *transport, 1, 64).unwrap().remove(0);
    let complete = |queue: &mut VirtioBlkQueue<'_, u8>| {
        transport.get_submission_notifier(0).notify().unwrap();
        until("it is done", || queue.completions().next().map(|done| (done.context, done.ret)).ok_or(String::new()))
    };
    let (from, to) = buffers.split_at_mut(SIZE);
    from.fill(0xa5);
    queue.write(8192, from, 1).unwrap();
    assert_eq!(complete(&mut queue), (1, 0));
    queue.read(8192, to, 2).unwrap();
    assert_eq!(complete(&mut queue), (2, 0));
    assert_eq!(from, to);
    let mut on_disk = [0; SIZE];
    image.as_file().read_exact_at(&mut on_disk, 8192).unwrap();
    assert_eq!(on_disk, *from);
    drop(queue);
    transport.unmap_mem_region(at, 2 * SIZE).unwrap();
    drop(transport);
    assert_eq!(backend.end(), (std::os::unix::process::ExitStatusExt::from_raw(0), String::new()));
}
