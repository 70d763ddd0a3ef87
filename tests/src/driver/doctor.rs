//! `volt doctor` on the lab hosts: their KVM counts as real, and what the older kernel lacks is named.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use volt_tests::volt::Volt;

/// Checks the report on a host whose kernel is `release`.
pub fn check(volt: &Volt, release: &str) -> Result<()> {
    let out = volt.run(&["doctor", "--json"], Duration::from_secs(60))?;
    let [said, report] = [&out.stderr, &out.stdout].map(|bytes| String::from_utf8_lossy(bytes));
    ensure!(out.status.success(), "It ended with {}: {said}{report}", out.status);
    let report: Value = serde_json::from_str(&report).context("It printed something else than JSON")?;
    let row = |name: &str| {
        let rows = report.get("checks").and_then(Value::as_array);
        rows.into_iter().flatten().find(|row| row.get("check").and_then(Value::as_str) == Some(name))
    };
    let state = |name, state| {
        let row = row(name).with_context(|| format!("It says nothing of {name}"))?;
        ensure!(row.get("state").and_then(Value::as_str) == Some(state), "{row}");
        Ok(())
    };
    // How fast KVM is here depends on how busy the machine is that emulates it all.
    let speed = row("kvm-speed").context("It says nothing of kvm-speed")?;
    ensure!(speed.to_string().contains("instructions/s"), "{speed}");
    let there = ["kvm", "programs", "rights", "seccomp", "user-namespaces", "namespaces"];
    there
        .into_iter()
        .chain(["nftables", "tun", "bridge", "vlans", "macvtaps"])
        .try_for_each(|name| state(name, "ok"))?;
    // Linux 6.1 has Landlock's ABI 2, and 6.12 its ABI 6.
    let whole = if release.starts_with("6.1.") { "limited" } else { "ok" };
    ["landlock", "kernel"].into_iter().try_for_each(|name| state(name, whole))?;

    let walls = whole == "ok" && state("cgroups", "ok").is_ok();
    state("confinement", if walls { "ok" } else { "limited" })?;
    let strict = volt.run(&["--confinement", "strict", "doctor"], Duration::from_secs(60))?;
    ensure!(strict.status.success() == walls, "strict: {}", String::from_utf8_lossy(&strict.stdout));
    Ok(())
}
