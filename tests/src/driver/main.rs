//! Runs inside the lab host as root, drives `volt` and QEMU there, and writes what it finds to file
//! descriptor 3 in the lines that `xtask`'s `lab` module reads. Nothing else may write there.

mod microvm;
mod report;

use anyhow::{Result, bail};

fn main() {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let outcome = report::Report::open().and_then(|mut report| {
        run(&scenario, &mut report)?;
        report.end()
    });
    if let Err(error) = outcome {
        // Without an "end" the run counts as failed; this says why on the lab's console.
        println!("lab-driver: {error:#}");
        std::process::exit(1);
    }
}

fn run(scenario: &str, report: &mut report::Report) -> Result<()> {
    match scenario {
        "microvm" => microvm::check(report),
        other => bail!("There is no scenario {other:?}"),
    }
}
