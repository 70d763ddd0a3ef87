//! `cargo xtask test`: the tiers unit, host and lab, the fast ones first, and others where they are named. The last line of its output is always
//! `N passed, N failed, N skipped`; a test that was skipped is named with its reason, and before it are the ten that took longest, among
//! the lab's checks too. (Tests of one program run side by side: what one takes is what it took beside the others.)
//!
//! A test of the plain harness that cannot be made here prints `skipped: NAME: REASON` and returns; it counts as
//! skipped, not as passed.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use ::schema::programs::programs;
use anyhow::{Context, Result, bail, ensure};
use volt_tests::cpio::Archive;

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

const TIERS: [(&str, Tier); 6] = [
    ("unit", unit),
    ("host", host),
    ("kernels", kernels),
    ("systemd", systemd),
    ("functions", functions),
    ("lab", lab),
];

/// What is run where it is named, and not otherwise: with it, a machine of two cores takes longer than an hour's three quarters.
const ON_REQUEST: [&str; 3] = ["kernels", "systemd", "functions"];

/// Runs the tiers that are named, or all but those on request.
pub fn run(workspace: &Workspace, only: &[&str]) -> Result<ExitCode> {
    if let Some(unknown) = only.iter().find(|name| !TIERS.iter().any(|(tier, _)| tier == *name)) {
        bail!("There is no tier {unknown:?}; there are {}", TIERS.map(|(tier, _)| tier).join(", "));
    }
    let mut tally = Tally::default();
    let chosen = |name| only.contains(&name) || only.is_empty() && !ON_REQUEST.contains(&name);
    let mut _beside = None;
    for (name, tier) in TIERS.into_iter().filter(|(name, _)| chosen(*name)) {
        if name == "host" && chosen("lab") {
            _beside = workspace.release_when_idle(of_the_lab()).inspect_err(|why| println!("{why:#}")).ok();
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
    for (name, program) in programs {
        harness::run(&name, program)?.count(tally);
    }
    harness::run_several("documentation", workspace.doc_tests())?.count(tally);
    Ok(())
}

/// Real namespaces, netlink, sandboxes and processes, as root: everything in the crates' `tests` folders.
fn host(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static", "iproute2", "nftables", "qemu-utils", "util-linux", "xz-utils"])?;
    // Without them, the tests of clients in Python and in C++, of pods, and of what systemd makes of Volt's units, say that they are skipped.
    for packages in [&["python3-venv"][..], &["g++", "capnproto", "libcapnp-dev"], &["curl"], &["systemd", "udev"]] {
        if let Err(why) = debian::install(packages) {
            println!("Without {}: {why:#}", packages.join(", "));
        }
    }
    // Tests find the programs beside themselves.
    workspace.debug()?;
    // Without the archive, the tests that need stock kernels, a newer QEMU or container engines say that they are skipped.
    let kernels = stock_kernels(workspace).map(|kernels| kernels.map(|kernel| kernel.bzimage));
    let kernels = kernels.ok().and_then(|kernels| std::env::join_paths(kernels).ok());
    let qemu = Emulator::fetch(&workspace.lab()).ok().map(|emulator| emulator.words());
    let engines = workspace.lab().join("engines");
    let engines = debian::engines(&engines).is_ok().then_some(engines);
    let mut tests = workspace.tests(&["--test", "*"])?;
    for (_, program) in &mut tests {
        program.envs(engines.iter().map(|engines| ("VOLT_TEST_ENGINES", engines)));
        program.envs(kernels.iter().map(|kernels| ("VOLT_TEST_KERNELS", kernels)));
        program.envs(qemu.iter().map(|qemu| ("VOLT_TEST_QEMU", qemu)));
    }
    in_two_rows(tests, tally)
}

/// Whose tests have users of fixed numbers, and find by them what is theirs: no two of them at a time.
const OF_VOLT: &str = "volt";
/// As these; and what they have taken over, or have stopped at each system call, must not be late for others besides: they run when no other does.
const ALONE: &str = "tests";

/// Runs the tests of Volt as a whole one after the other, beside them those of each program, and behind both those that run alone.
fn in_two_rows(tests: Vec<(String, Command)>, tally: &mut Tally) -> Result<()> {
    let of = |(name, _): &(String, Command), folder: &str| name.split(' ').next() == Some(folder);
    let (alone, tests): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| of(test, ALONE));
    let (mut of_volt, apart): (Vec<_>, Vec<_>) = tests.into_iter().partition(|test| of(test, OF_VOLT));
    // Most of their time, these wait.
    let threads = 3 * thread::available_parallelism()?.get();
    of_volt.iter_mut().for_each(|(_, program)| _ = program.env("RUST_TEST_THREADS", threads.to_string()));
    side_by_side_rows([of_volt, apart], tally)?;
    side_by_side_rows([alone], tally)
}

fn side_by_side_rows(rows: impl IntoIterator<Item = Vec<(String, Command)>>, tally: &mut Tally) -> Result<()> {
    thread::scope(|scope| {
        let (sender, ran) = channel();
        for row in rows {
            let sender = sender.clone();
            scope.spawn(move || {
                for (name, program) in row {
                    if sender.send(harness::run(&name, program)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        ran.into_iter().try_for_each(|ran| {
            ran?.count(tally);
            Ok(())
        })
    })
}

fn stock_kernels(workspace: &Workspace) -> Result<[Kernel; 2]> {
    let lab = workspace.lab();
    Ok([Kernel::fetch(&lab, "6.1")?, Kernel::fetch(&lab, "6.12")?])
}

/// Of netmgr's tests, those that are about netmgr and its clients, whatever the kernel is, that wait most of their time, or that take a card.
const ELSEWHERE: [&str; 7] = ["addresses", "authority", "guests", "mending", "networks", "ports", "process"];
/// How those begin that take one with virtual functions.
const FUNCTIONS: &str = "functions";

/// Those of netmgr's tests that are about what a kernel makes of frames and rules, on the kernels of the lab.
fn kernels(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static", "iproute2", "nftables", "util-linux"])?;
    let (emulator, kernels) = (Emulator::fetch(&workspace.lab())?, stock_kernels(workspace)?);
    let driver = workspace.release(["lab-driver"])?;
    workspace.debug()?;
    let mut tests = netmgr_tests(workspace, |name| !name.starts_with(FUNCTIONS) && !ELSEWHERE.contains(&name))?;
    let netmgr = netmgr_beside(&tests)?;
    tests.extend(netmgr_units(workspace)?);
    let boots = kernels.iter().map(|kernel| {
        let mut image = image::host(kernel, &driver, &[])?;
        image::add_tests(&mut image, &tests, &netmgr)?;
        Ok(Lab { deadline: LONG, ..boot(&emulator, kernel, "tests", image) })
    });
    side_by_side("lab tests", workspace, &boots.collect::<Result<Vec<_>>>()?, tally)
}

/// What a lab host runs.
fn of_the_lab() -> impl Iterator<Item = &'static str> {
    programs().chain(["lab-driver"])
}

/// The whole product on the real KVM of two lab hosts.
fn lab(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static"])?;
    let (emulator, kernels) = (Emulator::fetch(&workspace.lab())?, stock_kernels(workspace)?);
    tally.record("release programs are static, and the core is small", sizes::check(&workspace.release(programs())?));
    let programs = workspace.release(of_the_lab())?;
    let guests = kernels.iter().map(|guest| Ok((guest, image::guest(guest, "")?))).collect::<Result<Vec<_>>>()?;
    let boots =
        kernels.iter().map(|host| Ok(boot(&emulator, host, "functional", image::host(host, &programs, &guests)?)));
    side_by_side("lab host", workspace, &boots.collect::<Result<Vec<_>>>()?, tally)
}

/// The product under systemd, on a host that Debian's own installer has made.
fn systemd(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static"])?;
    let lab = workspace.lab();
    let (emulator, kernels) = (Emulator::fetch(&lab)?, stock_kernels(workspace)?);
    let root = debian::root(&lab.join("debian"))?;
    let programs = workspace.release(programs().chain(["lab-driver"]))?;
    let guests = kernels.iter().map(|guest| Ok((guest, image::guest(guest, "")?))).collect::<Result<Vec<_>>>()?;
    let [host, _] = &kernels;
    let boots = [boot(&emulator, host, "systemd", image::systemd(host, &programs, &guests, &root)?)];
    side_by_side("systemd host", workspace, &boots, tally)
}

/// Networks of virtual functions, on cards that QEMU emulates.
fn functions(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    debian::install(&["busybox-static", "iproute2", "nftables", "util-linux"])?;
    let lab = workspace.lab();
    let emulator = Emulator::fetch(&lab)?;
    let (host, guest) = (Kernel::fetch(&lab, "full")?, Kernel::fetch(&lab, "6.1")?);
    let programs = workspace.release(of_the_lab())?;
    workspace.debug()?;
    let tests = netmgr_tests(workspace, |name| name.starts_with(FUNCTIONS))?;
    let mut image = image::host(&host, &programs, &[(&guest, image::guest(&guest, "")?)])?;
    image::add_tests(&mut image, &tests, &netmgr_beside(&tests)?)?;
    let boots = [Lab { cards: true, ..boot(&emulator, &host, FUNCTIONS, image) }];
    side_by_side("host with cards", workspace, &boots, tally)
}

/// The tests of netmgr's whose names are `chosen`.
fn netmgr_tests(workspace: &Workspace, chosen: impl Fn(&str) -> bool) -> Result<Vec<(String, PathBuf)>> {
    let chosen = |name: &&str| chosen(name);
    let select: Vec<&str> = workspace.tests_of("netmgr").filter(chosen).flat_map(|name| ["--test", name]).collect();
    let tests = workspace.tests(&select)?.into_iter().filter_map(|(name, command)| {
        let name = name.strip_prefix("netmgr ")?;
        Some((name.to_owned(), PathBuf::from(command.get_program())))
    });
    Ok(tests.collect())
}

/// Those in its sources, under a name of their own.
fn netmgr_units(workspace: &Workspace) -> Result<Option<(String, PathBuf)>> {
    let of_netmgr = |(name, _): &(String, Command)| name.split(' ').next() == Some("netmgr");
    let units = workspace.tests(&["--lib"])?.into_iter().find(of_netmgr);
    Ok(units.map(|(_, command)| ("units".to_owned(), PathBuf::from(command.get_program()))))
}

/// The program that they run.
fn netmgr_beside(tests: &[(String, PathBuf)]) -> Result<PathBuf> {
    let (_, test) = tests.first().context("netmgr has no tests")?;
    Ok(test.parent().and_then(Path::parent).context("A test has a folder")?.join("netmgr"))
}

/// How long all of netmgr's tests may take together, each in a process of its own.
const LONG: Duration = Duration::from_secs(2400);

fn boot<'a>(emulator: &'a Emulator, kernel: &'a Kernel, scenario: &'a str, image: Archive) -> Lab<'a> {
    let deadline = Duration::from_secs(900);
    // Checks may take long, and one that stands still is a fault.
    let (image, cards, clock, silence) = (image.finish(), false, Clock::Wall, None);
    Lab { emulator, kernel, image, scenario, cards, clock, deadline, silence }
}

/// Boots lab hosts at the same time: each has one CPU, which is one thread of this machine's.
fn side_by_side(what: &str, workspace: &Workspace, boots: &[Lab<'_>], tally: &mut Tally) -> Result<()> {
    let runs = workspace.lab().join("runs");
    thread::scope(|scope| {
        let (sender, heard) = channel();
        for boot in boots {
            let (sender, dir) = (sender.clone(), runs.join(boot.kernel.series).join(boot.scenario));
            scope.spawn(move || {
                let mut results = 0;
                let run = boot.run(&dir, &mut |event| {
                    results += usize::from(event != Event::Up);
                    _ = sender.send((boot.kernel.series, Ok(event)));
                });
                let run = run.and_then(|()| {
                    ensure!(results > 0, "No check was made");
                    Ok(())
                });
                _ = run.inspect_err(|why| _ = sender.send((boot.kernel.series, Err(format!("{why:#}")))));
            });
        }
        drop(sender);
        // Those of one host are made one after the other.
        let mut since = BTreeMap::new();
        for (series, said) in heard {
            let on = format!("{what} {series}");
            let mut took = |name: &str, tally: &mut Tally| {
                let now = Instant::now();
                let before = since.insert(series, now).unwrap_or(now);
                tally.took(&format!("{on}: {name}"), now.saturating_duration_since(before));
            };
            match said {
                Ok(Event::Up) => _ = since.insert(series, Instant::now()),
                Ok(Event::Ok(name)) => {
                    println!("ok {on}: {name}");
                    tally.pass();
                    took(&name, tally);
                }
                Ok(Event::NotOk(name, why)) => {
                    tally.fail(&format!("{on}: {name}"), &why);
                    took(&name, tally);
                }
                Ok(Event::Skipped(name, why)) => tally.skip(&format!("{on}: {name}"), &why),
                Ok(Event::Say(text)) => println!("{on}: {text}"),
                Ok(Event::Figure(..) | Event::End) => {}
                Err(why) => tally.fail(&on, &why),
            }
        }
    });
    Ok(())
}
