//! `cargo xtask demo | test | bench`.

mod debian;
mod image;
mod kernel_image;
mod lab;
mod workspace;

use std::{path::Path, time::Duration};

fn main() -> anyhow::Result<()> {
    let ws = workspace::Workspace::find()?;
    let dir = lab::directory(&ws.target);
    debian::install(&["qemu-system-x86", "busybox-static"])?;
    let kernels = [debian::Kernel::fetch(&dir, "6.1")?, debian::Kernel::fetch(&dir, "6.12")?];
    let programs = ws.release(&["volt-tests"])?;
    let guests = kernels.iter().map(|k| Ok((k, image::guest(k, "")?))).collect::<anyhow::Result<Vec<_>>>()?;
    let which = std::env::args().nth(1).unwrap_or_default();
    let host = if which == "6.12" { &kernels[1] } else { &kernels[0] };
    let mut archive = image::host(host, &programs, &guests)?;
    image::add_dynamic(&mut archive, Path::new("/usr/bin/qemu-system-x86_64"))?;
    for f in ["qboot.rom", "bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "kvmvapic.bin"] {
        archive.file(&format!("/usr/share/qemu/{f}"), 0o644, &image::read(&Path::new("/usr/share/qemu").join(f))?);
    }
    let t = std::time::Instant::now();
    let lab = lab::Lab {
        kernel: host,
        image: archive.finish(),
        scenario: "microvm",
        clock: if std::env::args().nth(2).is_some() { lab::Clock::Instructions } else { lab::Clock::Wall },
        deadline: Duration::from_secs(300),
    };
    lab.run(&dir.join("runs/microvm"), &mut |e| eprintln!("{:?} {e:?}", t.elapsed()))
}
