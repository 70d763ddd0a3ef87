//! `cargo xtask check-aarch64`: whether what is meant for aarch64 compiles for it, the filters of system calls above all. Debian's web
//! toolchain has that target's standard library as a package of architecture arm64: it and the compiler are unpacked below
//! `target/aarch64` without being installed, and the machine's package lists stay as they are. Nothing is linked, nothing runs.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

use crate::{
    debian::{self, output, run as quietly, say},
    workspace::{Workspace, cargo},
};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "rustc-web";
const LIBRARY: &str = "libstd-rust-web-dev";
/// What is for x86-64: the core (CPU state, boot protocol), who reads a guest's kernel (linux-loader has the structures of ELF on x86-64
/// only), and who asks the core for what this host's KVM gives.
const OTHERS: [&str; 4] = ["vmm-core", "kernel-image", "kernel-store", "volt"];

/// Gets the toolchain, unless it is there, and has all else checked.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let dir = workspace.target.join("aarch64");
    let toolchain = dir.join("toolchain");
    if !toolchain.join("complete").exists() {
        unpack(&toolchain).with_context(|| format!("Cannot get Debian's {COMPILER} for {TARGET}"))?;
    }
    let mut check = cargo();
    check.args(["check", "--workspace", "--lib", "--bins", "--target", TARGET, "--target-dir"]).arg(dir.join("build"));
    check.args(OTHERS.iter().flat_map(|package| ["--exclude", package]));
    check.env("RUSTC", toolchain.join("usr/bin/rustc"));
    check.env("LD_LIBRARY_PATH", toolchain.join("usr/lib/x86_64-linux-gnu"));
    // SQLite's C code: as nothing is linked, this machine's own compiler will do.
    check.envs([("CC_aarch64_unknown_linux_gnu", "gcc"), ("AR_aarch64_unknown_linux_gnu", "ar")]);
    let status = check.current_dir(&workspace.root).status().context("Cannot run cargo")?;
    if status.success() {
        println!("all but {} compile for {TARGET}", OTHERS.join(", "));
    }
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unpack(dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    let apt = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    debian::install(&["gcc", "binutils"])?;
    let version = field(LIBRARY, "Version")?;
    let compiled = field(LIBRARY, "Depends")?;
    let backend = field(&compiled, "Depends")?;
    say(&format!("downloading {COMPILER} {version}"));
    for package in [COMPILER, LIBRARY, &compiled, &backend] {
        debian::download(dir, package)?;
    }
    // The one package of the other architecture: by lists of its own. The fetching user of apt cannot write below a private folder.
    let options = [
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
        "APT::Architecture=arm64".into(),
        "APT::Architectures=arm64".into(),
        "APT::Sandbox::User=root".into(),
    ];
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.arg("-q").args(options.iter().flat_map(|option| ["-o", option])).current_dir(dir);
        command
    };
    quietly(apt_get().arg("update"))?;
    quietly(apt_get().arg("download").arg(format!("{LIBRARY}:arm64={version}")))?;
    let files = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    for deb in files.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        quietly(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
        fs::remove_file(&deb)?;
    }
    ensure!(dir.join("usr/lib/rustlib").join(TARGET).is_dir(), "{LIBRARY} has no library for {TARGET}");
    fs::remove_dir_all(&apt)?;
    // Written last: its presence says that everything else is there.
    fs::write(dir.join("complete"), version)?;
    Ok(())
}

/// What apt says of a package; of what it depends on, the part of the toolchain.
fn field(package: &str, name: &str) -> Result<String> {
    let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    last(&shown, name, package).with_context(|| format!("apt says no {name} of {package}"))
}

fn last(shown: &str, name: &str, package: &str) -> Option<String> {
    let value = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut names = value.split(',').filter_map(|part| part.split_whitespace().next());
    let is_own = |found: &&str| *found != package && (found.contains("rust") || found.contains("llvm"));
    if name == "Depends" { names.find(is_own) } else { names.next() }.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::last;

    #[test]
    fn what_the_toolchain_is_made_of_is_told_from_what_every_program_takes() {
        let shown = "Package: libstd-rust-web-1.96\nVersion: 1.96.0+dfsg1-1~deb12u2\n\
                     Depends: libc6 (>= 2.34), libgcc-s1 (>= 4.2), libllvm22, libstdc++6 (>= 11)\n";
        assert_eq!(last(shown, "Depends", "libstd-rust-web-1.96").as_deref(), Some("libllvm22"));
        assert_eq!(last(shown, "Version", "libstd-rust-web-1.96").as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(last("Depends: libc6\n", "Depends", "x"), None);
    }
}
