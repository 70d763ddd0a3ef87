//! The VMMs that figures are measured beside: the same kernel, initial RAM disk and command line, one disk and
//! one network card, 256 MiB and one CPU, on a TAP that is there already.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use schema::net::DEFAULT_NETWORK;

/// What a peer boots.
pub struct Guest<'a> {
    /// ELF kernel.
    pub kernel: &'a Path,
    /// Initial RAM disk.
    pub initrd: &'a Path,
    /// Kernel command line, complete.
    pub cmdline: &'a str,
    /// Raw disk image.
    pub disk: &'a Path,
    /// TAP interface.
    pub tap: &'a str,
}

/// Makes a TAP for a peer on the network that Volt made.
pub fn make_tap(name: &str) -> Result<()> {
    for line in [format!("tunctl -t {name}"), format!("ip link set {name} master {DEFAULT_NETWORK} up")] {
        let mut words = line.split(' ');
        let status = Command::new(words.next().unwrap_or_default()).args(words).status()?;
        ensure!(status.success(), "{line} failed");
    }
    Ok(())
}

/// QEMU's microvm, the fastest way it can be started with these devices: without the clock, Debian's kernel looks for one
/// for more than a second; without ACPI, it does not find the devices; RAM as a memfd costs it another 0.15 s.
pub fn microvm(guest: &Guest<'_>) -> Command {
    let mut qemu = Command::new("/usr/bin/qemu-system-x86_64");
    qemu.args(["-M", "microvm,acpi=on,rtc=on,pit=off,pic=off", "-accel", "kvm", "-cpu", "host"])
        .args(["-m", "256", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(guest.kernel)
        .arg("-initrd")
        .arg(guest.initrd)
        .args(["-append", guest.cmdline])
        .args(["-drive", &format!("id=disk,if=none,format=raw,file={}", guest.disk.display())])
        .args(["-device", "virtio-blk-device,drive=disk"])
        .args(["-netdev", &format!("tap,id=net,ifname={},script=no,downscript=no", guest.tap)])
        .args(["-device", "virtio-net-device,netdev=net"]);
    qemu
}

/// Firecracker, where its binary was given to the bench.
pub fn firecracker(guest: &Guest<'_>) -> Result<Option<Command>> {
    let program = PathBuf::from("/bin/firecracker");
    if !program.exists() {
        return Ok(None);
    }
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": guest.kernel, "initrd_path": guest.initrd, "boot_args": guest.cmdline,
        },
        "drives": [{
            "drive_id": "disk", "path_on_host": guest.disk, "is_root_device": false, "is_read_only": false,
        }],
        "network-interfaces": [{"iface_id": "net", "host_dev_name": guest.tap}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
    });
    let file = Path::new("/tmp/firecracker.json");
    fs::write(file, config.to_string())?;
    let mut command = Command::new(program);
    command.args(["--no-api", "--config-file"]).arg(file);
    Ok(Some(command))
}
