//! Addresses of VMs while `ipamd` ends under them: whoever lives keeps its own, however long that takes. (First by name, as these wait longest.)

use std::{fs, time::Duration};

use crate::{
    cgroups,
    host::{Host, Running},
    kernel::{POWEROFF, SPIN, print},
};

/// The address that a VM was said to have.
pub fn address(said: &str, vm: &str) -> String {
    let line = said.lines().find_map(|line| line.split_once(&format!("{vm} has "))).expect(said).1;
    line.split(' ').next().unwrap().to_owned()
}

/// What was tried first: the address of a VM that lives was another's half a minute after ipamd had been restarted.
fn another_s(signal: i32) {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let vm = Running::start(&mut host.full("a", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    host.end(["ipamd"], signal);
    host.held(1);
    vm.complains("ipamd is served again");
    std::thread::sleep(Duration::from_secs(36));
    let other = host.run(host.plain("c", &off).args(["--net", "volt0"])).ok();
    assert_eq!(address(&other.err, "c"), "10.42.0.3");
    host.held(1);
    host.run(&mut host.volt(&["stop", "a", "--grace", "0"])).ok();
    let ended = vm.end().ok();
    let said: Vec<&str> = ended.err.lines().filter(|line| !line.contains("runs without")).collect();
    assert_eq!(
        said,
        ["volt: a has 10.42.0.2 on volt0", "volt: ipamd has ended; a keeps 10.42.0.2", "volt: ipamd is served again"]
    );
    // After a moment of its own, and the grace that a workload has.
    host.held(0);
    host.clean();
}

#[test]
fn address_of_a_vm_that_lives_is_no_other_s_half_a_minute_after_ipamd_was_ended() {
    another_s(libc::SIGTERM);
}

#[test]
fn address_of_a_vm_that_lives_is_no_other_s_half_a_minute_after_ipamd_was_killed() {
    another_s(libc::SIGKILL);
}

#[test]
fn address_is_held_as_long_as_a_process_of_a_killed_vm_has_its_port() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    let Some(frozen) = cgroups::own_of("cgroup", "freezer", "address") else {
        return testkit::skip!("there is no freezer of cgroup v1");
    };
    let mut vm = Running::start(&mut host.full("a", &spin));
    vm.says("up");
    let [backend] = host.processes("vhost-net-backend")[..] else { panic!() };
    fs::write(frozen.join("cgroup.procs"), backend.to_string()).unwrap();
    fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
    vm.signal(libc::SIGKILL);
    // What is still there holds the pipes that are read to their end.
    vm.exits();
    host.end(["ipamd"], libc::SIGKILL);
    std::thread::sleep(Duration::from_secs(36));
    let other = host.run(host.plain("c", &off).args(["--net", "volt0"]));
    let free = host.free("volt0");
    fs::write(frozen.join("freezer.state"), "THAWED").unwrap();
    vm.end();
    assert_eq!((address(&other.ok().err, "c").as_str(), free), ("10.42.0.3", 252));
    host.clean();
    cgroups::remove(&frozen);
    host.held(0);
}
