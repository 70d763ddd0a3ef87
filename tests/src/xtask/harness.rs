//! Runs a test program of the plain harness to its end, and reads what it says. With `--show-output` that holds what
//! passing tests printed, a section a test, so that `skipped: NAME: REASON` lines can be told from everything else.
//! What a program writes to standard error is shown if it fails.

use std::{
    collections::BTreeMap,
    io::Read,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::test::Tally;

/// How long one test program may take.
const DEADLINE: Duration = Duration::from_secs(600);

/// What a program that has ended said of its tests.
pub struct Ran {
    name: String,
    reader: Reader,
    /// Why it failed, if it did.
    why: Option<String>,
    output: String,
    errors: String,
}

/// Runs `program`, called `name`.
pub fn run(name: &str, program: Command) -> Result<Ran> {
    read(Reader::default(), name, program)
}

/// Runs what runs several such programs, one after the other.
pub fn run_several(name: &str, programs: Command) -> Result<Ran> {
    read(Reader { several: true, ..Reader::default() }, name, programs)
}

impl Ran {
    /// Counts its tests, and shows what it said if any failed.
    pub fn count(self, tally: &mut Tally) {
        if self.reader.finish(&self.name, self.why.as_deref(), tally) {
            // Behind the outcomes come first what passing tests printed, then the failures.
            let failures = self.output.find("\nfailures:\n").and_then(|at| self.output.get(at..));
            println!("{}\n{}", failures.unwrap_or(&self.output), self.errors);
        }
    }
}

fn read(mut reader: Reader, name: &str, mut program: Command) -> Result<Ran> {
    program.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().with_context(|| format!("Cannot run {name}"))?;
    // Whatever a test left running holds the pipes open: the program's own end counts, not theirs.
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    let output = text(&output);
    output.lines().for_each(|line| reader.line(line));
    let why = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("it ended with {status}")),
        None => Some(format!("it still ran after {} s", DEADLINE.as_secs())),
    };
    Ok(Ran { name: name.to_owned(), reader, why, output, errors: text(&errors) })
}

type Collected = std::sync::Arc<std::sync::Mutex<(Vec<u8>, bool)>>;

/// Reads a pipe in the background, up to its end.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let collected = Collected::default();
    let into = collected.clone();
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        let mut pipe = pipe;
        while let Some(Ok(count @ 1..)) = pipe.as_mut().map(|pipe| pipe.read(&mut buffer)) {
            if let (Ok(mut into), Some(bytes)) = (into.lock(), buffer.get(..count)) {
                into.0.extend_from_slice(bytes);
            }
        }
        if let Ok(mut into) = into.lock() {
            into.1 = true;
        }
    });
    collected
}

/// What was read, once the pipe has ended or nobody is likely to write to it any more.
fn text(collected: &Collected) -> String {
    for _ in 0..100 {
        if collected.lock().is_ok_and(|collected| collected.1) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    collected.lock().map(|collected| String::from_utf8_lossy(&collected.0).into_owned()).unwrap_or_default()
}

/// Takes apart what a harness that was asked to says: an outcome, and the time that the test took.
fn timed(result: &str) -> (&str, Option<Duration>) {
    let apart = result.rsplit_once(" <").and_then(|(outcome, time)| {
        let seconds = time.strip_suffix("s>")?.parse().ok()?;
        Some((outcome, Some(Duration::try_from_secs_f64(seconds).ok()?)))
    });
    apart.filter(|(outcome, _)| ["ok", "FAILED"].contains(outcome)).unwrap_or((result, None))
}

/// How one test went.
#[derive(PartialEq)]
enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// Reads one program's output. A test may run the program again, whose lines then stand among the others: the outer
/// ones come first (the count) or last (the outcomes), and tests are told apart by name.
#[derive(Default)]
struct Reader {
    /// What each of several programs expects counts, and not the first one alone.
    several: bool,
    expected: Option<usize>,
    tests: BTreeMap<String, Outcome>,
    times: Vec<(String, Duration)>,
    in_successes: bool,
    /// The test whose output is being read.
    test: String,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if line == "successes:" || line == "failures:" || line.starts_with("test result: ") {
            self.in_successes = line == "successes:";
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.test = test.to_owned();
        } else if self.in_successes {
            let Some(skipped) = line.strip_prefix("skipped: ") else { return };
            let why = skipped.split_once(": ").map_or(skipped, |(_, why)| why);
            if let Some(outcome) = self.tests.get_mut(&self.test) {
                *outcome = Outcome::Skipped(why.to_owned());
            }
        } else if let Some(count) = line.strip_prefix("running ").and_then(|rest| rest.split_once(" test")) {
            let count: Option<usize> = count.0.parse().ok();
            self.expected = match (self.expected, count) {
                (Some(before), Some(count)) if self.several => Some(before.saturating_add(count)),
                (before, count) => before.or(count),
            };
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let (result, time) = timed(result);
            let outcome = match result {
                "ok" => Outcome::Passed,
                "FAILED" => Outcome::Failed,
                other => Outcome::Skipped(other.to_owned()),
            };
            // The sections that follow leave "should panic" out of a test's name.
            let name = name.trim_end_matches(" - should panic");
            self.times.extend(time.map(|time| (name.to_owned(), time)));
            self.tests.insert(name.to_owned(), outcome);
        }
    }

    /// Counts the tests; `why` says why the program failed, if it did. Returns whether anything did.
    fn finish(self, program: &str, why: Option<&str>, tally: &mut Tally) -> bool {
        let mut failed = false;
        self.times.iter().for_each(|(name, time)| tally.took(&format!("{program}: {name}"), *time));
        let complete = self.expected == Some(self.tests.len());
        for (name, outcome) in self.tests {
            match outcome {
                Outcome::Passed => tally.pass(),
                Outcome::Skipped(why) => tally.skip(&name, &why),
                Outcome::Failed => {
                    failed = true;
                    tally.fail(&format!("{program}: {name}"), "its output is below");
                }
            }
        }
        if !complete || (why.is_some() && !failed) {
            failed = true;
            tally.fail(program, why.unwrap_or("it did not report on all of its tests"));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(output: &str, why: Option<&str>) -> (usize, usize, usize) {
        let (mut reader, mut tally) = (Reader::default(), Tally::default());
        output.lines().for_each(|line| reader.line(line));
        reader.finish("program", why, &mut tally);
        tally.counts()
    }

    const GOOD: &str = "\nrunning 3 tests\ntest a ... ok\ntest b - should panic ... ok\ntest c ... ok\n\nsuccesses:\n\n\
        ---- a stdout ----\nskipped: a: no root\nskipped: a: no KVM\n\n---- c stdout ----\nrunning 2 tests\n\n\n\
        successes:\n    a\n    b\n    c\n\ntest result: ok. 3 passed; 0 failed\n\n";

    #[test]
    fn a_test_that_says_skipped_counts_as_skipped_once_and_not_as_passed() {
        assert_eq!(count(GOOD, None), (2, 0, 1));
    }

    #[test]
    fn ignored_and_failed_tests_are_told_apart() {
        let bad = "running 3 tests\ntest a ... FAILED\ntest b ... ignored, slow\ntest c ... ok\n\nfailures:\n\n\
            ---- a stdout ----\nboom\n\nfailures:\n    a\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored\n";
        assert_eq!(count(bad, Some("it ended with 101")), (1, 1, 1));
    }

    #[test]
    fn a_test_that_runs_the_program_again_counts_once() {
        let nested = "running 2 tests\ntest a ... ok\n\nrunning 1 test\ntest b ... ok\n\n\
            test result: ok. 1 passed; 0 failed; 1 filtered out\n\ntest b ... ok\n\ntest result: ok. 2 passed\n";
        assert_eq!(count(nested, None), (2, 0, 0));
    }

    #[test]
    fn a_time_beside_an_outcome_is_the_test_s_and_nothing_else_is_one() {
        let output = "running 4 tests\ntest a ... ok <0.250s>\ntest b - should panic ... ok <61.003s>\n\
            test c ... FAILED <1.500s>\ntest d ... ignored, takes <2s>\n";
        let (mut reader, mut tally) = (Reader::default(), Tally::default());
        output.lines().for_each(|line| reader.line(line));
        reader.finish("program", Some("it ended with 101"), &mut tally);
        assert_eq!(tally.counts(), (2, 1, 1));
        assert_eq!(tally.slowest(3), [(61_003, "program: b"), (1_500, "program: c"), (250, "program: a")]);
        for result in ["ok", "ok <s>", "ok <-1s>", "ok <1e300s>", "ignored, takes <2s>"] {
            assert_eq!(timed(result), (result, None));
        }
    }

    #[test]
    fn what_each_of_several_programs_expects_counts() {
        let of = |counts: [usize; 2]| {
            let [first, second] = counts.map(|count| format!("\nrunning {count} tests\n"));
            format!("{first}test a.rs - (line 1) ... ok\n\ntest result: ok.\n{second}test b.rs - (line 1) ... ok\n")
        };
        for (counts, expected) in [([1, 1], (2, 0, 0)), ([1, 2], (2, 1, 0)), ([1, 0], (2, 1, 0))] {
            let (mut reader, mut tally) = (Reader { several: true, ..Reader::default() }, Tally::default());
            of(counts).lines().for_each(|line| reader.line(line));
            reader.finish("documentation", None, &mut tally);
            assert_eq!(tally.counts(), expected, "{counts:?}");
        }
    }

    #[test]
    fn a_program_that_dies_or_says_nothing_is_a_failure() {
        assert_eq!(count("running 2 tests\ntest a ... ok\n", Some("it ended with signal 31")), (1, 1, 0));
        assert_eq!(count("running 1 test\ntest a ... ok\n", Some("it ended with signal 31")), (1, 1, 0));
        assert_eq!(count("", None), (0, 1, 0));
        assert_eq!(count("running 0 tests\n\ntest result: ok. 0 passed\n", None), (0, 0, 0));
    }
}
