//! What stands around each VM on a host whose kernel has everything: looked up in /proc and in the cgroups' files.

use std::{
    fs,
    ops::RangeInclusive,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use confine::Cgroup;
use schema::programs::{self, IPAMD, JANITOR, KEEPER, Starter, VMM_CORE};
use volt_tests::volt::{Volt, finish};

/// Where the lab's hosts have cgroups.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// One of somebody who comes first, and what his processes have: half a GB, few files and a private umask.
const FIRST: &str = "/sys/fs/cgroup/first";
const MODEST: &str =
    "echo $$ >/sys/fs/cgroup/first/cgroup.procs; ulimit -v 500000; ulimit -n 256; umask 077; exec \"$0\" network list";
/// What its launcher starts of a VM that has a disk and a card.
fn launched() -> impl Iterator<Item = &'static str> {
    programs::started_by(Starter::Launcher).map(|process| process.program)
}

/// The helpers that stay who started them, what each finds as its root, and whether it is alone in a pid namespace.
const HELPERS: [(&str, &[&str], bool); 2] = [
    (JANITOR.title, &["cgroups", "vms"], true),
    (KEEPER.title, &["ipamd.sock", "kernel-store.sock", "netmgr.sock", "vms"], false),
];
/// Limits of VMs that have 256 MiB, one CPU or two, a disk and a card: bytes; processes; and microseconds in each 100 000. The
/// disk's 16 MiB are memory, as all files of the lab host are, and are let be used beside the 484 MiB for the rest.
const LIMITS: [(&str, RangeInclusive<u64>); 3] =
    [("memory.max", 496 << 20..=512 << 20), ("pids.max", 16..=32), ("cpu.max", 200_000..=300_000)];
/// The namespaces that a confined process has to itself, beside those of users and processes.
const KINDS: [&str; 5] = ["mnt", "net", "ipc", "uts", "cgroup"];

/// Checks the VMs of those names, each of which has a disk and a card.
pub fn check(names: &[&str]) -> Result<()> {
    let mut users = Vec::new();
    for name in names {
        let cgroup = cgroup(name)?;
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).context("Cannot read the cgroup's processes")?;
        let (mut programs, mut user, mut namespaces) = (Vec::new(), None, Vec::new());
        for pid in members.split_whitespace() {
            let process = Path::new("/proc").join(pid);
            // A thread of KVM's own, which is accounted to the VM and executes no file.
            let Ok(exe) = fs::read_link(process.join("exe")) else { continue };
            let program = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let status =
                fs::read_to_string(process.join("status")).with_context(|| format!("{program} has no status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim).with_context(|| format!("{program} has no {name}"))
            };
            is_confined(&program, &status)?;
            let score = fs::read_to_string(process.join("oom_score_adj")).context("Cannot read an OOM score")?;
            ensure!(score.trim() == "500", "{program} of {name} has the OOM score {score:?}");
            let ids: Vec<&str> = field("Uid:")?.split_whitespace().chain(field("Gid:")?.split_whitespace()).collect();
            let id = ids.first().copied().unwrap_or_default().to_owned();
            ensure!(ids.iter().all(|other| *other == id) && id != "0", "{program} of {name} has the ids {ids:?}");
            ensure!(field("Groups:")?.is_empty(), "{program} of {name} is in the groups {}", field("Groups:")?);
            ensure!(user.replace(id.clone()).is_none_or(|before| before == id), "{name} has two users");
            ensure!(
                fs::read_dir(process.join("root"))?.next().is_none(),
                "The root of {program} of {name} is not empty"
            );
            for kind in KINDS.into_iter().chain(["user"]) {
                let (own, first) = (namespace(&process, kind)?, namespace(Path::new("/proc/self"), kind)?);
                ensure!(own != first, "{program} of {name} is in the host's {kind} namespace");
            }
            if launched().any(|name| name == program) {
                // The launcher, in the host's, has none of its own: its children have.
                ensure!(field("NSpid:")?.split_whitespace().last() == Some("1"), "{program} of {name} is not alone");
                namespaces.push(namespace(&process, "user")?);
                programs.push(program);
            }
        }
        programs.sort_unstable();
        let mut expected: Vec<_> = launched().collect();
        expected.sort_unstable();
        ensure!(programs == expected, "In the cgroup of {name} are {programs:?}");
        namespaces.sort_unstable();
        namespaces.dedup();
        ensure!(namespaces.len() == expected.len(), "Processes of {name} share a user namespace");
        for (limit, size) in LIMITS {
            let value = fs::read_to_string(cgroup.join(limit)).with_context(|| format!("Cannot read {limit}"))?;
            let number = value.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
            ensure!(number.is_some_and(|number| size.contains(&number)), "{limit} of {name} is {value:?}");
        }
        users.push(user);
    }
    let count = users.len();
    users.dedup();
    ensure!(users.len() == count, "VMs share the user {users:?}");
    let janitors = helpers()?;
    ensure!(janitors == count, "{janitors} janitors are there, and {count} VMs");
    Ok(())
}

/// Has somebody who has little be the first to need the services, and checks that they have it all the same.
pub fn services(volt: &Volt, patience: Duration) -> Result<()> {
    fs::create_dir(FIRST).context("Cannot make a cgroup")?;
    let mut first = volt.command(&[]);
    let program = first.get_program().to_owned();
    let environment: Vec<_> =
        first.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    first = Command::new("sh");
    first.arg("-c").arg(MODEST).arg(program);
    first.envs(environment.into_iter().filter_map(|(name, value)| Some((name, value?))));
    let out = finish(first, patience)?;
    ensure!(out.status.success(), "It said {:?}", String::from_utf8_lossy(&out.stderr));
    // With a process in it, it could not be removed.
    fs::remove_dir(FIRST).context("Somebody stays in the cgroup of whoever came first")?;
    let read = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()));
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let name = name.trim();
        if name != KEEPER.title && !programs::started_by(Starter::Keeper).any(|service| service.title == name) {
            continue;
        }
        let cgroup = read(process.join("cgroup"))?;
        ensure!(cgroup.trim() == format!("0::/{}/{}", Cgroup::PARENT, Cgroup::SERVICES), "{name} is in {cgroup:?}");
        let score = read(process.join("oom_score_adj"))?;
        ensure!(score.trim() == "-500", "{name} has the OOM score {score:?}");
        let limits = read(process.join("limits"))?;
        let space = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
        let space = space.and_then(|line| line.split_whitespace().next()).unwrap_or_default();
        ensure!(
            space.parse::<u64>().is_ok_and(|bytes| bytes > 512_000_000),
            "{name} may have {space:?} bytes of addresses"
        );
        found.push(name.to_owned());
    }
    found.sort_unstable();
    ensure!(found.contains(&IPAMD.title.into()) && found.contains(&KEEPER.title.into()), "There are {found:?}");
    let reserve = read(volts().join(Cgroup::SERVICES).join("memory.min"))?;
    ensure!(reserve.trim() == (64 << 20).to_string(), "Their reserve is {reserve:?}");
    Ok(())
}

/// Checks the helpers; how many VMs' there are.
fn helpers() -> Result<usize> {
    let (mut janitors, mut keepers) = (0, 0);
    for process in fs::read_dir("/proc")?.flatten().map(|entry| entry.path()) {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let Some((name, expected, alone)) = HELPERS.into_iter().find(|(known, ..)| *known == name.trim()) else {
            continue;
        };
        let status = fs::read_to_string(process.join("status"))?;
        is_confined(name, &status)?;
        for kind in KINDS.into_iter().chain(alone.then_some("pid")) {
            let (own, first) = (namespace(&process, kind)?, namespace(Path::new("/proc/self"), kind)?);
            ensure!(own != first, "{name} is in the host's {kind} namespace");
        }
        let found = fs::read_dir(process.join("root"))?.flatten();
        let mut found: Vec<_> = found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        found.retain(|name| !name.ends_with(".fds"));
        // A service that nobody has needed for half a minute is gone, with its socket.
        let mut missing =
            expected.iter().filter(|known| !known.ends_with(".sock") && !found.iter().any(|it| it == *known));
        let is_known = found.iter().all(|found| expected.contains(&found.as_str()));
        ensure!(is_known && missing.next().is_none(), "{name} finds {found:?} in its root");
        *(if alone { &mut janitors } else { &mut keepers }) += 1;
    }
    ensure!(keepers > 0, "No keeper is there");
    Ok(janitors)
}

/// Without a capability, and under filters.
fn is_confined(program: &str, status: &str) -> Result<()> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let none = !field(set).is_empty() && field(set).bytes().all(|digit| digit == b'0');
        ensure!(none, "{program} has {set} {}", field(set));
    }
    ensure!(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", "{program} is not confined");
    Ok(())
}

/// Checks that a VM whose guest has touched `used` bytes was never held up by its limits, and that processes beyond their
/// number are refused.
pub fn hold(name: &str, used: u64) -> Result<()> {
    let cgroup = cgroup(name)?;
    let number = |file: &str, key: &str| {
        let text = fs::read_to_string(cgroup.join(file)).with_context(|| format!("Cannot read {file}"))?;
        let value =
            text.lines().find_map(|line| line.strip_prefix(key)).and_then(|rest| rest.trim().parse::<u64>().ok());
        value.with_context(|| format!("{file} of {name} has no {key:?}: {text:?}"))
    };
    let charged = number("memory.current", "")?;
    ensure!(charged >= used, "{name} is charged {charged} bytes, and its guest has touched {used}");
    for (file, event) in [("memory.events", "max "), ("memory.events", "oom_kill "), ("pids.events", "max ")] {
        let count = number(file, event)?;
        ensure!(count == 0, "{file} of {name} says {event}{count}");
    }
    let out = stranger(&cgroup, "for n in $(seq 40); do sleep 2 & done; wait")?;
    ensure!(number("pids.events", "max ")? > 0, "40 processes more in the cgroup of {name} were let be: {out:?}");
    Ok(())
}

/// Takes more memory in a VM's cgroup than that may have, once its core is there.
pub fn overflow(name: &str, patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    let has_core = |cgroup: &PathBuf| {
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        members
            .lines()
            .any(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == VMM_CORE.title))
    };
    let cgroup = loop {
        match cgroup(name) {
            Ok(cgroup) if has_core(&cgroup) => break cgroup,
            _ => ensure!(Instant::now() < end, "{name} has no core after {} s", patience.as_secs()),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let out = stranger(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=600M count=1")?;
    ensure!(out.status.signal() == Some(libc::SIGKILL), "600 MB in the cgroup of {name} ended with {}", out.status);
    Ok(())
}

/// Runs a script in a VM's cgroup, and is nothing of the VM's.
fn stranger(cgroup: &Path, script: &str) -> Result<Output> {
    let script = format!("echo $$ >{}/cgroup.procs; {script}", cgroup.display());
    Command::new("sh").arg("-c").arg(script).output().context("Cannot start a shell")
}

/// Waits until no VM has a cgroup.
pub fn none_left(patience: Duration) -> Result<()> {
    let end = Instant::now() + patience;
    loop {
        let left = cgroups();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let members = |path: &PathBuf| fs::read_to_string(path.join("cgroup.threads")).unwrap_or_default();
            let names = |tid: &str| fs::read_to_string(Path::new("/proc").join(tid).join("stat")).unwrap_or_default();
            let stats: Vec<_> =
                left.iter().map(members).flat_map(|m| m.lines().map(names).collect::<Vec<_>>()).collect();
            bail!("Cgroups left behind after {} s: {left:?}, with {stats:?}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The one that holds Volt's.
fn volts() -> PathBuf {
    Path::new(HIERARCHY).join(Cgroup::PARENT)
}

/// Those of VMs.
fn cgroups() -> Vec<PathBuf> {
    let entries = fs::read_dir(volts()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.ends_with(Cgroup::SERVICES)).collect()
}

fn cgroup(name: &str) -> Result<PathBuf> {
    let of = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == name);
    cgroups().into_iter().find(of).with_context(|| format!("{name} has no cgroup in {}", volts().display()))
}

fn namespace(process: &Path, kind: &str) -> Result<PathBuf> {
    let path = process.join("ns").join(kind);
    fs::read_link(&path).with_context(|| format!("Cannot read {}", path.display()))
}
