//! What whoever happens to start a VM, or a service with it, has set for itself: none of it is the services' or the VM's.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    cgroups,
    host::{Host, Running, outliving, uid},
    kernel::{POWEROFF, SPIN, print},
};

#[test]
fn a_vm_with_a_card_and_a_disk_starts_under_any_umask_with_services_that_start_under_it() {
    for umask in [0, 0o022, 0o027, 0o007, 0o077, 0o777] {
        let Some(host) = Host::new() else { return };
        let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
        // What the first run's services have made is met by others' as well.
        for services in ["started", "there", "started again"] {
            let mut command = host.full("web", &kernel);
            // SAFETY: between fork and exec it makes one system call, and allocates nothing.
            unsafe {
                command.pre_exec(move || {
                    libc::umask(umask);
                    Ok(())
                });
            }
            let ended = host.run(&mut command);
            assert!(ended.status.success() && ended.out == "Volt", "umask {umask:o}, services {services}: {ended:?}");
            if services == "there" {
                host.end(outliving(), libc::SIGKILL);
            }
        }
        host.clean();
    }
}

/// A number that no descriptor of theirs has.
const FD: i32 = 77;

fn hard(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes the limit, which outlives the call.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    limit.rlim_max
}

/// Whether this process may raise limits: has CAP_SYS_RESOURCE (24), that is.
fn may_raise() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(set.trim(), 16).unwrap() & 1 << 24 != 0
}

/// Sets what fork and exec hand on to what is nobody's default.
fn hostile(raisable: bool) -> std::io::Result<()> {
    let limit = |resource, value| {
        // What nobody here may raise again could not be reset: what a user's own limits are then for is all that is tried.
        let limit = libc::rlimit { rlim_cur: value, rlim_max: if raisable { value } else { hard(resource) } };
        // SAFETY: the kernel reads the limit, which outlives the call.
        unsafe { libc::setrlimit(resource, &raw const limit) == 0 }
    };
    // All but what the VM needs for itself.
    let limits = limit(libc::RLIMIT_AS, 2_000_000 << 10)
        && limit(libc::RLIMIT_FSIZE, 256 << 20)
        && limit(libc::RLIMIT_DATA, 1 << 30)
        && limit(libc::RLIMIT_STACK, 4 << 20)
        && limit(libc::RLIMIT_NPROC, 5_000)
        && limit(libc::RLIMIT_CPU, 5_000)
        && limit(libc::RLIMIT_RSS, 1 << 30)
        && limit(libc::RLIMIT_LOCKS, 99)
        && limit(libc::RLIMIT_SIGPENDING, 99)
        && limit(libc::RLIMIT_MSGQUEUE, 99)
        && (!raisable || limit(libc::RLIMIT_NICE, 9) && limit(libc::RLIMIT_RTPRIO, 9))
        && limit(libc::RLIMIT_RTTIME, 1 << 40);
    let write = |path: &std::ffi::CStr, text: &[u8]| {
        // SAFETY: the path and the text outlive the calls.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            fd >= 0 && libc::write(fd, text.as_ptr().cast(), text.len()) > 0
        }
    };
    let (cpu, node) = ([1_u8; 1], 1_u64);
    let group = 5_555;
    // SAFETY: all are system calls on numbers, or on what outlives them.
    let done = unsafe {
        libc::umask(0);
        limits
            && write(c"/proc/self/oom_score_adj", b"300")
            && write(c"/proc/self/coredump_filter", b"0x1")
            && libc::setgroups(1, &raw const group) == 0
            && libc::setpriority(libc::PRIO_PROCESS, 0, 10) == 0
            && libc::syscall(libc::SYS_sched_setaffinity, 0, cpu.len(), cpu.as_ptr()) >= 0
            && libc::sched_setscheduler(0, libc::SCHED_BATCH, &libc::sched_param { sched_priority: 0 }) == 0
            && libc::syscall(libc::SYS_ioprio_set, 1, 0, 2 << 13 | 7) == 0
            // Where memory has places at all.
            && (libc::syscall(libc::SYS_set_mempolicy, 2, &raw const node, 64) == 0 || !Path::new(NUMA).exists())
            && libc::signal(libc::SIGUSR1, libc::SIG_IGN) != libc::SIG_ERR
            && {
                let mut set = std::mem::zeroed::<libc::sigset_t>();
                libc::sigaddset(&raw mut set, libc::SIGUSR2);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) == 0
            }
            && libc::prctl(libc::PR_SET_TIMERSLACK, 1_000_000) == 0
            && libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
            && libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) >= 0
            && libc::dup2(2, FD) == FD
            // Last: until it executes something, it has whatever descriptors the tests have that run beside this one.
            && limit(libc::RLIMIT_NOFILE, 500)
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

const NUMA: &str = "/proc/self/numa_maps";

/// What a process has of what is handed on, by name.
fn attributes(pid: i32) -> BTreeMap<String, String> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_else(|e| format!("{name}: {e}"));
    let mut all = BTreeMap::new();
    for line in read("limits").lines().skip(1) {
        let (name, values) = line.split_at(26);
        all.insert(format!("limit {}", name.trim()), values.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    for line in read("status").lines() {
        let (name, value) = line.split_once(':').unwrap();
        if ["Umask", "Groups", "Cpus_allowed_list", "SigIgn", "SigBlk", "THP_enabled"].contains(&name) {
            all.insert(name.into(), value.trim().into());
        }
    }
    let stat = read("stat");
    let field = |n: usize| stat.rsplit_once(')').unwrap().1.split_whitespace().nth(n - 3).unwrap().to_owned();
    all.insert("nice".into(), field(19));
    all.insert("policy".into(), field(41));
    all.insert("leads its session".into(), (field(6) == pid.to_string()).to_string());
    for name in ["oom_score_adj", "cgroup", "personality", "timerslack_ns", "coredump_filter", "environ", "loginuid"] {
        all.insert(name.into(), read(name));
    }
    if Path::new(NUMA).exists() {
        let map = read("numa_maps");
        all.insert("memory policy".into(), map.split_whitespace().nth(1).unwrap_or_default().into());
    }
    all.insert("directory".into(), format!("{:?}", fs::read_link(process.join("cwd")).unwrap()));
    all.insert("descriptor".into(), process.join(format!("fd/{FD}")).symlink_metadata().is_ok().to_string());
    // SAFETY: takes numbers.
    let priority = unsafe { libc::syscall(libc::SYS_ioprio_get, 1, pid) };
    all.insert("I/O priority".into(), priority.to_string());
    all
}

/// A cgroup of the test's in every hierarchy.
fn own_cgroups() -> Vec<PathBuf> {
    let tops = ["cgroup", "cgroup2"].into_iter().flat_map(cgroups::hierarchies);
    tops.map(|(top, _)| {
        let own = cgroups::own(&top, "inherited");
        for set in ["cpuset.cpus", "cpuset.mems"].map(|name| (top.join(name), own.join(name))) {
            // Version 1 lets nobody in before it has these.
            if top.ends_with("cpuset") {
                fs::write(set.1, fs::read(set.0).unwrap()).unwrap();
            }
        }
        own
    })
    .collect()
}

/// What the services, their keeper and a VM's janitor have where a VM is started by `command`.
fn attributes_of_outliving(host: &Host, command: &mut Command) -> Vec<(&'static str, BTreeMap<String, String>)> {
    let vm = Running::start(command);
    vm.says("up");
    let janitor = host.processes("volt").into_iter().find(|pid| uid(Path::new(&format!("/proc/{pid}"))) == 0);
    let mut found = vec![("janitor", attributes(janitor.unwrap()))];
    // A fork has what its parent was executed with in its memory, and reads none of it.
    found[0].1.remove("environ");
    found.extend(outliving().map(|name| (name, attributes(host.processes(name)[0]))));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
    found
}

#[test]
fn services_keeper_and_janitor_have_nothing_of_whoever_started_them() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    let ordinary = attributes_of_outliving(&host, &mut host.full("web", &kernel));
    drop(host);

    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    let (entered, raisable) = (own_cgroups(), may_raise());
    let procs: Vec<_> = entered
        .iter()
        .map(|own| std::ffi::CString::new(own.join("cgroup.procs").into_os_string().into_encoded_bytes()).unwrap())
        .collect();
    let as_hostile = |command: &mut Command| {
        let procs = procs.clone();
        let enter = move || {
            for path in &procs {
                // SAFETY: the path and the text outlive the calls.
                unsafe {
                    let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    if fd < 0 || libc::write(fd, c"0".as_ptr().cast(), 1) != 1 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
            }
            hostile(raisable)
        };
        command.env("VOLT_HOSTILE", "1").current_dir(host.path("."));
        // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(enter) };
    };
    let mut sleeper = Command::new("sleep");
    as_hostile(sleeper.arg("600"));
    let mut sleeper = sleeper.spawn().unwrap();
    let given = attributes(sleeper.id().cast_signed());
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();

    let mut command = host.full("web", &kernel);
    as_hostile(&mut command);
    let found = attributes_of_outliving(&host, &mut command);
    for ((name, ordinary), (_, found)) in ordinary.iter().zip(&found) {
        assert_eq!(ordinary, found, "{name}");
    }
    let (_, keeper) = &ordinary[1];
    // What the programs set to nothing themselves, or this test does not; who logged in is set by those who log in.
    let same = ["limit Max core file size", "limit Max locked memory", "loginuid"];
    let raised = ["limit Max nice priority", "limit Max realtime priority"];
    let tried = |what: &str| !same.contains(&what) && (raisable || !raised.contains(&what));
    for (what, ordinary) in keeper.iter().filter(|(what, _)| tried(what)) {
        assert_ne!(ordinary, &given[what], "{what} was not set to anything else");
    }
    // Its cgroups can go while the services are there.
    entered.iter().for_each(|own| cgroups::remove(own));
    assert_eq!(host.processes("ipamd").len(), 1);
}
