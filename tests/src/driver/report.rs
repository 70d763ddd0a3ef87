//! The results port: one line a result, in the grammar of `xtask`'s `lab` module.

use std::{fs::File, io::Write, os::fd::FromRawFd, path::Path, process::Command};

use anyhow::{Context, Result};
use schema::paths::{LOG, STATE};

/// The results port.
pub struct Report(File);

impl Report {
    /// Takes over file descriptor 3. Called once, at the start.
    pub fn open() -> Result<Report> {
        rustix::io::fcntl_getfd(
            // SAFETY: the descriptor is only asked about; it is not closed, and a wrong number is an error.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(3) },
        )
        .context("File descriptor 3, the results port, is not open")?;
        // SAFETY: descriptor 3 is open, was inherited, and nothing else in this process uses it.
        let port = unsafe { File::from_raw_fd(3) };
        rustix::io::fcntl_setfd(&port, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Report(port))
    }

    /// The first line: this far, nothing of Volt has run.
    pub fn up(&mut self) -> Result<()> {
        self.line("up")
    }

    /// Records a check by its outcome.
    pub fn check(&mut self, name: &str, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => self.line(&format!("ok {name}")),
            Err(why) => {
                self.line(&format!("not ok {name}: {why:#}"))?;
                explain();
                Ok(())
            }
        }
    }

    /// Records a check that was not made.
    pub fn skip(&mut self, name: &str, why: &str) -> Result<()> {
        self.line(&format!("skipped: {name}: {why}"))
    }

    /// Records a measured number.
    pub fn figure(&mut self, name: &str, value: f64) -> Result<()> {
        self.line(&format!("figure {name} {value}"))
    }

    /// Tells whoever watches.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.line(&format!("say {text}"))
    }

    /// Ends the scenario.
    pub fn end(&mut self) -> Result<()> {
        self.line("end")
    }

    fn line(&mut self, text: &str) -> Result<()> {
        let text = text.replace(['\n', '\r'], " ");
        println!("lab-driver: {text}");
        writeln!(self.0, "{text}").context("Cannot write to the results port")
    }
}

/// Puts what the services and the kernel said last into the lab's log: a program that a filter killed says nothing itself.
fn explain() {
    let services = std::fs::read_to_string(Path::new(STATE).join(LOG)).unwrap_or_default();
    let dmesg = Command::new("dmesg").output().map(|out| out.stdout).unwrap_or_default();
    for (source, text) in [(LOG, services.as_str()), ("dmesg", &String::from_utf8_lossy(&dmesg))] {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.get(lines.len().saturating_sub(12)..).unwrap_or(&[]) {
            println!("{source}: {line}");
        }
    }
}

/// Checks that build on one another: once one has failed, the rest is skipped and says why.
pub struct Steps<'a> {
    report: &'a mut Report,
    failed: Option<&'static str>,
}

impl Steps<'_> {
    /// A new row of checks.
    pub fn new(report: &mut Report) -> Steps<'_> {
        Steps { report, failed: None }
    }

    /// Makes the next check.
    pub fn step(&mut self, name: &'static str, check: impl FnOnce() -> Result<()>) -> Result<()> {
        if let Some(failed) = self.failed {
            return self.report.skip(name, &format!("\"{failed}\" failed"));
        }
        let outcome = check();
        self.failed = outcome.is_err().then_some(name);
        self.report.check(name, outcome)
    }
}
