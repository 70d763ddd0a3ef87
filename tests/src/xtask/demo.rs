//! `cargo xtask demo`: a stock Debian kernel in a microVM, its disk and network card shown to work.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use ::schema::programs::programs;
use anyhow::{Context, Result};
use volt_tests::{demo, namespaces, volt::Volt};

use crate::{
    debian::{self, Kernel},
    emulator::Emulator,
    image, kvm,
    lab::{Clock, Event, Lab},
    workspace::Workspace,
};

/// Where the demo's files are inside its namespaces.
const DIR: &str = "/tmp/volt-demo";

/// Runs the demo here if this machine's KVM is real, else in the lab.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let lab = workspace.lab();
    debian::install(&["busybox-static"])?;
    let kernel = Kernel::fetch(&lab, "6.1")?;
    let initrd = image::guest(&kernel, demo::COMMANDS)?;
    let programs = workspace.release(programs())?;
    let programs = programs.first().and_then(|path| path.parent()).context("cargo built no program")?;
    match kvm::check_hardware(&programs.join("volt")) {
        Ok(()) => {
            println!("This machine's KVM is backed by hardware: the VM runs here, in a network namespace of its own.");
            let staged = lab.join("demo");
            fs::create_dir_all(&staged)?;
            fs::copy(&kernel.bzimage, staged.join("vmlinuz"))?;
            fs::write(staged.join("initrd"), initrd)?;
            let status = namespaces::command(&["demo".as_ref(), programs.as_os_str(), staged.as_os_str()])?
                .status()
                .context("Cannot run unshare (Debian package util-linux)")?;
            Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Err(why) => {
            println!("{why:#}.");
            println!(
                "The VM runs in the lab instead: on the real KVM of a machine that QEMU emulates, in about a minute."
            );
            in_lab(workspace, &lab, &kernel, initrd)?;
            println!("Demo complete.");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The part of the demo that runs in namespaces of its own.
pub fn inside(programs: &Path, staged: &Path) -> Result<()> {
    let dir = Path::new(DIR);
    namespaces::prepare(dir)?;
    for file in ["vmlinuz", "initrd"] {
        fs::copy(staged.join(file), dir.join(file))?;
    }
    let volt = Volt::private(programs, dir);
    demo::run(&volt, dir, Duration::from_secs(60), &mut |line| {
        println!("{line}");
        Ok(())
    })?;
    println!("Demo complete.");
    Ok(())
}

fn in_lab(workspace: &Workspace, lab: &Path, kernel: &Kernel, initrd: Vec<u8>) -> Result<()> {
    let emulator = Emulator::fetch(lab)?;
    let programs = workspace.release(programs().chain(["lab-driver"]))?;
    let archive = image::host(kernel, &programs, &[(kernel, initrd)])?;
    let boot = Lab {
        cards: false,
        emulator: &emulator,
        kernel,
        image: archive.finish(),
        scenario: "demo",
        clock: Clock::Wall,
        deadline: Duration::from_secs(300),
        // The guest's console is heard here, which speaks many times a second while it boots.
        silence: Some(Duration::from_secs(60)),
    };
    let mut failed = None;
    boot.run(&lab.join("runs/demo"), &mut |event| match event {
        Event::Say(line) => println!("{line}"),
        Event::NotOk(_, why) => failed = Some(why),
        _ => {}
    })?;
    match failed {
        Some(why) => Err(anyhow::anyhow!(why).context("The demo failed")),
        None => Ok(()),
    }
}
