//! Asks cargo where things are, and has it build them.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Volt's programs, as they are installed.
pub const PROGRAMS: [&str; 7] =
    ["volt", "vmm-core", "vhost-net-backend", "vhost-blk-backend", "netmgr", "ipamd", "kernel-store"];

/// Where cargo puts things.
#[derive(Deserialize)]
pub struct Workspace {
    #[serde(rename = "workspace_root")]
    pub root: PathBuf,
    #[serde(rename = "target_directory")]
    pub target: PathBuf,
}

impl Workspace {
    /// Asks `cargo metadata`.
    pub fn find() -> Result<Workspace> {
        let mut command = cargo();
        command.args(["metadata", "--format-version=1", "--no-deps", "--offline"]);
        let out = command.output().context("Cannot run cargo")?;
        ensure!(out.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).context("cargo metadata printed something else than it documents")
    }

    /// Builds the release programs and returns their paths.
    pub fn release(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = cargo();
        command.args(["build", "--release", "--bins", "--message-format=json-render-diagnostics"]);
        for package in packages {
            command.args(["--package", package]);
        }
        let out = command.current_dir(&self.root).stderr(Stdio::inherit()).output().context("Cannot run cargo")?;
        ensure!(out.status.success(), "cargo build --release failed");
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str::<Artifact>(line).ok())
            .filter_map(|artifact| artifact.executable)
            .collect())
    }
}

/// The one kind of cargo's messages that matters here.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
