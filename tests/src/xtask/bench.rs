//! `cargo xtask bench [NAME]`: figures from the lab, beside a peer that ran in the same boot of the same lab host; and
//! figures from this machine, of what has no peer.

use std::{collections::BTreeMap, fs, os::unix::process::CommandExt, path::Path, process::Command, time::Duration};

use ::schema::programs::{NETMGR, programs};
use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use rustix::thread::UnshareFlags;
use serde::Serialize;

use crate::{
    attach,
    debian::{self, Kernel},
    emulator::Emulator,
    forward, image,
    lab::{Clock, Event, Lab},
    sizes, startup,
    workspace::Workspace,
};

/// One figure beside a peer's.
#[derive(Serialize)]
pub struct Row {
    metric: String,
    unit: &'static str,
    ours: Option<f64>,
    peer: Option<f64>,
    peer_name: Option<String>,
    /// Ours divided by the peer's.
    ratio: Option<f64>,
    better: &'static str,
}

/// Takes figures on this machine, on a thread with a network, mounts and `/run` of its own, and a folder that is gone afterwards.
pub fn apart(name: &str, take: impl FnOnce(&Path) -> Result<Vec<Row>> + Send) -> Result<Vec<Row>> {
    let dir = std::env::temp_dir().join(format!("volt-bench-{name}-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let apart = || {
        // SAFETY: it takes network and mounts from this thread alone, whose descriptors stay as they are.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
            .context("Cannot make namespaces; run as root")?;
        for line in ["mount --make-rprivate /", "mount -t tmpfs bench /run", "ip link set lo up"] {
            let mut words = line.split(' ');
            debian::run(Command::new(words.next().unwrap_or_default()).args(words))?;
        }
        take(&dir)
    };
    let rows = std::thread::scope(|scope| {
        scope.spawn(apart).join().unwrap_or_else(|_| bail!("The measuring thread panicked"))
    });
    let _ = fs::remove_dir_all(&dir);
    rows
}

/// What a scenario measured, by the driver's names.
type Figures = BTreeMap<String, f64>;

/// The peers' names in the driver's figures and in the table.
type Peers = Vec<(&'static str, String)>;

/// One that is taken in the lab.
struct Bench {
    name: &'static str,
    clock: Clock,
    rows: fn(&Figures, &Peers) -> Vec<Row>,
    note: &'static str,
}

const BENCHES: [Bench; 2] = [
    Bench {
        name: "boot",
        clock: Clock::Instructions,
        rows: boot_rows,
        note: "ms of the lab's instruction clock (1 ns an instruction, all processes, one CPU), Debian 6.1 cloud kernel (ELF). \
               Ours includes leasing an address and making the TAP; the peer is given both. The peer's first guest \
               instruction is its firmware's.",
    },
    Bench {
        name: "footprint",
        clock: Clock::Wall,
        rows: footprint_rows,
        note: "KiB of PSS less guest RAM, one idle VM of 256 MiB. The services serve all VMs of a host.",
    },
];

const ATTACH: &str = "attach";
const FORWARD: &str = "forward";
const CONFINE: &str = "confine";
const SIZE: &str = "size";

/// Runs the benches that are named, or all.
pub fn run(workspace: &Workspace, only: &[&str]) -> Result<()> {
    let known = || BENCHES.iter().map(|bench| bench.name).chain([ATTACH, FORWARD, CONFINE, SIZE]);
    if let Some(unknown) = only.iter().find(|name| !known().any(|known| known == **name)) {
        bail!("There is no bench {unknown:?}; there are {}", known().collect::<Vec<_>>().join(", "));
    }
    if cfg!(debug_assertions) {
        // Some of what is measured is this program's own part in it.
        let own = workspace.release(["xtask"])?.pop().context("cargo built no program")?;
        return Err(Command::new(own).arg("bench").args(only).exec()).context("Cannot run what was built");
    }
    let wanted = |name: &str| only.is_empty() || only.contains(&name);
    if wanted(ATTACH) || wanted(FORWARD) {
        let netmgr = workspace.release([NETMGR.program])?.pop().context("cargo built no program")?;
        if wanted(ATTACH) {
            let note = "ms of wall time on this machine, and of its processors. Ours is asked over RPC for a TAP with an address and the rules that keep a \
                        guest to that, and has it in hand; theirs start a program for each, and make veths with an address.";
            publish(workspace, ATTACH, &attach::measure(&netmgr)?, note)?;
        }
        if wanted(FORWARD) {
            let note = "Medians of turns on this machine, over veths. Ours is looked at by all rules, with a policy; no rule looks at the peer. Goal: a ratio of \
                        at least 0.95.";
            publish(workspace, FORWARD, &forward::measure(&netmgr)?, note)?;
        }
    }
    if !only.is_empty() && only.iter().all(|name| [ATTACH, FORWARD].contains(name)) {
        return Ok(());
    }
    let programs = workspace.release(programs())?;
    if wanted(SIZE) {
        let note = "Bytes / 1000 of the stripped release programs. All are static: they need no other file.";
        publish(workspace, SIZE, &sizes::rows(&programs)?, note)?;
    }
    if wanted(CONFINE) {
        let dir = programs.first().and_then(|path| path.parent()).context("cargo built no program")?;
        let note = "ms of wall time on this machine, medians. Ours runs confined; the peer is the same program on a kernel that \
                    seems to have no Landlock and no seccomp, and that skips the cutting of capabilities, limits and descriptors. Goal: a cost of at most 3.";
        publish(workspace, CONFINE, &startup::measure(dir)?, note)?;
    }
    if BENCHES.iter().any(|bench| wanted(bench.name)) { in_lab(workspace, wanted) } else { Ok(()) }
}

fn in_lab(workspace: &Workspace, wanted: impl Fn(&str) -> bool) -> Result<()> {
    debian::install(&["busybox-static"])?;
    let emulator = Emulator::fetch(&workspace.lab())?;
    let kernel = Kernel::fetch(&workspace.lab(), "6.1")?;
    let programs = workspace.release(programs().chain(["lab-driver"]))?;
    let mut archive = image::host(&kernel, &programs, &[(&kernel, image::guest(&kernel, "")?)])?;
    archive.file("/guests/6.1/vmlinux", 0o644, &image::read(&kernel.elf)?);
    let mut peers = vec![("qemu", image::add_qemu(&mut archive)?)];
    if let Some(program) = std::env::var_os("VOLT_BENCH_FIRECRACKER") {
        archive.file("/bin/firecracker", 0o755, &image::read(Path::new(&program))?);
        let version = debian::output(Command::new(&program).arg("--version"))?;
        peers.push(("firecracker", version.lines().next().unwrap_or("Firecracker").to_owned()));
    }
    let image = archive.finish();
    for bench in BENCHES.iter().filter(|bench| wanted(bench.name)) {
        let figures = measure(workspace, bench, &emulator, &kernel, image.clone())?;
        publish(workspace, bench.name, &(bench.rows)(&figures, &peers), bench.note)?;
    }
    Ok(())
}

/// Writes the rows for programs, and prints them for people.
fn publish(workspace: &Workspace, name: &str, rows: &[Row], note: &str) -> Result<()> {
    let dir = workspace.target.join("bench");
    fs::create_dir_all(&dir)?;
    let file = dir.join(format!("{name}.json"));
    fs::write(&file, serde_json::to_string_pretty(rows)?)?;
    println!("{}\n{note}\n{}\n", table(rows), file.display());
    Ok(())
}

fn measure(
    workspace: &Workspace,
    bench: &Bench,
    emulator: &Emulator,
    kernel: &Kernel,
    image: Vec<u8>,
) -> Result<Figures> {
    let scenario = format!("bench-{}", bench.name);
    debian::say(&format!("measuring {} in the lab; this takes a few minutes", bench.name));
    let dir = workspace.lab().join("runs").join(&scenario);
    let lab = Lab {
        cards: false,
        emulator,
        kernel,
        image,
        scenario: &scenario,
        clock: bench.clock,
        deadline: Duration::from_secs(900),
        silence: None,
    };
    let mut figures = Figures::new();
    lab.run(&dir, &mut |event| {
        if let Event::Figure(name, value) = event {
            figures.insert(name, value);
        }
    })
    .with_context(|| format!("Bench {} failed", bench.name))?;
    Ok(figures)
}

/// A row, rounded to a thousandth.
pub fn row(metric: String, unit: &'static str, ours: Option<f64>, peer: Option<(f64, &str)>) -> Row {
    let round = |n: f64| (n * 1e3).round() / 1e3;
    let ratio = ours.zip(peer).filter(|(_, (peer, _))| *peer > 0.0).map(|(ours, (peer, _))| round(ours / peer));
    let (peer, peer_name) = peer.map(|(value, name)| (round(value), name.to_owned())).unzip();
    Row { metric, unit, ours: ours.map(round), peer, peer_name, ratio, better: "lower" }
}

/// The same of something of which more is better.
pub fn higher(row: Row) -> Row {
    Row { better: "higher", ..row }
}

fn boot_rows(figures: &Figures, peers: &Peers) -> Vec<Row> {
    let variants =
        [("volt", "services up"), ("volt-file", "services up, kernel from a file"), ("volt-cold", "services cold")];
    let mut rows = Vec::new();
    for (peer, peer_name) in peers {
        for (point, what) in [("init", "start to /init"), ("entry", "start to the guest's first instruction")] {
            for (ours, variant) in variants {
                let ours = figures.get(&format!("{ours}.{point}")).copied();
                let peer = figures.get(&format!("{peer}.{point}")).map(|value| (*value, peer_name.as_str()));
                rows.push(row(format!("{what}, {variant}"), "ms", ours, peer));
            }
        }
    }
    rows
}

fn footprint_rows(figures: &Figures, peers: &Peers) -> Vec<Row> {
    let of = |prefix: &'static str| figures.iter().filter_map(move |(k, v)| Some((k.strip_prefix(prefix)?, *v)));
    let (vm, services) = (|| of("volt."), || of("service."));
    let sum = |values: &mut dyn Iterator<Item = (&str, f64)>| Some(values.map(|(_, value)| value).sum::<f64>());
    let mut rows = Vec::new();
    for (peer, name) in peers {
        let peer = figures.get(*peer).map(|value| (*value, name.as_str()));
        rows.push(row("all processes of one VM".into(), "KiB", sum(&mut vm()), peer));
    }
    rows.extend(vm().map(|(process, value)| row(format!("process {process}"), "KiB", Some(value), None)));
    rows.push(row("all services, once a host".into(), "KiB", sum(&mut services()), None));
    rows.extend(services().map(|(process, value)| row(format!("service {process}"), "KiB", Some(value), None)));
    rows
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["metric", "unit", "ours", "peer", "ratio", "peer is"]);
    let number = |value: Option<f64>, places: usize| value.map_or("-".into(), |value| format!("{value:.places$}"));
    for row in rows {
        let peer_name = row.peer_name.clone().unwrap_or("-".into());
        let [ours, peer] = [row.ours, row.peer].map(|value| number(value, 1));
        table.add_row([row.metric.clone(), row.unit.into(), ours, peer, number(row.ratio, 2), peer_name]);
    }
    table
}
