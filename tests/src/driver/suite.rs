//! Test programs of the plain harness, on a lab host's kernel: each test in a process of its own, one after the other.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use volt_tests::volt;

use crate::report::Report;

/// How long one test may take, on a machine that is emulated.
const DEADLINE: Duration = Duration::from_secs(300);
/// The program that the tests run, and where they look for it.
const PROGRAM: &str = "/programs/0";
const PLACE: &str = "/programs/0.path";
/// The distribution's tools go before busybox's, which know less.
const PATH: &str = "/usr/sbin:/usr/bin:/bin";
/// Of a crate's own tests, those that look at what the kernel makes of rules; all of others.
const CHOSEN: [(&str, &str); 1] = [("units", "nft::tests::")];
/// Of what a failed test has printed, so much is told.
const TOLD: usize = 1500;

/// Runs all tests of all programs in `dir`, which find `given` in their environment.
pub fn run(dir: &Path, given: &[(&str, &str)], report: &mut Report) -> Result<()> {
    let command = |program: &Path, arguments: &[&str]| command(program, arguments, given);
    let place = PathBuf::from(OsString::from_vec(fs::read(PLACE)?));
    fs::create_dir_all(place.parent().context("A program has a folder")?)?;
    symlink(PROGRAM, place)?;
    let mut programs = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    programs.sort();
    for program in programs {
        let suite = program.file_name().context("A program has a name")?.to_string_lossy().into_owned();
        let listed = volt::finish(command(&program, &["--list", "--format=terse"]), DEADLINE)?;
        ensure!(listed.status.success(), "{suite} does not list its tests");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(test) = line.strip_suffix(": test") else { continue };
            if CHOSEN.iter().any(|(of, begin)| *of == suite && !test.starts_with(begin)) {
                continue;
            }
            let name = format!("{suite}: {test}");
            match run_one(command(&program, &["--exact", test, "--show-output"])) {
                Ok(None) => report.check(&name, Ok(()))?,
                Ok(Some(why)) => report.skip(&name, &why)?,
                Err(why) => report.check(&name, Err(why))?,
            }
        }
    }
    Ok(())
}

/// Runs one test; why it was skipped, if it was.
fn run_one(test: Command) -> Result<Option<String>> {
    let out = volt::finish(test, DEADLINE)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let end = text.len().saturating_sub(TOLD);
        let end = (end..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        bail!("{}", text.get(end..).unwrap_or_default());
    }
    ensure!(text.contains("test result: ok. 1 passed"), "It was not run: {text}");
    let skipped = text.lines().find_map(|line| line.strip_prefix("skipped: "));
    Ok(skipped.map(|why| why.split_once(": ").map_or(why, |(_, why)| why).to_owned()))
}

fn command(program: &Path, arguments: &[&str], given: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).envs(given.iter().copied()).env("PATH", PATH).stdin(Stdio::null());
    command
}
