//! The table of processes (`schema::programs`) has every program that the workspace builds, and the pages say what it says. That
//! each process has those threads the proof of system calls shows, that each can be taken over the escape suite.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use schema::programs;
use volt_tests::{docs, workspace::Workspace};

/// Crates whose programs are no part of Volt: for its tests, and for whoever reads them.
const NOT_INSTALLED: [&str; 3] = ["examples", "fuzz", "volt-tests"];

#[test]
fn every_program_of_the_workspace_is_in_the_table_and_is_a_crate_and_a_folder_of_that_name() -> Result<()> {
    let workspace = Workspace::find()?;
    let built: BTreeSet<_> = workspace.programs().filter(|(of, _)| !NOT_INSTALLED.contains(of)).collect();
    let beside = programs::CLIENTS.into_iter().map(|program| (programs::VOLT, program));
    let table: BTreeSet<_> = programs::programs().map(|program| (program, program)).chain(beside).collect();
    ensure!(built == table, "The workspace builds {built:?}, and the table of processes has {table:?}");
    for program in programs::programs() {
        ensure!(workspace.root.join(program).join("Cargo.toml").exists(), "There is no folder {program}");
    }
    Ok(())
}

#[test]
fn pages_say_of_each_process_what_the_table_says() -> Result<()> {
    let architecture =
        docs::table(["started by", "its work"], |process| [process.started_by.text().into(), process.work.into()]);
    let holds = docs::table(["holds"], |process| [process.holds.into()]);
    let never = docs::table(["never has"], |process| [process.never.into()]);
    let runs_as = docs::table(["runs as", "Linux capabilities"], |process| {
        let capabilities = process.capabilities.join(", ");
        [process.user.text().into(), if capabilities.is_empty() { "none".into() } else { format!("`{capabilities}`") }]
    });
    for (page, table) in [
        ("docs/ARCHITECTURE.md", architecture),
        ("docs/SECURITY.md", holds),
        ("docs/SECURITY.md", never),
        ("docs/SECURITY.md", runs_as),
    ] {
        let text = fs::read_to_string(Workspace::find()?.root.join(page))?;
        ensure!(text.contains(&table), "{page} does not have this table:\n{table}");
    }
    Ok(())
}
