//! `cargo xtask test`: the tiers unit, host and lab, the fast ones first. The last line of its output is always
//! `N passed, N failed, N skipped`; a test that was skipped is named with its reason, and before it are the ten that took longest, among
//! the lab's checks too. (Tests of one program run side by side: what one takes is what it took beside the others.)
//!
//! A test of the plain harness that cannot be made here prints `skipped: NAME: REASON` and returns; it counts as
//! skipped, not as passed.

use std::{
    cmp::Reverse,
    process::ExitCode,
    time::{Duration, Instant},
};

use ::schema::programs::programs;
use anyhow::{Result, bail, ensure};

use crate::{
    debian::{self, Kernel},
    emulator::Emulator,
    harness, image,
    lab::{Clock, Event, Lab},
    schema, sizes,
    workspace::Workspace,
};

/// What came of the tests.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    times: Vec<(Duration, String)>,
}

/// How many of the slowest are named.
const SLOWEST: usize = 10;

impl Tally {
    /// A test held.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// A test did not hold.
    pub fn fail(&mut self, name: &str, why: &str) {
        println!("FAILED {name}: {why}");
        self.failed.push(name.to_owned());
    }

    /// A test was not made.
    pub fn skip(&mut self, name: &str, why: &str) {
        println!("skipped {name}: {why}");
        self.skipped += 1;
    }

    /// How long a test took, as far as that is known.
    pub fn took(&mut self, name: &str, time: Duration) {
        self.times.push((time, name.to_owned()));
    }

    /// So many tests that took longest, and their milliseconds.
    pub fn slowest(&mut self, count: usize) -> Vec<(u128, &str)> {
        self.times.sort_by_key(|(time, _)| Reverse(*time));
        self.times.iter().take(count).map(|(time, name)| (time.as_millis(), name.as_str())).collect()
    }

    /// Passed, failed, skipped.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.passed, self.failed.len(), self.skipped)
    }

    /// One test by its outcome.
    fn record(&mut self, name: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.pass(),
            Err(why) => self.fail(name, &format!("{why:#}")),
        }
    }
}

type Tier = fn(&Workspace, &mut Tally) -> Result<()>;

const TIERS: [(&str, Tier); 3] = [("unit", unit), ("host", host), ("lab", lab)];

/// Runs the tiers that are named, or all.
pub fn run(workspace: &Workspace, only: &[&str]) -> Result<ExitCode> {
    if let Some(unknown) = only.iter().find(|name| !TIERS.iter().any(|(tier, _)| tier == *name)) {
        bail!("There is no tier {unknown:?}; there are unit, host and lab");
    }
    let mut tally = Tally::default();
    for (name, tier) in TIERS {
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        let start = Instant::now();
        println!("tier {name}");
        if let Err(error) = tier(workspace, &mut tally) {
            tally.fail(&format!("tier {name}"), &format!("{error:#}"));
        }
        println!("tier {name} took {} s", start.elapsed().as_secs());
    }
    for (milliseconds, name) in tally.slowest(SLOWEST) {
        println!("slow: {}.{} s {name}", milliseconds / 1000, milliseconds / 100 % 10);
    }
    for name in &tally.failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped);
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Parsers, state machines, protocols: whatever needs nothing. Everything that is in the crates' sources.
fn unit(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    tally.record("schema/volt.request is current", schema::check(workspace));
    // Without them, the tests that look at netlink's other end say that they are skipped.
    if let Err(why) = debian::install(&["iproute2", "nftables"]) {
        println!("Without iproute2 and nftables: {why:#}");
    }
    let programs = workspace.tests(&["--lib", "--bins"])?;
    programs.into_iter().try_for_each(|(name, program)| harness::run(&name, program, tally))?;
    harness::run_several("documentation", workspace.doc_tests(), tally)
}

/// Real namespaces, netlink, sandboxes and processes, as root: everything in the crates' `tests` folders.
fn host(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["iproute2", "nftables", "qemu-utils", "util-linux", "xz-utils"])?;
    // Without them, the tests of clients in Python and in C++ say that they are skipped.
    for packages in [&["python3-venv"][..], &["g++", "capnproto", "libcapnp-dev"]] {
        if let Err(why) = debian::install(packages) {
            println!("Without {}: {why:#}", packages.join(", "));
        }
    }
    // Tests find the programs beside themselves.
    workspace.debug()?;
    // Without the archive, the tests that need stock kernels or a newer QEMU say that they are skipped.
    let kernels = stock_kernels(workspace).map(|kernels| kernels.map(|kernel| kernel.bzimage));
    let kernels = kernels.ok().and_then(|kernels| std::env::join_paths(kernels).ok());
    let qemu = Emulator::fetch(&workspace.lab()).ok().map(|emulator| emulator.words());
    workspace.tests(&["--test", "*"])?.into_iter().try_for_each(|(name, mut program)| {
        program.envs(kernels.iter().map(|kernels| ("VOLT_TEST_KERNELS", kernels)));
        program.envs(qemu.iter().map(|qemu| ("VOLT_TEST_QEMU", qemu)));
        harness::run(&name, program, tally)
    })
}

fn stock_kernels(workspace: &Workspace) -> Result<[Kernel; 2]> {
    let lab = workspace.lab();
    Ok([Kernel::fetch(&lab, "6.1")?, Kernel::fetch(&lab, "6.12")?])
}

/// The whole product on the real KVM of two lab hosts.
fn lab(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static"])?;
    let emulator = Emulator::fetch(&workspace.lab())?;
    let kernels = stock_kernels(workspace)?;
    tally.record("release programs are static, and the core is small", sizes::check(&workspace.release(programs())?));
    let programs = workspace.release(programs().chain(["lab-driver"]))?;
    for host in &kernels {
        let guests = kernels.iter().map(|guest| Ok((guest, image::guest(guest, "")?))).collect::<Result<Vec<_>>>()?;
        let boot = Lab {
            emulator: &emulator,
            kernel: host,
            image: image::host(host, &programs, &guests)?.finish(),
            scenario: "functional",
            clock: Clock::Wall,
            deadline: Duration::from_secs(900),
            // Checks may take long, and one that stands still is a fault.
            silence: None,
        };
        let on = format!("lab host {}", host.series);
        // Checks are made one after the other.
        let (mut results, mut since) = (0, Instant::now());
        let run = boot.run(&workspace.lab().join("runs").join(host.series), &mut |event| {
            results += 1;
            let took = since.elapsed();
            match event {
                Event::Ok(name) => {
                    println!("ok {on}: {name}");
                    tally.pass();
                    tally.took(&format!("{on}: {name}"), took);
                    since = Instant::now();
                }
                Event::NotOk(name, why) => {
                    tally.fail(&format!("{on}: {name}"), &why);
                    tally.took(&format!("{on}: {name}"), took);
                    since = Instant::now();
                }
                Event::Skipped(name, why) => tally.skip(&format!("{on}: {name}"), &why),
                Event::Say(text) => println!("{on}: {text}"),
                Event::Figure(..) | Event::Up | Event::End => {}
            }
        });
        let run = run.and_then(|()| {
            ensure!(results > 0, "No check was made");
            Ok(())
        });
        if let Err(why) = run {
            tally.fail(&on, &format!("{why:#}"));
        }
    }
    Ok(())
}
