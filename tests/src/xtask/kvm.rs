//! Whether this machine's `/dev/kvm` is worth using, as `volt doctor` finds it: some have one that interprets ring 0 in
//! software, and a stock kernel would boot for hours.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use volt_tests::volt;

#[derive(Deserialize)]
struct Report {
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    check: String,
    state: String,
    detail: String,
}

/// An error that says why a stock kernel cannot run here in reasonable time.
pub fn check_hardware(volt: &Path) -> Result<()> {
    let mut doctor = Command::new(volt);
    doctor.args(["doctor", "--json"]);
    let out = volt::finish(doctor, Duration::from_secs(60))?;
    let report: Report = serde_json::from_slice(&out.stdout).context("volt doctor --json printed something else")?;
    for name in ["kvm", "kvm-speed"] {
        let row = report.checks.iter().find(|row| row.check == name);
        let row = row.with_context(|| format!("volt doctor says nothing of {name}"))?;
        if row.state != "ok" {
            bail!("volt doctor finds {name} {}: {}", row.state, row.detail);
        }
    }
    Ok(())
}
