//! What is on record of the suite's results: the file `tests/blast-radius.json`, and a part of docs/SECURITY.md, which
//! is made from it. `cargo xtask blast-radius` writes both anew.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result};
use schema::programs::{self, Process};
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

/// The page that shows it, below the workspace's folder.
pub const PAGE: &str = "docs/SECURITY.md";

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

/// What is told in one word where it succeeds as a whole.
const GROUPS: [(&str, &[&str]); 14] = [
    (
        "look at names, sizes and modes",
        &[
            "stat a file",
            "ask by access whether a file is there",
            "ask by faccessat2 whether a file is there",
            "read a symbolic link",
            "change its directory",
            "watch a directory",
            "make a file handle",
            "look out of a folder that it has",
        ],
    ),
    (
        "change modes, owners and times of files of its user's",
        &["change a file's mode", "change a file's owner", "change a file's time"],
    ),
    (
        "connect to Volt's sockets",
        &[
            "connect to netmgr",
            "connect to ipamd",
            "connect to kernel-store",
            "connect to the neighbour's control socket",
        ],
    ),
    (
        "make netlink sockets",
        &["make a generic netlink socket", "make a netfilter netlink socket", "make an audit netlink socket"],
    ),
    ("use vsock", &["connect by vsock", "listen on vsock"]),
    ("name other processes by pidfd", &["get hold of a sibling by pidfd", "get hold of the neighbour by pidfd"]),
    ("make shared memory and message queues", &["make shared memory", "make a message queue"]),
    (
        "control a sibling",
        &[
            "signal a sibling",
            "take a descriptor of a sibling's",
            "trace a sibling",
            "read a sibling's memory",
            "write a sibling's memory",
        ],
    ),
    (
        "start processes",
        &[
            "fork",
            "vfork",
            "clone a process",
            "clone a process, and get hold of it",
            "clone a thread",
            "clone by clone3",
        ],
    ),
    (
        "make memory executable",
        &[
            "map memory that is writable and executable",
            "make memory executable",
            "make its stack executable",
            "make memory executable by pkey_mprotect",
            "map a file in memory executable",
            "make its text writable",
            "map shared memory executable",
            "make readable memory executable by its personality",
        ],
    ),
    (
        "every other request to the VM and its vCPUs",
        &[
            "KVM_CREATE_VCPU",
            "KVM_SET_USER_MEMORY_REGION",
            "KVM_GET_DIRTY_LOG",
            "KVM_CREATE_IRQCHIP",
            "KVM_SET_IRQCHIP",
            "KVM_CREATE_DEVICE",
            "KVM_ENABLE_CAP",
            "KVM_SET_GSI_ROUTING",
            "KVM_SET_SREGS",
            "KVM_SET_REGS",
            "KVM_GET_REGS",
            "KVM_SET_MSRS",
            "KVM_SET_CPUID2",
        ],
    ),
    (
        "change the TAP's owner, persistence, queues, filters and address",
        &[
            "TUNSETOWNER",
            "TUNSETGROUP",
            "TUNSETPERSIST",
            "TUNSETQUEUE",
            "TUNSETLINK",
            "TUNSETDEBUG",
            "TUNSETTXFILTER",
            "TUNATTACHFILTER",
            "TUNSETSTEERINGEBPF",
            "TUNSETSNDBUF",
            "SIOCSIFHWADDR of the TAP",
        ],
    ),
    ("make user namespaces", &["make a user namespace", "clone into a user namespace"]),
    ("become root", &["become root", "become root by setresuid"]),
];

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

    /// The record for people: a section for each program.
    pub fn to_markdown(&self) -> String {
        let all = |attempt: &Attempt| {
            let whose = words(&self.without_seccomp, attempt.name);
            programs::ALL.into_iter().all(|process| whose.contains(&process.name))
        };
        let mut text = String::new();
        for Process { name: program, loss: has, .. } in programs::ALL {
            let program = *program;
            let Some(ends) = self.ends.get(program) else { continue };
            let reached = by_class(|attempt| {
                let mut threads = words(&self.reached, attempt.name);
                threads.retain(|role| role.split('/').next() == Some(program));
                threads.iter_mut().for_each(|role| *role = role.split('/').next_back().unwrap_or_default());
                (!threads.is_empty()).then(|| threads.join(", "))
            });
            let rest = by_class(|attempt| {
                let granted = words(&self.reached, attempt.name);
                let granted = granted.iter().any(|role| role.split('/').next() == Some(program));
                let succeeds = words(&self.without_seccomp, attempt.name).contains(&program);
                (succeeds && !granted && !all(attempt)).then(String::new)
            });
            let of = ends.reached + ends.killed + ends.refused;
            let _ = write!(
                text,
                "\n### `{program}`\n\nIt has anyway: {has}.\n\nIt reaches beside that{}\n\
                 Of {of} attempts, seccomp ends {} and other layers refuse {}. Without seccomp, other layers refuse {}{}",
                list(reached, ": nothing.\n"),
                ends.killed,
                ends.refused,
                ends.refused_without_seccomp,
                list(rest, ".\n").replacen(':', ", but not:", 1),
            );
        }
        let _ = write!(
            text,
            "\n### All of them\n\n{} attempts from each of {} threads; those that need a descriptor which the process does \
             not\nhave are not counted. Without seccomp, every one of these programs could also, to itself and in its own\n\
             namespaces (no namespace holds vsock){}",
            self.attempts,
            self.threads,
            list(by_class(|attempt| all(attempt).then(String::new)), ": nothing.\n"),
        );
        text
    }
}

/// Who is on record for an attempt.
fn words<'a>(map: &'a BTreeMap<String, String>, attempt: &str) -> Vec<&'a str> {
    map.get(attempt).map(|whose| whose.split(' ').collect()).unwrap_or_default()
}

/// Attempts, a line a class, each with the threads that `mark` gives for it. Those of a group that have the same threads
/// go by the group's name.
fn by_class(mark: impl Fn(&Attempt) -> Option<String>) -> Vec<String> {
    let of_class = |class: Class| {
        let mut marked: Vec<(&str, String)> = attempts::all()
            .filter(|attempt| attempt.class == class)
            .filter_map(|attempt| Some((attempt.name, mark(attempt)?)))
            .collect();
        for (name, members) in GROUPS {
            let first = marked.iter().position(|(attempt, _)| members.contains(attempt));
            let Some((at, threads)) = first.and_then(|at| Some((at, marked.get(at)?.1.clone()))) else { continue };
            let is_member = |(attempt, of): &(&str, String)| members.contains(attempt) && *of == threads;
            if marked.iter().filter(|each| is_member(each)).count() == members.len() {
                marked.retain(|each| !is_member(each));
                marked.insert(at, (name, threads));
            }
        }
        let found: Vec<String> = marked
            .into_iter()
            .map(|(name, threads)| if threads.is_empty() { name.to_owned() } else { format!("{name} ({threads})") })
            .collect();
        (!found.is_empty()).then(|| format!("*{class}:* {}", found.join(", ")))
    };
    Class::ALL.into_iter().filter_map(of_class).collect()
}

/// Behind a phrase: a colon and those lines, or what is said where there are none.
fn list(lines: Vec<String>, none: &str) -> String {
    if lines.is_empty() {
        return none.into();
    }
    lines.iter().fold(String::from(":\n\n"), |text, line| text + "* " + &wrapped(line) + "\n")
}

/// An entry of a list, in lines as long as the page's.
fn wrapped(entry: &str) -> String {
    const WIDTH: usize = 118;
    let (mut text, mut column) = (String::new(), 0);
    for word in entry.split(' ') {
        if column > 0 && column + 1 + word.len() > WIDTH {
            text.push_str("\n  ");
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += word.len();
    }
    text
}

/// The page with the record in the place that is marked for it.
pub fn insert(page: &str, record: &str) -> Result<String> {
    const BEGIN: &str = "<!-- blast radius: made by `cargo xtask blast-radius` -->\n";
    const END: &str = "<!-- end of blast radius -->\n";
    let (before, rest) = page.split_once(BEGIN).context("The page has no place for the record")?;
    let (_, after) = rest.split_once(END).context("The record's place has no end")?;
    Ok(format!("{before}{BEGIN}{record}\n{END}{after}"))
}
