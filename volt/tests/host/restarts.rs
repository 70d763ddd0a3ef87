//! Services that end under VMs that run, and come back: who lives keeps what it has, and it is given back once, at its end.

use std::{collections::BTreeMap, fs};

use crate::{
    addresses::address,
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
