//! Services that end under VMs that run, and come back: who lives keeps what it has, and it is given back once, at its end.

use std::{collections::BTreeMap, fs, time::Duration};

use crate::{
    host::{Host, Running, until},
    kernel::{POWEROFF, SPIN, print},
};

/// How often `cargo xtask soak restarts` has each service end, in place of the few times that a test does.
const SOAK: &str = "VOLT_SOAK_RESTARTS";
/// The services, and what has them started again.
const SERVICES: [(&str, &[&str]); 3] =
    [("ipamd", &["network", "list"]), ("kernel-store", &["kernel", "list"]), ("netmgr", &[])];

/// The TAPs of this test's network namespace, by name, with what tells one from a later one of that name.
fn taps() -> BTreeMap<String, String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let names = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    let taps = names.filter(|name| name.starts_with("tap-"));
    taps.map(|name| {
        let link = std::process::Command::new("ip").args(["-o", "link", "show", "dev", &name]).output().unwrap();
        let link = String::from_utf8(link.stdout).unwrap();
        let index = link.split(':').next().unwrap().to_owned();
        (name, index)
    })
    .collect()
}

/// The address that a VM was said to have.
fn address(said: &str, vm: &str) -> String {
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

/// Where version 1's freezer is: what is frozen there does not end, whatever it is sent.
const FREEZER: &str = "/sys/fs/cgroup/freezer";

#[test]
fn address_is_held_as_long_as_a_process_of_a_killed_vm_has_its_port() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    let mut vm = Running::start(&mut host.full("a", &spin));
    vm.says("up");
    let [backend] = host.processes("vhost-net-backend")[..] else { panic!() };
    let frozen = std::path::Path::new(FREEZER).join(format!("volt-test-{backend}"));
    if let Err(e) = fs::create_dir(&frozen) {
        return testkit::skip!("{}: {e}", frozen.display());
    }
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
    until("the cgroup is empty", || fs::remove_dir(&frozen).map_err(|e| e.to_string()));
    host.held(0);
}

#[test]
fn vms_keep_addresses_and_ports_over_restarts_of_every_service_in_any_order_and_leak_none() {
    let Some(host) = Host::new() else { return };
    let soak: Option<usize> = std::env::var(SOAK).ok().map(|count| count.parse().unwrap());
    let (restarts, count) = soak.map_or((3, 3), |restarts| (restarts, 10));
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    let vms: Vec<_> = (0..count).map(|n| format!("web-{n}")).collect();
    let running: Vec<_> =
        vms.iter().map(|name| Running::start(host.plain(name, &spin).args(["--net", "volt0"]))).collect();
    running.iter().for_each(|vm| vm.says("up"));
    let held: Vec<_> = vms.iter().zip(&running).map(|(name, vm)| address(&vm.said(), name)).collect();
    let ports = taps();
    assert_eq!(ports.len(), count);

    let mut order: Vec<_> = SERVICES.iter().flat_map(|service| std::iter::repeat_n(service, restarts)).collect();
    let mut random = std::process::id();
    let mut next = move |below: usize| {
        // Xorshift: any order will do that can be had again.
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as usize % below
    };
    println!("order: {}", std::process::id());
    for last in (1..order.len()).rev() {
        order.swap(last, next(last + 1));
    }
    for (n, (service, command)) in order.into_iter().enumerate() {
        host.end([*service], [libc::SIGTERM, libc::SIGKILL][next(2)]);
        if command.is_empty() {
            let other = host.run(host.plain(&format!("other-{n}"), &off).args(["--net", "volt0"])).ok();
            let address = address(&other.err, &format!("other-{n}"));
            assert!(!held.contains(&address), "{address} is held already: {held:?}");
            until("its port is gone", || if taps().len() == count { Ok(()) } else { Err(format!("{:?}", taps())) });
        } else {
            host.run(&mut host.volt(command)).ok();
        }
        assert_eq!(taps(), ports);
        host.held(u32::try_from(count).unwrap());
    }
    assert_eq!(host.processes("vmm-core").len(), count);
    // Each VM hears of it when it does, and not when this test has.
    for (vm, service) in running.iter().flat_map(|vm| ["ipamd", "netmgr"].map(|service| (vm, service))) {
        vm.complains(&format!("{service} is served again"));
    }
    for (name, vm) in vms.iter().zip(running) {
        host.run(&mut host.volt(&["stop", name, "--grace", "0"])).ok();
        let ended = vm.end().ok();
        for service in ["ipamd", "netmgr"] {
            assert_eq!(ended.err.matches(&format!("{service} has ended; {name} keeps ")).count(), 1, "{ended:?}");
            assert_eq!(ended.err.matches(&format!("{service} is served again")).count(), 1, "{ended:?}");
        }
        assert!(!ended.err.contains("release"), "{ended:?}");
    }
    host.held(0);
    host.clean();
    println!("{count} VMs, {restarts} restarts of each of {} services", SERVICES.len());
}
