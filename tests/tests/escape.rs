//! Each process can be assumed to be fully taken over, and the damage is what its row in the README says.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use anyhow::{Context, Result, ensure};
use volt_tests::{
    escape::{foothold::Layers, report},
    namespaces,
};

#[test]
fn a_thread_that_is_taken_over_reaches_what_the_readme_says_and_no_more() -> Result<()> {
    let name = "a_thread_that_is_taken_over_reaches_what_the_readme_says_and_no_more";
    namespaces::test(name, || {
        let deps = std::env::current_exe()?;
        let programs = deps.ancestors().nth(2).context("The test is not where cargo puts tests")?;
        ensure!(programs.join("volt").exists(), "There is no {}/volt: cargo build --workspace", programs.display());
        let findings = report::attack(programs)?;
        for finding in &findings {
            if finding.layers == Layers::All || finding.result.is_ok() {
                println!(
                    "{:?} | {} | {} | {} | {:?}",
                    finding.layers, finding.target.program, finding.target.thread, finding.attempt.name, finding.result
                );
            }
        }
        Ok(())
    })
}
