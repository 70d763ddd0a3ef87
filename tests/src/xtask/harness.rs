//! Runs `cargo test` and reads the plain harness's output. With `--show-output` that holds what passing tests printed,
//! a section a test, so that `skipped: NAME: REASON` lines can be told from everything else.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result};

use crate::{
    test::Tally,
    workspace::{Workspace, cargo},
};

/// Runs the tests of the whole workspace that `select` names.
pub fn run(workspace: &Workspace, select: &[&str], tally: &mut Tally) -> Result<()> {
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(select)
        .args(["--", "--show-output"])
        .current_dir(&workspace.root)
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("Cannot run cargo")?;
    let output = child.stdout.take().context("cargo was started with a pipe")?;
    let mut reader = Reader::default();
    for line in BufReader::new(output).split(b'\n') {
        reader.line(&String::from_utf8_lossy(&line?), tally);
    }
    reader.finish(child.wait()?.success(), &select.join(" "), tally);
    Ok(())
}

/// Where in the output we are.
#[derive(Default, PartialEq)]
enum Section {
    #[default]
    Results,
    Successes,
    Failures,
}

#[derive(Default)]
struct Reader {
    section: Section,
    /// Tests of the current program that are "ok", until its output section says that some were skipped.
    passed: Vec<String>,
    /// The test whose output is being read.
    test: String,
    /// Whether a test program has begun and has not said how it went.
    open: bool,
    /// Failures that were reported by test programs, or found here.
    failures: usize,
}

impl Reader {
    fn line(&mut self, line: &str, tally: &mut Tally) {
        let counts =
            line.strip_prefix("running ").is_some_and(|rest| rest.ends_with(" test") || rest.ends_with(" tests"));
        if counts && (self.section == Section::Results || !self.open) {
            self.close(tally);
            self.open = true;
            self.section = Section::Results;
        } else if line.starts_with("test result: ") {
            self.open = false;
            self.close(tally);
        } else if line == "successes:" {
            self.section = Section::Successes;
        } else if line == "failures:" {
            self.section = Section::Failures;
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
            if self.section == Section::Failures {
                println!("{line}");
            }
        } else {
            self.text(line, tally);
        }
    }

    fn text(&mut self, line: &str, tally: &mut Tally) {
        match self.section {
            Section::Results => {
                let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
                    return;
                };
                match result {
                    "ok" => self.passed.push(name.to_owned()),
                    "FAILED" => {
                        self.failures += 1;
                        tally.fail(name, "see below");
                    }
                    _ => tally.skip(name, result),
                }
            }
            Section::Successes => {
                let Some(skipped) = line.strip_prefix("skipped: ") else { return };
                let (name, why) = skipped.split_once(": ").unwrap_or((&self.test, skipped));
                let before = self.passed.len();
                self.passed.retain(|passed| *passed != self.test);
                // A test that gives several reasons was skipped once.
                if self.passed.len() < before {
                    tally.skip(name, why);
                }
            }
            Section::Failures => println!("{line}"),
        }
    }

    /// Ends the account of one test program.
    fn close(&mut self, tally: &mut Tally) {
        if self.open {
            self.failures += 1;
            tally.fail("a test program", "it ended before all of its tests had; its last lines are above");
            self.open = false;
        }
        self.passed.drain(..).for_each(|_| tally.pass());
        self.section = Section::Results;
    }

    fn finish(&mut self, success: bool, select: &str, tally: &mut Tally) {
        self.close(tally);
        if !success && self.failures == 0 {
            tally.fail(&format!("cargo test {select}"), "it failed before any test did; its messages are above");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(output: &str, success: bool) -> (usize, usize, usize) {
        let (mut reader, mut tally) = (Reader::default(), Tally::default());
        output.lines().for_each(|line| reader.line(line, &mut tally));
        reader.finish(success, "", &mut tally);
        tally.counts()
    }

    const GOOD: &str = "\nrunning 3 tests\ntest a ... ok\ntest b - should panic ... ok\ntest c ... ok\n\nsuccesses:\n\n\
        ---- a stdout ----\nskipped: a: no root\nskipped: a: no KVM\n\n---- c stdout ----\nrunning 2 tests\n\n\n\
        successes:\n    a\n    b\n    c\n\ntest result: ok. 3 passed; 0 failed\n\n";

    #[test]
    fn a_test_that_says_skipped_counts_as_skipped_once_and_not_as_passed() {
        assert_eq!(count(GOOD, true), (2, 0, 1));
    }

    #[test]
    fn ignored_and_failed_tests_are_told_apart() {
        let bad = "running 3 tests\ntest a ... FAILED\ntest b ... ignored, slow\ntest c ... ok\n\nfailures:\n\n\
            ---- a stdout ----\nboom\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored\n";
        assert_eq!(count(bad, false), (1, 1, 1));
        assert_eq!(count(&(GOOD.to_owned() + bad), false), (3, 1, 2));
    }

    #[test]
    fn a_test_program_that_dies_counts_as_a_failure() {
        let died = "running 2 tests\ntest a ... ok\n";
        assert_eq!(count(died, false), (1, 1, 0));
        assert_eq!(count(&(died.to_owned() + GOOD), false), (3, 1, 1));
    }

    #[test]
    fn a_build_that_fails_counts_as_a_failure() {
        assert_eq!(count("", false), (0, 1, 0));
        assert_eq!(count("", true), (0, 0, 0));
    }
}
