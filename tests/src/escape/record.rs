//! What is on record of the suite's results: the file `tests/blast-radius.json`, and the README's table, which is made
//! from it. `cargo xtask blast-radius` writes both anew.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    attempts::{self, Attempt, Class},
    foothold::{Held, Layers},
    report::Finding,
};

/// The results, apart from what differs from run to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How many different things were tried, and by how many threads.
    attempts: usize,
    threads: usize,
    /// What succeeded with every layer in force: the attempt, and the roles of threads, as `program/thread`.
    reached: BTreeMap<String, String>,
    /// What succeeded without seccomp beside that: the attempt, and the programs.
    without_seccomp: BTreeMap<String, String>,
    /// How the attempts of a program's threads ended.
    ends: BTreeMap<String, Ends>,
}

/// How many attempts ended in which way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ends {
    reached: usize,
    killed: usize,
    refused: usize,
    /// Refused by other layers where seccomp rested.
    refused_without_seccomp: usize,
    reached_without_seccomp: usize,
}

/// Programs in the order of the table, and what each may reach by design that no attempt counts.
const PROGRAMS: [(&str, &str); 9] = [
    ("vmm-core", "its guest's memory and console"),
    ("vhost-net-backend", "its guest's memory, the frames of its TAP"),
    ("vhost-blk-backend", "its guest's memory, the content of its disk"),
    ("launcher", "its VM's programs, which it starts"),
    ("supervisor", "its VM's disks, TAPs, console, leases and ports"),
    ("janitor", "the VMs' control sockets, to remove them"),
    ("netmgr", "the host's interfaces, addresses and routes"),
    ("ipamd", "its database, hence every address"),
    ("kernel-store", "its directory, hence every kernel"),
];
const KEEPER: (&str, &str) = ("keeper", "the services' sockets, to remove them");

fn programs() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROGRAMS.into_iter().chain([KEEPER])
}

impl Record {
    /// What a run found.
    pub fn new(findings: &[Finding]) -> Record {
        let mut record = Record { attempts: attempts::all().count(), ..Record::default() };
        let mut threads: Vec<_> = findings.iter().map(|finding| (finding.target.pid, finding.target.tid)).collect();
        threads.sort_unstable();
        threads.dedup();
        record.threads = threads.len();
        for finding in findings {
            let (program, role) = (&finding.target.program, finding.target.to_string());
            let ends = record.ends.entry(program.clone()).or_default();
            let count = match (&finding.result, finding.layers) {
                (Ok(_), Layers::All) => &mut ends.reached,
                (Ok(_), Layers::WithoutSeccomp) => &mut ends.reached_without_seccomp,
                (Err(Held::Absent | Held::Broken(_)), _) => continue,
                (Err(_), Layers::WithoutSeccomp) => &mut ends.refused_without_seccomp,
                (Err(Held::Killed(_)), Layers::All) => &mut ends.killed,
                (Err(Held::Refused(_)), Layers::All) => &mut ends.refused,
            };
            *count += 1;
            let (map, who) = match finding.layers {
                Layers::All => (&mut record.reached, &role),
                Layers::WithoutSeccomp => (&mut record.without_seccomp, program),
            };
            if finding.result.is_ok() {
                let whose = map.entry(finding.attempt.name.to_owned()).or_default();
                if !whose.split(' ').any(|known| known == who) {
                    let _ = write!(whose, "{}{who}", if whose.is_empty() { "" } else { " " });
                }
            }
        }
        record
    }

    /// The record as a file has it.
    pub fn read(text: &str) -> Result<Record> {
        serde_json::from_str(text).context("The record of the blast radius cannot be read")
    }

    /// As a file.
    pub fn to_text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// What succeeded here that is not on `record`, a line each.
    pub fn beyond(&self, record: &Record) -> Vec<String> {
        let mut lines = Vec::new();
        for (ours, known, how) in [
            (&self.reached, &record.reached, "with every layer in force"),
            (&self.without_seccomp, &record.without_seccomp, "without seccomp"),
        ] {
            for (attempt, whose) in ours {
                let known = known.get(attempt).map(String::as_str).unwrap_or_default();
                let new = whose.split(' ').filter(|who| !known.split(' ').any(|known| known == *who));
                lines.extend(new.map(|who| format!("{who} can, {how}: {attempt}")));
            }
        }
        lines
    }

    /// What is on record, with every layer in force, but did not succeed on this run.
    pub fn no_more(&self, record: &Record) -> Vec<String> {
        let turned = |of: &Record| Record { reached: of.reached.clone(), ..Record::default() };
        turned(record).beyond(self)
    }

    /// The table.
    pub fn table(&self) -> String {
        let everybody: Vec<&str> = programs().map(|(program, _)| program).collect();
        let all = |attempt: &Attempt| {
            let whose = self.without_seccomp.get(attempt.name).map(String::as_str).unwrap_or_default();
            everybody.iter().all(|program| whose.split(' ').any(|who| who == *program))
        };
        let mut text = String::from(
            "| taken over | can by design | attempts that succeed beside that | held by seccomp + other layers | \
             by these alone | and would then succeed as well |\n|---|---|---|---|---|---|\n",
        );
        for (program, design) in programs() {
            let Some(ends) = self.ends.get(program) else { continue };
            let reached = self.cell(&self.reached, |_, who| {
                let (holder, thread) = who.split_once('/')?;
                (holder == program).then(|| format!(" ({thread})"))
            });
            let rest = self.cell(&self.without_seccomp, |attempt, who| {
                let granted = self.reached.get(attempt.name).map(String::as_str).unwrap_or_default();
                let granted = granted.split(' ').any(|who| who.split('/').next() == Some(program));
                (who == program && !all(attempt) && !granted).then(String::new)
            });
            let _ = writeln!(
                text,
                "| `{program}` | {design} | {reached} | {} + {} of {} | {} | {rest} |",
                ends.killed,
                ends.refused,
                ends.reached + ends.killed + ends.refused,
                ends.refused_without_seccomp,
            );
        }
        let common: Vec<&str> = attempts::all().filter(|attempt| all(attempt)).map(|attempt| attempt.name).collect();
        let _ = write!(
            text,
            "\n{} attempts from each of {} threads. Without seccomp, what every one of them could do to itself or to \
             its own namespaces: {}.\n",
            self.attempts,
            self.threads,
            common.join(", ")
        );
        text
    }

    /// Attempts by class, each with what `mark` makes of those that it says something of.
    fn cell(&self, map: &BTreeMap<String, String>, mark: impl Fn(&Attempt, &str) -> Option<String>) -> String {
        let of_class = |class: Class| {
            let found: Vec<String> = attempts::all()
                .filter(|attempt| attempt.class == class)
                .filter_map(|attempt| {
                    let marks: Vec<String> =
                        map.get(attempt.name)?.split(' ').filter_map(|who| mark(attempt, who)).collect();
                    (!marks.is_empty()).then(|| format!("{}{}", attempt.name, marks.join("")))
                })
                .collect();
            (!found.is_empty()).then(|| format!("*{class}:* {}", found.join(", ")))
        };
        let cells: Vec<String> = Class::ALL.into_iter().filter_map(of_class).collect();
        if cells.is_empty() { "nothing".into() } else { cells.join("; ") }
    }
}

/// The README with the table in the place that is marked for it.
pub fn insert(readme: &str, table: &str) -> Result<String> {
    const BEGIN: &str = "<!-- blast radius: made by `cargo xtask blast-radius` -->\n";
    const END: &str = "<!-- end of blast radius -->\n";
    let (before, rest) = readme.split_once(BEGIN).context("The README has no place for the table")?;
    let (_, after) = rest.split_once(END).context("The README's table has no end")?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}
