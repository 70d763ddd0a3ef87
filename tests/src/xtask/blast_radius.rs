//! `cargo xtask blast-radius`: has the escape suite try everything, and writes down what succeeded: the record, and what
//! docs/SECURITY.md says of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use volt_tests::escape::record::{self, Record};

use crate::workspace::{Workspace, cargo};

/// Writes both anew.
pub fn write(workspace: &Workspace) -> Result<()> {
    workspace.debug()?;
    let record = workspace.root.join("tests/blast-radius.json");
    let mut command = cargo();
    command.args(["test", "--package", "volt-tests", "--test", "escape", "no_more", "--", "--nocapture"]);
    let status = command.env("VOLT_WRITE_BLAST_RADIUS", &record).current_dir(&workspace.root).status();
    let status = status.context("Cannot run cargo")?;
    let page = workspace.root.join(record::PAGE);
    let text = Record::read(&fs::read_to_string(&record)?)?.to_markdown();
    fs::write(&page, record::insert(&fs::read_to_string(&page)?, &text)?)?;
    ensure!(status.success(), "The suite does not hold, for the reason above; what it found is written down");
    Ok(())
}
