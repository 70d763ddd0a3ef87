//! `cargo xtask soak`: tests in their long forms, which take as long as they take. What is long is the same test, told by its
//! environment how often.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// What can be asked for: the test program, which test of it, and how it is told the count that is asked for without one.
const SOAKS: [(&str, &str, &str, &str, &str); 2] = [
    ("restarts", "volt host", "restarts::vms_keep_addresses", "VOLT_SOAK_RESTARTS", "200"),
    ("network", "netmgr soak", "after_each_of_many_operations", "VOLT_SOAK_NETWORK", "1000"),
];

/// Runs one of them, `count` times over where one is given.
pub fn run(workspace: &Workspace, name: &str, count: Option<&str>) -> Result<ExitCode> {
    let Some((_, program, test, variable, default)) = SOAKS.iter().find(|(soak, ..)| *soak == name) else {
        bail!("There is no soak {name:?}; there is {}", SOAKS.map(|(soak, ..)| soak).join(", ") + ", and fuzz");
    };
    // Tests find the programs beside themselves.
    workspace.debug()?;
    let mut tests = workspace.tests(&["--test", "*"])?.into_iter();
    let (_, mut command) =
        tests.find(|(found, _)| found == program).with_context(|| format!("There is no {program}"))?;
    command.args([*test, "--nocapture"]).env(variable, count.unwrap_or(default));
    let status = command.status().with_context(|| format!("Cannot run {program}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
