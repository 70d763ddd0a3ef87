//! `cargo xtask soak fuzz`: the fuzz targets (`fuzz/`), guided by what they cover, for as long as is asked. Ordinary tests replay what
//! was found worth keeping; this looks for more. Finds are kept below `target/fuzz`.

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use comfy_table::Table;

use crate::{
    debian,
    workspace::{Artifact, Workspace},
};

/// What has the coverage that libFuzzer goes by.
const TOOLCHAIN: &str = "nightly";
/// How long a target runs where nothing else is said, in seconds.
const SECONDS: u64 = 600;
/// How many run at a time.
const AT_A_TIME: usize = 2;
/// How long one input may take, in seconds, and what it may cost, in MiB: several times what the largest may.
const LIMITS: [&str; 3] = ["-timeout=20", "-rss_limit_mb=3072", "-max_len=4096"];

/// In place of `.cargo/config.toml`'s: a program of libFuzzer's is not static, and the rest is its coverage.
const FLAGS: [&str; 9] = [
    "--cfg",
    "fuzzing",
    "--cfg",
    "getrandom_backend=\"linux_getrandom\"",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
const SANITIZER: &str = "-Zsanitizer=address";

/// What came of one target.
struct Outcome {
    target: String,
    executions: String,
    a_second: String,
    coverage: String,
    inputs: String,
    finds: Vec<PathBuf>,
    /// Other than for a find.
    failed: Option<String>,
}

/// Runs the targets that are named behind a number of seconds, or all of them.
pub fn run(workspace: &Workspace, words: &[&str]) -> Result<ExitCode> {
    let (seconds, named) = match words.split_first() {
        Some((first, rest)) if first.starts_with(|c: char| c.is_ascii_digit()) => {
            (first.parse().with_context(|| format!("{first:?} is no number of seconds"))?, rest)
        }
        _ => (SECONDS, words),
    };
    let program = build(workspace)?;
    let listed = Command::new(&program).output().context("Cannot ask for the fuzz targets")?;
    let all: Vec<String> = String::from_utf8_lossy(&listed.stdout).lines().map(str::to_owned).collect();
    if let Some(unknown) = named.iter().find(|name| !all.iter().any(|target| target == *name)) {
        bail!("There is no fuzz target {unknown:?}; there are {}", all.join(", "));
    }
    let wanted: VecDeque<&String> =
        all.iter().filter(|target| named.is_empty() || named.contains(&target.as_str())).collect();
    let (waiting, outcomes) = (Mutex::new(wanted), Mutex::new(Vec::new()));
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.pop_front());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(target) = next() {
                    debian::say(&format!("fuzzing {target} for {seconds} s"));
                    let outcome = fuzz(workspace, &program, target, seconds).unwrap_or_else(|error| Outcome {
                        failed: Some(format!("{error:#}")),
                        ..Outcome::of(target, "", Vec::new())
                    });
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push(outcome);
                    }
                }
            });
        }
    });
    Ok(report(outcomes.into_inner().unwrap_or_default()))
}

/// A command of the nightly toolchain's.
fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", TOOLCHAIN, program]);
    command
}

/// Builds the program; where it is.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    // libFuzzer itself is C++.
    debian::install(&["g++"])?;
    let libraries = debian::output(nightly("rustc").args(["--print", "target-libdir"])).with_context(|| {
        format!(
            "Fuzzing goes by coverage, which takes the {TOOLCHAIN} toolchain (rustup toolchain install {TOOLCHAIN}); \
             without it cargo xtask test still replays the inputs that were kept"
        )
    })?;
    let mut flags = FLAGS.to_vec();
    let has = |name: &str| fs::read_dir(libraries.trim()).is_ok_and(|mut files| files.any(|f| is_named(f, name)));
    if has("rt.asan.a") {
        flags.push(SANITIZER);
    } else {
        debian::say("without the address sanitizer, which this toolchain does not have");
    }
    let mut command = nightly("cargo");
    command.args(["build", "--package=fuzz", "--profile=fuzzing", "--message-format=json-render-diagnostics"]);
    // Flags with spaces or quotes in them need this form.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")).env_remove("RUSTFLAGS");
    let out = command.current_dir(&workspace.root).stderr(Stdio::inherit()).output().context("Cannot run rustup")?;
    ensure!(out.status.success(), "The fuzz targets do not build; the messages are above");
    let text = String::from_utf8_lossy(&out.stdout);
    let built = text.lines().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    built.filter_map(|artifact| artifact.executable).next_back().context("Cargo built no program")
}

fn is_named(file: std::io::Result<fs::DirEntry>, end: &str) -> bool {
    file.is_ok_and(|file| file.file_name().to_string_lossy().ends_with(end))
}

/// Runs one target.
fn fuzz(workspace: &Workspace, program: &Path, target: &str, seconds: u64) -> Result<Outcome> {
    let folder = workspace.target.join("fuzz").join(target);
    let (inputs, finds) = (folder.join("inputs"), folder.join("finds"));
    fs::create_dir_all(&inputs)?;
    fs::create_dir_all(&finds)?;
    let before = files(&finds)?;
    let said = folder.join("said");
    let log = File::create(&said)?;
    let status = Command::new(program)
        // What is new is written into the first.
        .args([&inputs, &workspace.root.join("fuzz/corpus").join(target)])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", finds.display()))
        .args(["-print_final_stats=1"])
        .args(LIMITS)
        .env("VOLT_FUZZ_TARGET", target)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("Cannot run {}", program.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
    let mut new = files(&finds)?;
    new.retain(|find| !before.contains(find));
    let mut outcome = Outcome::of(target, &text, new);
    if !status.success() && outcome.finds.is_empty() {
        outcome.failed = Some(format!("it ended with {status}; see {}", said.display()));
    }
    Ok(outcome)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|file| Ok(file?.path())).collect()
}

impl Outcome {
    /// Reads what libFuzzer said: statistics at the end, and a line of figures whenever something was new.
    fn of(target: &str, said: &str, finds: Vec<PathBuf>) -> Outcome {
        let statistic = |name: &str| {
            let line = said.lines().rev().find_map(|line| line.strip_prefix(name));
            line.map_or("", |value| value.trim_start_matches(':').trim()).to_owned()
        };
        let figures = said.lines().rev().find(|line| line.starts_with('#') && line.contains(" cov: "));
        let figure = |name: &str| {
            let mut words = figures.unwrap_or_default().split_whitespace();
            words.find(|word| *word == name);
            words.next().unwrap_or_default().to_owned()
        };
        Outcome {
            target: target.to_owned(),
            executions: statistic("stat::number_of_executed_units"),
            a_second: statistic("stat::average_exec_per_sec"),
            coverage: figure("cov:"),
            inputs: figure("corp:"),
            finds,
            failed: None,
        }
    }
}

/// Prints what came of it; a failure if anything was found.
fn report(mut outcomes: Vec<Outcome>) -> ExitCode {
    outcomes.sort_by(|a, b| a.target.cmp(&b.target));
    let mut table = Table::new();
    table.set_header(["target", "executions", "a second", "edges covered", "inputs", "finds"]);
    for outcome in &outcomes {
        let Outcome { target, executions, a_second, coverage, inputs, finds, .. } = outcome;
        table.add_row([target, executions, a_second, coverage, inputs, &finds.len().to_string()]);
    }
    println!("{table}");
    let mut good = true;
    for outcome in &outcomes {
        for find in &outcome.finds {
            good = false;
            println!("found: {}", find.display());
        }
        if let Some(why) = &outcome.failed {
            good = false;
            println!("failed: {}: {why}", outcome.target);
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn figures_are_those_that_libfuzzer_said_last() {
        let said = "INFO: seed corpus: files: 3\n#4\tINITED cov: 10 ft: 11 corp: 2/9b exec/s: 0 rss: 30Mb\n\
                    #700\tNEW    cov: 131 ft: 200 corp: 17/1Kb lim: 4 exec/s: 350 rss: 31Mb L: 3/4 MS: 1 ChangeBit-\n\
                    Done 900 runs in 3 second(s)\nstat::number_of_executed_units: 900\nstat::average_exec_per_sec:     300\n";
        let outcome = Outcome::of("ring", said, Vec::new());
        let Outcome { executions, a_second, coverage, inputs, .. } = &outcome;
        assert_eq!([executions, a_second, coverage, inputs], ["900", "300", "131", "17/1Kb"]);
        assert_eq!(Outcome::of("ring", "", Vec::new()).executions, "");
    }
}
