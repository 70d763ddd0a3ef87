//! Each process can be assumed to be fully taken over, and the damage is what its section of docs/SECURITY.md says.
//!
//! Every thread of a running VM, of the helpers, of the services and of short commands is taken over in turn, and tries
//! everything that `volt_tests::escape` knows, once with every layer of confinement in force and once without seccomp. No
//! program has code for that, in no build: there is nothing that a release could hold by mistake.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use schema::programs::{self, Process};
use volt_tests::{
    escape::{
        foothold::{self, Layers, Outcome},
        record::{self, Record},
        report::{self, Finding},
    },
    namespaces,
};

/// Where `cargo xtask blast-radius` wants the results: see `volt_tests::escape::record`.
const WRITE: &str = "VOLT_WRITE_BLAST_RADIUS";

/// A thread, attempts that succeed, and why they may.
type Grant = (&'static str, &'static [&'static str], &'static str);

/// What a thread may do though no other may: its work. Everything else that succeeds with every layer in force is a hole.
const GRANTS: &[Grant] = &[
    ("vmm-core/vcpu", &["KVM_RUN"], "it runs the guest"),
    ("vmm-core/virtio", &["KVM_IRQFD", "KVM_IOEVENTFD"], "it wires queues to backends when the driver is ready"),
    ("kvm-probe/main", &["KVM_RUN", "KVM_GET_REGS", "KVM_SET_REGS"], "it runs a guest of five bytes"),
    ("vhost-net-backend/main", &["TUNSETOFFLOAD"], "the driver chooses the offloads"),
    ("netmgr/rtnl", &["TUNSETIFF", "TUNSETVNETHDRSZ"], "it makes TAPs"),
    (
        "netmgr/rtnl",
        &["SIOCGSKNS of the TAP"],
        "it asks of which namespace a socket is that it is handed, and enters none",
    ),
    (
        "macvtap-opener/main",
        &["open the first of the host's macvtaps as the opener does"],
        "it opens the devices of macvtaps, and finds no others",
    ),
    (
        "ipamd/database",
        &["make a file in a folder of its own"],
        "SQLite makes files beside its database; no other folder is in sight",
    ),
    (
        "kernel-store/disk",
        &["list a folder of its own", "make a file in a folder of its own"],
        "it keeps kernels; no other folder is in sight",
    ),
    (
        "keeper/main",
        &["remove another VM's control socket"],
        "it removes the services' sockets, in the runtime directory",
    ),
    ("janitor/main", &["remove another VM's control socket"], "it removes its VM's socket, in the folder of all"),
    (
        "launcher/main",
        &[
            "clone a process, and get hold of it",
            "execute one of its descriptors",
            "add a seccomp filter that lets all pass",
        ],
        "it starts the VM's programs, and they inherit its filter: it has to let them confine themselves",
    ),
];

/// What else succeeds where a plain user has started it all.
const PLAIN_GRANTS: &[Grant] = &[(
    "kernel-store/disk",
    &["list the kernels that are stored", "name a directory"],
    "it keeps kernels; in a user namespace, which a root of its own takes, it could not tell root from other peers",
)];

/// Nobody's on this host.
const PLAIN_USER: u32 = 0x7300_0000;

#[test]
fn a_thread_that_is_taken_over_reaches_what_is_granted_to_it_and_no_more() -> Result<()> {
    let name = "a_thread_that_is_taken_over_reaches_what_is_granted_to_it_and_no_more";
    check(name, || {
        let (findings, said) = report::attack(&programs()?, None, &[Layers::All, Layers::WithoutSeccomp])?;
        let here = Record::new(&findings);
        if let Some(path) = std::env::var_os(WRITE) {
            fs::write(&path, here.to_text()?)?;
        }
        let threads = findings.iter().map(|finding| finding.target.to_string()).collect::<BTreeSet<_>>();
        let roles =
            |process: &'static Process| process.threads.iter().map(move |thread| format!("{}/{thread}", process.name));
        let known = programs::ALL.into_iter().flat_map(roles).collect::<BTreeSet<_>>();
        ensure!(threads == known, "Taken over are {threads:?}, and the table of processes has {known:?}");
        let holes = holes(&findings, &[GRANTS]);
        ensure!(holes.is_empty(), "With every layer in force:\n{}", holes.join("\n"));
        let unused = unused_grants(&findings, GRANTS);
        ensure!(unused.is_empty(), "Granted, but nothing succeeds by it:\n{}", unused.join("\n"));
        if std::env::var_os(WRITE).is_some() {
            return Ok(());
        }
        let landlock = said.lines().find(|line| line.contains("runs without Landlock"));
        let old = executes_any_memory().then_some("any file in memory can be executed (before Linux 6.3)");
        if let Some(lacks) = landlock.or(old) {
            println!("Not compared with what is on record, which was found with every layer: {lacks}");
            return Ok(());
        }
        let known = Record::read(&fs::read_to_string(root().join("tests/blast-radius.json"))?)?;
        let (beyond, no_more) = (here.beyond(&known), here.no_more(&known));
        ensure!(beyond.is_empty(), "More than is on record:\n{}", beyond.join("\n"));
        ensure!(no_more.is_empty(), "Less than is on record: cargo xtask blast-radius\n{}", no_more.join("\n"));
        Ok(())
    })
}

#[test]
fn a_plain_user_s_thread_that_is_taken_over_reaches_as_little() -> Result<()> {
    const NAME: &str = "a_plain_user_s_thread_that_is_taken_over_reaches_as_little";
    let programs = programs()?.canonicalize()?;
    let closed = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 == 0);
    if let Some(closed) = programs.ancestors().find(closed) {
        testkit::skip!("a plain user cannot reach the programs through {}", closed.display());
        return Ok(());
    }
    check(NAME, || {
        let (findings, said) = report::attack(&programs, Some(PLAIN_USER), &[Layers::All])?;
        let lacks = ["runs without Landlock", "runs without namespaces"];
        if let Some(lacks) = said.lines().find(|line| lacks.iter().any(|lacks| line.contains(lacks))) {
            println!("Not judged, as this host lacks a layer: {lacks}");
            return Ok(());
        }
        let holes = holes(&findings, &[GRANTS, PLAIN_GRANTS]);
        ensure!(!findings.is_empty() && holes.is_empty(), "With every layer in force:\n{}", holes.join("\n"));
        let unused = unused_grants(&findings, PLAIN_GRANTS);
        ensure!(unused.is_empty(), "Granted, but nothing succeeds by it:\n{}", unused.join("\n"));
        Ok(())
    })
}

#[test]
fn a_call_that_no_thread_may_make_ends_the_process_of_each() -> Result<()> {
    check("a_call_that_no_thread_may_make_ends_the_process_of_each", || {
        let outcomes = report::kill(&programs()?)?;
        let alive: Vec<_> = outcomes.iter().filter(|(_, end)| *end != Outcome::Killed(libc::SIGSYS)).collect();
        ensure!(!outcomes.is_empty() && alive.is_empty(), "Not killed by SIGSYS: {alive:?}");
        Ok(())
    })
}

#[test]
fn docs_say_what_is_on_record() -> Result<()> {
    let known = Record::read(&fs::read_to_string(root().join("tests/blast-radius.json"))?)?;
    let page = fs::read_to_string(root().join(record::PAGE))?;
    let current = record::insert(&page, &known.to_markdown())? == page;
    ensure!(current, "{} differs: cargo xtask blast-radius", record::PAGE);
    Ok(())
}

/// Makes a check in namespaces of its own, where that can be.
fn check(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let refused = if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        Some(format!("/dev/kvm cannot be opened: {error}"))
    } else if let Err(error) = foothold::supported() {
        Some(format!("seccomp cannot be suspended, which takes root and CONFIG_CHECKPOINT_RESTORE: {error}"))
    } else {
        None
    };
    match refused {
        Some(why) if !namespaces::inside() => {
            testkit::skip!("{why}");
            Ok(())
        }
        _ => namespaces::test(name, check),
    }
}

/// What succeeds with every layer in force and is granted to nobody.
fn holes(findings: &[Finding], grants: &[&[Grant]]) -> Vec<String> {
    let is_hole = |finding: &&Finding| {
        let (role, name) = (finding.target.to_string(), finding.attempt.name);
        let mut granted = grants.iter().copied().flatten();
        let granted = granted.any(|(thread, names, _)| role == *thread && names.contains(&name));
        let of_old = role == "launcher/main" && name == "execute a file in memory" && executes_any_memory();
        finding.layers == Layers::All && finding.result.is_ok() && !granted && !of_old
    };
    findings.iter().filter(is_hole).map(describe).collect()
}

/// Whether this kernel has no memory files that cannot be executed: who may make some and execute others may execute those.
fn executes_any_memory() -> bool {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    matches!(memfd_create("", flags), Err(rustix::io::Errno::INVAL))
}

fn unused_grants(findings: &[Finding], grants: &[Grant]) -> Vec<String> {
    let succeeds = |role: &str, name: &str| {
        let of_grant = |finding: &&Finding| finding.target.to_string() == role && finding.attempt.name == name;
        findings.iter().filter(of_grant).any(|finding| finding.layers == Layers::All && finding.result.is_ok())
    };
    let grants = grants.iter().flat_map(|(role, names, _)| names.iter().map(move |name| (*role, *name)));
    grants.filter(|(role, name)| !succeeds(role, name)).map(|(role, name)| format!("{role}: {name}")).collect()
}

fn describe(finding: &Finding) -> String {
    format!("{} can: {}", finding.target, finding.attempt.name)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Tests are in `<profile>/deps`, the programs in `<profile>`.
fn programs() -> Result<PathBuf> {
    let deps = std::env::current_exe()?;
    let programs = deps.ancestors().nth(2).context("The test is not where cargo puts tests")?;
    ensure!(programs.join("volt").exists(), "There is no {}/volt: cargo build --workspace", programs.display());
    Ok(programs.to_owned())
}
