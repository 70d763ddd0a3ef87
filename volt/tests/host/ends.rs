//! Ends that nobody asked for: whatever is killed, and whenever, the rest of the VM goes with it and is given back.

use std::{path::Path, time::Duration};

use crate::{
    host::{Host, Running, kill, of_vm, outliving, uid},
    kernel::{POWEROFF, SPIN, print},
};

#[test]
fn killed_supervisor_leaves_no_process_interface_socket_or_lease() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    assert_eq!(host.free("volt0"), 252);
    vm.signal(libc::SIGKILL);
    vm.end();
    host.clean();
    host.held(0);
}

#[test]
fn supervisor_that_is_ended_at_any_moment_of_its_start_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[SPIN]);
    for moment in 0..40u64 {
        let signal = if moment % 2 == 0 { libc::SIGKILL } else { libc::SIGTERM };
        let vm = Running::start(&mut host.full("web", &kernel));
        std::thread::sleep(Duration::from_millis(moment * 3));
        vm.signal(signal);
        if signal == libc::SIGTERM {
            std::thread::sleep(Duration::from_millis(50));
            vm.signal(signal);
        }
        vm.end();
        host.clean();
    }
    host.held(0);
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
}

#[test]
fn process_of_a_vm_that_dies_is_named_and_the_run_fails() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    for program in of_vm() {
        let vm = Running::start(&mut host.full("web", &kernel));
        vm.says("up");
        kill(host.processes(program)[0], libc::SIGKILL);
        vm.end().refused(&["run the VM web", program, "signal: 9"]);
        host.clean();
    }
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn what_a_killed_janitor_leaves_is_cleared_up_by_the_next_run() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    for signals in [&[libc::SIGINT, libc::SIGINT][..], &[libc::SIGKILL]] {
        let vm = Running::start(&mut host.plain("web", &kernel));
        vm.says("up");
        // The one of volt's processes that is still the user who started it, and neither the keeper nor the supervisor.
        let janitor = host.processes("volt").into_iter().find(|pid| uid(Path::new(&format!("/proc/{pid}"))) == 0);
        kill(janitor.unwrap(), libc::SIGKILL);
        for signal in signals {
            vm.signal(*signal);
            std::thread::sleep(Duration::from_millis(200));
        }
        vm.end();
        assert_eq!(host.sockets("run/vms").len(), 2);
        std::fs::write(host.path("run/vms/.1.0"), "").unwrap();
        host.run(&mut host.plain("other", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
        host.clean();
    }
}

#[test]
fn cgroup_that_a_killed_janitor_and_supervisor_left_goes_with_the_next_run_and_that_of_a_vm_that_lives_stays() {
    let Some(host) = Host::new() else { return };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let unified = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let Some(unified) = unified else { return testkit::skip!("cgroup v2 is not mounted") };
    let all = Path::new(unified).join(confine::Cgroup::PARENT);
    let vm = Running::start(&mut host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let core = host.processes("vmm-core")[0];
    let living = uid(Path::new(&format!("/proc/{core}")));
    // As a VM's is called; one of a user that no VM has, one of the user of this one, and one that is no VM's.
    let [left, lives, other] = [format!("old.{}", host.user + 31), format!("other.{living}"), "other".into()];
    let kept = [&lives, &other].map(|name| all.join(name));
    for folder in kept.iter().chain([&all.join(&left)]) {
        std::fs::create_dir_all(folder).unwrap();
    }
    host.run(&mut host.plain("next", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    assert!(!all.join(left).exists());
    for folder in kept {
        std::fs::remove_dir(folder).unwrap();
    }
    vm.signal(libc::SIGKILL);
    vm.end();
    host.clean();
    // Where VMs can have none there is nothing to keep them in.
    let ended = host.run(&mut host.plain("next", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    assert!(!all.exists() || !ended.err.contains("without a cgroup with limits"), "{ended:?}");
}

#[test]
fn services_that_die_take_no_vm_with_them_and_are_started_again() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    host.end(outliving(), libc::SIGKILL);
    host.run(&mut host.full("other", &host.kernel("off", &[POWEROFF, SPIN]))).refused(&["in use by another process"]);
    host.run(host.plain("other", &host.kernel("off", &[POWEROFF, SPIN])).args(["--net", "volt0"])).ok();
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
}
