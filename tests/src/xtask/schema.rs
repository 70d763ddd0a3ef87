//! Whether the committed output of the Cap'n Proto compiler is that of the committed schemas.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{debian, workspace::Workspace};

/// Compiles `schema/*.capnp` with Debian's compiler and compares.
pub fn check(workspace: &Workspace) -> Result<()> {
    debian::install(&["capnproto"])?;
    let dir = workspace.root.join("schema");
    let mut sources: Vec<_> = fs::read_dir(&dir)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".capnp"))
        .collect();
    sources.sort();
    let mut capnp = Command::new("capnp");
    capnp.args(["compile", "-o-", "--no-standard-import"]).args(&sources).current_dir(&dir);
    let out = capnp.output().context("Cannot run capnp")?;
    ensure!(out.status.success(), "capnp compile failed: {}", String::from_utf8_lossy(&out.stderr).trim());
    ensure!(
        fs::read(dir.join("volt.request"))? == out.stdout,
        "It is not what capnp makes of the schemas. Write it again: \
         cd schema && capnp compile -o- --no-standard-import {} > volt.request",
        sources.join(" ")
    );
    Ok(())
}
