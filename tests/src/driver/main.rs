//! Runs inside the lab host as root, drives `volt` and QEMU there, and writes what it finds to file
//! descriptor 3 in the lines that `xtask`'s `lab` module reads. Nothing else may write there.

mod bench;
mod doctor;
mod functional;
mod functions;
mod kinds;
mod neighbour;
mod peers;
mod published;
mod report;
mod suite;
mod systemd;
mod walls;

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use report::Report;
use schema::paths::{RUNTIME, STATE};
use volt_tests::volt::Volt;

fn main() {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let outcome = Report::open().and_then(|mut report| {
        report.up()?;
        run(&scenario, &mut report)?;
        report.end()
    });
    if let Err(error) = outcome {
        // Without an "end" the run counts as failed; this says why on the lab's console.
        println!("lab-driver: {error:#}");
        std::process::exit(1);
    }
}

fn run(scenario: &str, report: &mut Report) -> Result<()> {
    match scenario {
        "bench-boot" => bench::boot(&volt(), report),
        "bench-footprint" => bench::footprint(&volt(), report),
        "demo" => demo(report),
        "functional" => functional::run(&volt(), report),
        "functions" => functions::run(&volt(), report),
        "systemd" => systemd::run(&volt(), report),
        // Each test in a machine that is emulated: the soak is a taste of it.
        "tests" => suite::run(Path::new("/tests"), &[("VOLT_SOAK_NETWORK", "12")], report),
        other => bail!("There is no scenario {other:?}"),
    }
}

/// Volt as root finds it after an installation.
fn volt() -> Volt {
    Volt { programs: "/bin".into(), runtime: RUNTIME.into(), state: STATE.into() }
}

fn demo(report: &mut Report) -> Result<()> {
    let dir = Path::new("/guests/6.1");
    let outcome = volt_tests::demo::run(&volt(), dir, Duration::from_secs(120), &mut |line| report.say(line));
    report.check("demo", outcome)
}
