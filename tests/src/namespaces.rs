//! Runs this very program again in namespaces of its own (network, processes, mounts), so that what it starts
//! there can neither touch this host nor outlive it: when the first process of a pid namespace
//! ends, however it ends, the kernel kills all others, and interfaces and mounts go with them.

use std::{ffi::OsStr, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Set in the environment of the program inside.
const INSIDE: &str = "VOLT_TESTS_INSIDE";

/// Whether this process runs in namespaces that [`command`] made.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// This program with `arguments`, in namespaces of its own, which end with it or with the caller. Needs root.
pub fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Command> {
    ensure!(rustix::process::geteuid().is_root(), "Namespaces of one's own need root");
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(INSIDE, "1")
        // The inner harness says where a check failed; how it came there is the same each time.
        .env("RUST_LIB_BACKTRACE", "0");
    let die_with_parent = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe functions may run; this is one system call.
    unsafe { command.pre_exec(die_with_parent) };
    Ok(command)
}

/// For a test of the plain harness called `name`: makes `check` in namespaces of its own.
pub fn test(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    if inside() {
        return check();
    }
    if !rustix::process::geteuid().is_root() {
        testkit::skip!("it makes namespaces and needs root");
        return Ok(());
    }
    let out = command(&["--exact", name, "--nocapture"])?.output().context("Cannot run unshare (util-linux)")?;
    // Set off, so that nobody takes the inner harness's lines for the outer one's.
    for line in [&out.stdout, &out.stderr].into_iter().flat_map(|text| text.split(|byte| *byte == b'\n')) {
        println!("| {}", String::from_utf8_lossy(line));
    }
    ensure!(out.status.success(), "Inside its namespaces the test ended with {}", out.status);
    Ok(())
}

/// Inside: gives this namespace its own empty `dir`, which vanishes with it, and brings up its loopback interface.
pub fn prepare(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for line in [format!("mount -t tmpfs -o mode=0755 tests {}", dir.display()), "ip link set lo up".into()] {
        let mut words = line.split(' ');
        let program = words.next().unwrap_or_default();
        let status = Command::new(program).args(words).status().with_context(|| format!("Cannot run {program}"))?;
        ensure!(status.success(), "{line} failed");
    }
    Ok(())
}
