//! Every system call that a seccomp filter allows is made by a real run, and no filter is larger than it was meant to be: the
//! tests of the programs run once more under a tracer ([`volt_tests::syscalls`]).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use schema::programs::{
    ALL, BLK_BACKEND, CLIENT, IPAMD, JANITOR, KEEPER, KERNEL_STORE, KVM_PROBE, LAUNCHER, NET_BACKEND, NETMGR, OPENER,
    Process, SUPERVISOR, Starter, UNPINNER, VMM_CORE,
};
use volt_tests::{
    docs,
    syscalls::{
        name,
        trace::{self, Role, Seen},
    },
    workspace::Workspace,
};

/// What runs: test programs by package and name, and which tests of them, or what is left out as it takes long and shows
/// nothing more.
const RUNS: [(&str, &[&str]); 21] = [
    ("volt host", &VOLT),
    ("vmm-core micro_guest", &["--skip=mute_backend", "--skip=every_size"]),
    ("vmm-core about_kvm", &[]),
    ("vhost-blk-backend requests", &[]),
    ("vhost-blk-backend hostile", &[]),
    ("vhost-blk-backend start", &[]),
    ("vhost-blk-backend memory", &[]),
    ("vhost-blk-backend confinement", &[]),
    ("vhost-net-backend frames", &["--skip=costs_no_time", "--skip=no_time_is_spent"]),
    ("vhost-net-backend hostile", &[]),
    ("netmgr ports", &[]),
    ("netmgr networks", &[]),
    ("netmgr process", &[]),
    ("netmgr macvtaps", &["guest_is_a_neighbour_s_neighbour"]),
    ("netmgr veths", &["--skip=killed_at_any_moment"]),
    ("netmgr published", &["--skip=steady_client"]),
    ("ipamd service", &["--skip=thirty_seconds"]),
    ("ipamd lives", &["--skip=however_often", "--skip=full_grace_period"]),
    ("ipamd crash", &["--skip=what_was_acknowledged"]),
    ("kernel-store service", &["--skip=every_packing"]),
    ("kernel-store crash", &[]),
];
/// Guests that end in every way, that are typed to and read from, clients, helpers that are kept waiting, what dies.
const VOLT: [&str; 12] = [
    "life::guest_that_resets_boots_again",
    "life::second_signal_ends",
    "life::stopped_vm_is_listed",
    "console::input_that_ends",
    "console::reader_that_has_stopped",
    "console::terminal_passes_every_key",
    "control::control_socket_leads",
    "ends::process_of_a_vm_that_dies",
    "refusals::disk_of_another",
    "services::sockets_of_who_has_ended",
    "services::longest_list",
    "isolated::namespace_that_cannot_be_let_go",
];
/// How long one may take, beside another.
const LIMIT: Duration = Duration::from_secs(240);
/// How many run at a time, each under a tracer of its own: what is traced waits for that more than for anything else.
const SIDE_BY_SIDE: usize = 2;
/// How often it runs before what it did not do counts: some calls are made only where threads meet in a certain moment.
const TRIES: usize = 3;

/// How many system calls a thread may have at most, or all threads of a process together.
const GOALS: [(&Process, Option<&str>, usize); 14] = [
    (&VMM_CORE, Some("vcpu"), 8),
    (&VMM_CORE, Some("main"), 25),
    (&NET_BACKEND, Some("worker"), 12),
    (&BLK_BACKEND, Some("worker"), 15),
    (&IPAMD, None, 40),
    (&KERNEL_STORE, None, 35),
    (&NETMGR, None, 45),
    (&OPENER, None, 6),
    (&SUPERVISOR, Some("main"), 25),
    (&CLIENT, None, 15),
    (&JANITOR, None, 10),
    (&KEEPER, None, 12),
    (&UNPINNER, None, 4),
    (&KVM_PROBE, None, 4),
];

#[test]
fn every_system_call_that_a_filter_allows_is_made_by_a_real_run() {
    if !rustix::process::geteuid().is_root() {
        return testkit::skip!("what it runs needs root");
    }
    check().unwrap_or_else(|error| panic!("{error:#}"));
}

fn check() -> Result<()> {
    let workspace = Workspace::find()?;
    let seen = Mutex::default();
    let mut tests: BTreeMap<_, _> = workspace.tests(&["--test", "*"])?.into_iter().collect();
    for (test, leave_out) in RUNS {
        tests.get_mut(test).with_context(|| format!("There is no test program {test}"))?.args(leave_out);
    }
    let runs = RUNS.iter().filter_map(|(test, _)| Some((*test, tests.get(*test)?))).collect::<Vec<_>>();
    let failed = (1..=TRIES).fold(BTreeMap::new(), |failed, attempt| {
        let due =
            |test: &str| attempt == 1 || failed.contains_key(test) || !unused(&trace::lock(&seen), test).is_empty();
        let failed = side_by_side(&runs, &due, &seen);
        join(&mut trace::lock(&seen));
        failed
    });
    let seen = &*trace::lock(&seen);
    for (role, calls) in &seen.roles {
        println!("{role}: {} calls: {}", calls.allowed.len(), names(&calls.allowed));
    }
    let without_kvm = !Path::new("/dev/kvm").exists();
    ensure!(failed.is_empty(), "What should show the calls failed: {failed:#?}");
    ensure!(seen.refused.is_empty(), "Calls were made that end a process: {:#?}", seen.refused);
    ensure!(seen.cut.is_empty(), "Allowed, but not by the filter that it is started under: {:#?}", seen.cut);
    let threads = seen.roles.keys().map(|role| (role.process.name, role.thread.as_str())).collect::<BTreeSet<_>>();
    let known = ALL.into_iter().flat_map(|process| process.threads.iter().map(|thread| (process.name, *thread)));
    let known = known.collect::<BTreeSet<_>>();
    ensure!(threads.is_subset(&known), "Seen, but not in the table of processes: {:?}", &threads - &known);
    ensure!(without_kvm || threads == known, "In the table of processes, but never seen: {:?}", &known - &threads);
    let left = unused(seen, "");
    ensure!(left.is_empty(), "Allowed, and made by no run: {left:#?}");
    for (process, thread, most) in GOALS {
        ensure!(thread.is_none_or(|thread| process.threads.contains(&thread)), "{} has no {thread:?}", process.name);
        let roles = seen
            .roles
            .iter()
            .filter(|(role, _)| role.process == process && thread.is_none_or(|thread| role.thread == thread));
        let together: BTreeSet<u32> = roles.flat_map(|(_, calls)| calls.allowed.iter().copied()).collect();
        ensure!(
            together.len() <= most,
            "{} {thread:?} has {} calls, and {most} are the most",
            process.name,
            together.len()
        );
    }
    if without_kvm {
        println!("What docs/SECURITY.md says was not checked: without /dev/kvm vmm-core was not seen");
        return Ok(());
    }
    let (table, page) = (table(seen), std::fs::read_to_string(workspace.root.join("docs/SECURITY.md"))?);
    ensure!(page.contains(&table), "docs/SECURITY.md does not have this table:\n{table}");
    Ok(())
}

/// Runs those of them that are due when their turn comes; which of them failed, and why.
fn side_by_side<'a>(
    runs: &[(&'a str, &Command)],
    due: &(impl Fn(&str) -> bool + Sync),
    seen: &Mutex<Seen>,
) -> BTreeMap<&'a str, String> {
    let left = Mutex::new(runs.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let one_after_the_other = || {
        let due = std::iter::from_fn(next).filter(|(test, _)| due(test));
        let failed = due.filter_map(|(test, command)| Some((*test, trace::run(command, seen, LIMIT).err()?)));
        failed.map(|(test, error)| (test, format!("{error:#}"))).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let rows = [(); SIDE_BY_SIDE].map(|()| scope.spawn(one_after_the_other));
        rows.into_iter().flat_map(|row| row.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Joins what is one: lists that several roles have, with the code.
fn join(seen: &mut Seen) {
    // The control link's thread is the `device` crate's, in whichever backend.
    let of_control = |role: &Role| role.thread == "control";
    let used = used(seen, of_control);
    seen.roles.iter_mut().filter(|(role, _)| of_control(role)).for_each(|(_, calls)| calls.used.extend(&used));
    // Whatever a VM's programs do, they do under the launcher's list; that they do it shows without a launcher as well.
    let used = self::used(seen, |role| role.process.started_by == Starter::Launcher);
    if let Some(launcher) = seen.roles.get_mut(&Role { process: &LAUNCHER, thread: "main".into() }) {
        launcher.used.extend(used);
    }
}

/// What those roles have made.
fn used(seen: &Seen, of: impl Fn(&Role) -> bool) -> BTreeSet<u32> {
    seen.roles.iter().filter(|(role, _)| of(role)).flat_map(|(_, calls)| calls.used.iter().copied()).collect()
}

/// What is allowed and was not made yet, of those programs whose name `test` begins with, if it is not empty.
fn unused(seen: &Seen, test: &str) -> Vec<String> {
    let roles = seen.roles.iter().filter(|(role, _)| test.is_empty() || test.starts_with(role.process.program));
    let left = roles.map(|(role, calls)| (role, &calls.allowed - &calls.used)).filter(|(_, left)| !left.is_empty());
    left.map(|(role, left)| format!("{role}: {}", names(&left))).collect()
}

fn names(numbers: &BTreeSet<u32>) -> String {
    numbers.iter().map(|number| name(*number)).collect::<Vec<_>>().join(" ")
}

/// The table in docs/SECURITY.md.
fn table(seen: &Seen) -> String {
    docs::table(["system calls of each thread", "of all together"], |process| {
        let of_process = || seen.roles.iter().filter(|(role, _)| role.process == process);
        let threads = of_process().map(|(role, calls)| format!("{} {}", role.thread, calls.allowed.len()));
        let all: BTreeSet<u32> = of_process().flat_map(|(_, calls)| calls.allowed.iter().copied()).collect();
        [threads.collect::<Vec<_>>().join(", "), all.len().to_string()]
    })
}
