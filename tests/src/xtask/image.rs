//! Builds the initramfs of the lab's guests and of the lab host. Reads kernels, busybox and Volt's
//! release programs; touches nothing outside of the archive it returns.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use volt_tests::cpio::Archive;

use crate::debian::{self, Kernel};

const GUEST_MODULES: [&str; 5] = ["virtio_mmio", "virtio_blk", "virtio_net", "button", "evdev"];

/// KVM, and what networks take, which an ordinary host loads when it is asked for; module names as in modules.dep. What a kernel has built in is none.
const HOST_MODULES: [&str; 24] = [
    "crc32c_generic",
    "kvm-amd",
    "tun",
    "bridge",
    "veth",
    "macvtap",
    "dummy",
    "vrf",
    "8021q",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_connlimit",
    "nft_numgen",
    "nft_objref",
    "nft_reject_inet",
    "nft_meta_bridge",
    "nf_conntrack_netlink",
    "igb",
    "igbvf",
];

/// What tests of networks look at the kernel's side with.
const TOOLS: [&str; 4] = ["/usr/bin/ip", "/usr/sbin/bridge", "/usr/sbin/nft", "/usr/bin/unshare"];

/// The initial RAM disk of a guest that runs `kernel`; it obeys `commands` before it listens to its console.
pub fn guest(kernel: &Kernel, commands: &str) -> Result<Vec<u8>> {
    let mut archive = base(include_str!("../lab/guest-init.sh"))?;
    add_modules(&mut archive, "", kernel, &GUEST_MODULES)?;
    if !commands.is_empty() {
        archive.file("/commands", 0o644, commands.as_bytes());
    }
    Ok(archive.finish())
}

/// The lab host: `kernel`'s modules, every program in `programs`, and for each guest kernel
/// `/guests/<series>/vmlinuz` and `/guests/<series>/initrd`.
pub fn host(kernel: &Kernel, programs: &[PathBuf], guests: &[(&Kernel, Vec<u8>)]) -> Result<Archive> {
    let mut archive = base(include_str!("../lab/host-init.sh"))?;
    add_host(&mut archive, "", kernel, programs, guests)?;
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    archive.file("/etc/group", 0o644, b"root:x:0:\nkvm:x:101:\nnogroup:x:65534:\n");
    Ok(archive)
}

/// The same with Debian's systemd in the place of busybox, from a `root` that its installer has made.
pub fn systemd(kernel: &Kernel, programs: &[PathBuf], guests: &[(&Kernel, Vec<u8>)], root: &Path) -> Result<Archive> {
    let mut archive = Archive::new();
    add_tree(&mut archive, root, "")?;
    archive.file("/init", 0o755, include_bytes!("../lab/systemd-init.sh"));
    let units = [
        ("sysinit", "lab-modules", include_str!("../lab/lab-modules.service")),
        ("multi-user", "lab", include_str!("../lab/lab.service")),
        ("multi-user", "systemd-networkd", ""),
    ];
    for (target, unit, text) in units {
        let there = if text.is_empty() { "/lib/systemd/system" } else { "/etc/systemd/system" };
        if !text.is_empty() {
            archive.file(&format!("{there}/{unit}.service"), 0o644, text.as_bytes());
        }
        let wants = format!("/etc/systemd/system/{target}.target.wants/{unit}.service");
        archive.symlink(&wants, &format!("{there}/{unit}.service"));
    }
    // The console is the driver's.
    archive.symlink("/etc/systemd/system/serial-getty@ttyS0.service", "/dev/null");
    add_host(&mut archive, "/usr", kernel, programs, guests)?;
    Ok(archive)
}

/// What nothing that runs there reads.
const UNREAD: [&str; 6] =
    ["/usr/share/doc", "/usr/share/locale", "/usr/share/man", "/var/cache/apt", "/var/lib/apt", "/var/lib/dpkg/info"];

/// Adds a folder of a root file system, `at` its place there, with the permissions that its files have.
fn add_tree(archive: &mut Archive, root: &Path, at: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(root.join(at.trim_start_matches('/')))? {
        let entry = entry?;
        let path = format!("{at}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type()?;
        if UNREAD.contains(&path.as_str()) {
            continue;
        } else if kind.is_dir() {
            archive.directory(&path);
            add_tree(archive, root, &path)?;
        } else if kind.is_symlink() {
            archive.symlink(&path, &fs::read_link(entry.path())?.to_string_lossy());
        } else if kind.is_file() {
            archive.file(&path, entry.metadata()?.permissions().mode() & 0o7777, &read(&entry.path())?);
        }
    }
    Ok(())
}

/// Adds what a lab host has of ours, whatever else is in it: programs and modules below `prefix`.
fn add_host(
    archive: &mut Archive,
    prefix: &str,
    kernel: &Kernel,
    programs: &[PathBuf],
    guests: &[(&Kernel, Vec<u8>)],
) -> Result<()> {
    add_modules(archive, prefix, kernel, &HOST_MODULES)?;
    for program in programs {
        let name = program.file_name().context("A program has a name")?.to_string_lossy();
        archive.file(&format!("{prefix}/bin/{name}"), 0o755, &read(program)?);
    }
    for (guest, initrd) in guests {
        archive.file(&format!("/guests/{}/vmlinuz", guest.series), 0o644, &read(&guest.bzimage)?);
        archive.file(&format!("/guests/{}/initrd", guest.series), 0o644, initrd);
    }
    Ok(())
}

/// Adds `tests`, by name, which find `program` where they were told that it is, and the distribution's own tools.
pub fn add_tests(archive: &mut Archive, tests: &[(String, PathBuf)], program: &Path) -> Result<()> {
    // Something may be mounted over that place.
    archive.file("/programs/0", 0o755, &read(program)?);
    archive.file("/programs/0.path", 0o644, program.as_os_str().as_encoded_bytes());
    for (name, test) in tests {
        archive.file(&format!("/tests/{name}"), 0o755, &read(test)?);
    }
    add_programs(archive, &TOOLS)
}

/// Adds programs of this machine's, with their libraries.
fn add_programs(archive: &mut Archive, programs: &[&str]) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        let listed = debian::output(Command::new("ldd").arg(program))?;
        // Lines are "name => /path (address)", and "/path (address)" for the dynamic linker.
        libraries.extend(listed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        archive.file(program, 0o755, &read(Path::new(program))?);
    }
    libraries.into_iter().try_for_each(|library| {
        archive.file(&library, 0o755, &read(Path::new(&library))?);
        Ok(())
    })
}

/// Adds QEMU with its libraries and the firmware of its microvm, and says which version it is.
pub fn add_qemu(archive: &mut Archive) -> Result<String> {
    let program = "/usr/bin/qemu-system-x86_64";
    add_programs(archive, &[program])?;
    for firmware in ["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"] {
        let path = Path::new("/usr/share/qemu").join(firmware);
        archive.file(&path.to_string_lossy(), 0o644, &read(&path)?);
    }
    // "QEMU emulator version 7.2.22 (Debian ...)"
    let version = debian::output(Command::new(program).arg("--version"))?;
    Ok(format!("QEMU {} microvm", version.split_whitespace().nth(3).unwrap_or("of Debian")))
}

/// Reads a file; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("Cannot read {}", path.display()))
}

fn base(init: &str) -> Result<Archive> {
    let mut archive = Archive::new();
    let busybox = Path::new("/bin/busybox");
    archive.file("/bin/busybox", 0o755, &read(busybox)?);
    for applet in debian::output(Command::new(busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            archive.symlink(&format!("/bin/{applet}"), "busybox");
        }
    }
    archive.character_device("/dev/console", 5, 1);
    archive.file("/init", 0o755, init.as_bytes());
    Ok(archive)
}

fn add_modules(archive: &mut Archive, prefix: &str, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for (name, content) in kernel.modules(names)? {
        archive.file(&format!("{prefix}/lib/modules/{name}"), 0o644, &content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("/modules", 0o644, order.as_bytes());
    Ok(())
}
