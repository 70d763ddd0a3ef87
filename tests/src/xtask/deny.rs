//! `cargo xtask deny`: licences, duplicates and sources of all crates that are locked, by cargo-deny and `deny.toml`. It is not of the
//! tests, as building cargo-deny takes longer than many of them together; what they look at themselves is in `tests/tests/dependencies.rs`.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::{
    debian,
    workspace::{Workspace, cargo},
};

const VERSION: &str = "0.20.2";
/// What can be looked at without the database of advisories, which is at no package registry.
const CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

/// Builds cargo-deny below `target/tools`, unless it is there, and runs it.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let tools = workspace.target.join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        debian::say(&format!("building cargo-deny {VERSION}, which takes minutes"));
        let mut install = cargo();
        install.args(["install", "cargo-deny", "--locked", "--version", VERSION, "--root"]).arg(&tools);
        // Outside of the workspace, whose flags and targets are not its.
        let status = install.current_dir(std::env::temp_dir()).status().context("Cannot run cargo")?;
        ensure!(status.success(), "Cannot build cargo-deny; cargo's messages are above");
    }
    let mut check = std::process::Command::new(&program);
    check.args(["deny", "check", "--hide-inclusion-graph"]).args(CHECKS).current_dir(&workspace.root);
    let status = check.status().with_context(|| format!("Cannot run {}", program.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
