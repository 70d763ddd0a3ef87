//! QEMU's microvm in the lab: the peer of every figure.

use std::{path::Path, process::Command, time::Duration};

use anyhow::Result;
use volt_tests::console::Console;

use crate::report::Report;

/// A microvm with one disk and one network card, like the VM that `volt run` makes.
pub fn command(kernel: &Path, initrd: &Path, append: &str, disk: &Path, tap: &str, cpus: u32) -> Command {
    let mut qemu = Command::new("/usr/bin/qemu-system-x86_64");
    qemu.args(["-M", "microvm,pit=off,pic=off,rtc=off,acpi=on,memory-backend=ram", "-accel", "kvm", "-cpu", "host"])
        .args(["-m", "256", "-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
        .args(["-smp", &cpus.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", append])
        .args(["-device", "virtio-blk-device,drive=disk"])
        .args(["-drive", &format!("id=disk,if=none,format=raw,file={}", disk.display())])
        .args(["-device", "virtio-net-device,netdev=net"])
        .args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")]);
    qemu
}

/// Proves that the lab itself works: a stock guest boots on the lab's KVM and reaches its disk and the gateway.
pub fn check(report: &mut Report) -> Result<()> {
    for line in [
        "ip link add volt0 type bridge",
        "ip addr add 10.42.0.1/24 dev volt0",
        "ip link set volt0 up",
        "tunctl -t tap0",
        "ip link set tap0 master volt0",
        "ip link set tap0 up",
    ] {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        anyhow::ensure!(Command::new(program).args(words).status()?.success(), "{line} failed");
    }
    let disk = Path::new("/tmp/disk");
    std::fs::write(disk, vec![0; 8 << 20])?;
    for series in ["6.1", "6.12"] {
        let outcome = (|| {
            let kernel = format!("/guests/{series}/vmlinuz");
            let initrd = format!("/guests/{series}/initrd");
            let append = "console=ttyS0 reboot=t panic=-1 quiet ip=10.42.0.2::10.42.0.1:255.255.255.0:web::off";
            let command = command(Path::new(&kernel), Path::new(&initrd), append, disk, "tap0", 1);
            let mut vm = Console::start("microvm", command)?;
            let patience = Duration::from_secs(120);
            vm.expect("lab: ready", patience)?;
            report.figure("ready", vm.started.elapsed().as_secs_f64())?;
            vm.command("write:abc", patience)?;
            vm.command("read:abc", patience)?;
            vm.command("ping:10.42.0.1", patience)?;
            vm.command("poweroff", patience)?;
            vm.wait(patience).map(drop)
        })();
        report.check(&format!("microvm boots {series}"), outcome)?;
    }
    Ok(())
}
