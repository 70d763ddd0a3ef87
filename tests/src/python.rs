//! A Python that has pycapnp, made as the README says.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::docs::{self, Mark};

/// What is said where the registry cannot be reached, or Debian's package is missing: no fault of ours.
const NOT_OURS: [&str; 3] = ["NewConnectionError", "name resolution", "ensurepip is not available"];

/// The interpreter, below the workspace's folder; or why there can be none on this machine.
///
/// # Errors
/// Where the README's commands fail for any other reason.
pub fn with_pycapnp(workspace: &Path) -> Result<Result<PathBuf, String>> {
    let python = workspace.join("target/venv/bin/python");
    let works = || Command::new(&python).args(["-c", "import capnp"]).output().is_ok_and(|out| out.status.success());
    if works() {
        return Ok(Ok(python));
    }
    let blocks = docs::blocks(docs::README)?;
    let block = blocks.iter().find(|block| block.mark == Mark::Venv).context("The README makes no environment")?;
    let out =
        Command::new("sh").args(["-euc", &block.text]).current_dir(workspace).output().context("Cannot run sh")?;
    if out.status.success() && works() {
        return Ok(Ok(python));
    }
    let said = [out.stdout, out.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    match said.lines().find(|line| NOT_OURS.iter().any(|words| line.contains(words))) {
        Some(line) => Ok(Err(format!("pycapnp cannot be installed: {}", line.trim()))),
        None => bail!("{}ended with {}, and pycapnp is not there:\n{said}", block.text, out.status),
    }
}
