//! Processes of a VM that stand still, by SIGSTOP or in a frozen cgroup: the VM is stopped all the same, without them.

use std::{fs, path::Path, time::Duration};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{
    cgroups,
    host::{Host, Running, kill, of_vm},
    kernel::{SPIN, print},
};

/// Stops the VM as people do. It has to be answered, and nothing may be left.
fn stop(host: &Host, vm: Running) {
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
    // Its address is given back, once nobody has it any more.
    host.held(0);
}

#[test]
fn vm_with_a_stopped_process_ends_when_it_is_stopped() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    for program in ["launcher"].into_iter().chain(of_vm()) {
        println!("{program}");
        let vm = Running::start(&mut host.full("web", &kernel));
        vm.says("up");
        kill(if program == "launcher" { host.launcher() } else { host.processes(program)[0] }, libc::SIGSTOP);
        stop(&host, vm);
    }
    // All of them.
    let vm = Running::start(&mut host.full("web", &kernel));
    vm.says("up");
    let all = of_vm().map(|program| host.processes(program)[0]);
    all.chain([host.launcher()]).for_each(|pid| kill(pid, libc::SIGSTOP));
    stop(&host, vm);
}

#[test]
fn process_that_dies_beside_a_stopped_launcher_is_named() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    for program in ["vmm-core", "vhost-blk-backend"] {
        let vm = Running::start(&mut host.full("web", &kernel));
        vm.says("up");
        kill(host.launcher(), libc::SIGSTOP);
        kill(host.processes(program)[0], libc::SIGKILL);
        vm.end().refused(&["run the VM web", program, "the launcher does not say how"]);
        host.clean();
    }
}

/// The children of a process that have begun.
fn children(parent: i32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn launcher_that_is_stopped_at_any_moment_of_a_start_does_not_keep_the_vm_from_being_stopped() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[SPIN]);
    // Services that are there do not come into what is looked for.
    host.run(&mut host.volt(&["network", "list"])).ok();
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    let keepers = host.processes("volt keep");
    for moment in 0..30u64 {
        let mut vm = Running::start(&mut host.full("web", &kernel));
        std::thread::sleep(Duration::from_millis(moment * 4));
        let below: Vec<_> = children(vm.pid()).into_iter().filter(|pid| !keepers.contains(pid)).collect();
        below.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
        // Two of them: the guest is not waited for.
        for _ in 0..2 {
            vm.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(50));
        }
        vm.exits();
        // One that had just begun has yet to say that it ends with its parent, and holds the terminal until then.
        below.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
        vm.end();
        host.clean();
    }
    host.held(0);
}

/// Has the VM's processes frozen together, stops it, and thaws what is left.
fn freeze(host: &Host, cgroup: &Path, (file, frozen, thawed): (&str, &str, &str)) {
    let mut vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let of_vm = of_vm().map(|program| host.processes(program)[0]);
    for pid in of_vm.chain([host.launcher()]) {
        fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
    }
    fs::write(cgroup.join(file), frozen).unwrap();
    let stopped = host.run(&mut host.volt(&["stop", "web", "--grace", "0"]));
    // What is still there holds the pipes that are read to their end.
    vm.exits();
    fs::write(cgroup.join(file), thawed).unwrap();
    stopped.ok();
    vm.end().ok();
    host.clean();
    cgroups::remove(cgroup);
    // Where a process was still there at the VM's end, the address has its grace after that.
    host.held(0);
}

#[test]
fn vm_in_a_frozen_cgroup_ends_when_it_is_stopped() {
    let Some(host) = Host::new() else { return };
    match cgroups::own_of("cgroup2", "", "stopped") {
        Some(cgroup) => freeze(&host, &cgroup, ("cgroup.freeze", "1", "0")),
        None => testkit::skip!("cgroup v2 is not mounted"),
    }
}

#[test]
fn vm_that_a_version_1_freezer_holds_is_given_up_when_it_is_stopped_and_ends_once_it_thaws() {
    let Some(host) = Host::new() else { return };
    match cgroups::own_of("cgroup", "freezer", "stopped") {
        Some(cgroup) => freeze(&host, &cgroup, ("freezer.state", "FROZEN", "THAWED")),
        None => testkit::skip!("there is no freezer of cgroup v1"),
    }
}

#[test]
fn vm_that_does_not_answer_is_listed_as_unreachable_beside_the_others_with_a_code() {
    let Some(host) = Host::new() else { return };
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let names = ["other", "web"];
    let vms = names.map(|name| Running::start(&mut host.plain(name, &spin)));
    vms.iter().for_each(|vm| vm.says("up"));
    // One whose queue is full, one that nobody serves any more, and one that is no VM's.
    let socket = |name: &str| {
        let bound = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let address = SocketAddrUnix::new(host.path("run/vms").join(name)).unwrap();
        net::bind(&bound, &address).unwrap();
        (bound, address)
    };
    let (full, address) = socket("full.sock");
    net::listen(&full, 0).unwrap();
    let waiting = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    net::connect(&waiting, &address).unwrap();
    drop((socket("dead.sock"), socket("No VM.sock")));

    let list = || host.run(&mut host.volt(&["list"]));
    let rows = |listed: &crate::host::Ended| -> Vec<Vec<String>> {
        listed.out.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };
    let supervisor = vms[1].pid();
    let core = children(supervisor).into_iter().flat_map(children).find(|pid| host.processes("vmm-core").contains(pid));
    let core = core.unwrap();
    for (stopped, why) in [(supervisor, "no answer within"), (core, "ask the core")] {
        kill(stopped, libc::SIGSTOP);
        let listed = list();
        kill(stopped, libc::SIGCONT);
        assert_eq!(listed.status.code(), Some(3), "{listed:?}");
        let states =
            [["full", "unreachable", "-", "-"], ["other", "running", "1", "64M"], ["web", "unreachable", "-", "-"]];
        assert_eq!(rows(&listed), states, "{listed:?}");
        assert!(listed.err.contains("full is unreachable") && listed.err.contains("queue has been full"), "{listed:?}");
        assert!(listed.err.contains("web is unreachable") && listed.err.contains(why), "{listed:?}");
    }
    drop(full);
    let listed = list().ok();
    assert_eq!(rows(&listed), [["other", "running", "1", "64M"], ["web", "running", "1", "64M"]]);
    for (name, vm) in names.iter().zip(vms) {
        host.run(&mut host.volt(&["stop", name, "--grace", "0"])).ok();
        vm.end().ok();
    }
    let not_ours = ["full.sock", "dead.sock", "No VM.sock"];
    not_ours.iter().for_each(|name| fs::remove_file(host.path("run/vms").join(name)).unwrap());
    host.clean();
}
