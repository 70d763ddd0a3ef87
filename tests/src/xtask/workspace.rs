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

    /// Where the lab keeps its files.
    pub fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// Builds the programs as tests use them.
    pub fn debug(&self) -> Result<()> {
        let status = cargo().args(["build", "--workspace", "--bins"]).current_dir(&self.root).status();
        ensure!(status.context("Cannot run cargo")?.success(), "cargo build failed");
        Ok(())
    }

    /// Builds the release programs with these names and returns their paths.
    pub fn release(&self, programs: &[&str]) -> Result<Vec<PathBuf>> {
        let mut command = cargo();
        command.args(["build", "--release", "--workspace", "--message-format=json-render-diagnostics"]);
        for program in programs {
            command.args(["--bin", program]);
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
