//! Every system call that a seccomp filter allows is made by a real run.
#![cfg(target_arch = "x86_64")]

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};
use volt_tests::syscalls::{
    name,
    trace::{self, Seen},
};

const PROGRAMS: [&str; 7] =
    ["volt", "vmm-core", "vhost-net-backend", "vhost-blk-backend", "netmgr", "ipamd", "kernel-store"];

#[test]
fn every_system_call_that_a_filter_allows_is_made_by_a_real_run() {
    let mut seen = Seen::default();
    let list = std::env::var("SCEN").unwrap();
    for one in list.split(';') {
        let words: Vec<&str> = one.split_whitespace().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let start = Instant::now();
        let result = trace::run(&command, &PROGRAMS, &mut seen, Duration::from_secs(200));
        println!("{one}: {result:?} {:?}", start.elapsed());
    }
    for (role, calls) in &seen.roles {
        let names = |set: &BTreeSet<u32>| set.iter().map(|n| name(*n)).collect::<Vec<_>>().join(" ");
        let unused = calls.allowed.difference(&calls.used).copied().collect();
        let usd = calls.allowed.intersection(&calls.used).copied().collect();
        println!(
            "{} {}: {}\n   USED {}\n   UNUSED {}",
            role.program,
            role.thread,
            calls.allowed.len(),
            names(&usd),
            names(&unused)
        );
    }
    println!("REFUSED {:#?}", seen.refused);
}
