//! A VM's life from its start to an end that somebody wanted.

use std::{
    io::Write,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    host::{Host, Running},
    kernel::{POWEROFF, RESET, SPIN, echo, print},
};

#[test]
fn guest_that_powers_off_ends_the_run_with_its_console_shown_and_nothing_left() {
    let Some(host) = Host::new() else {
        return;
    };
    let kernel = host.kernel("off", &[&print("Volt\n"), POWEROFF, SPIN]);
    let ended = host.run(&mut host.full("web", &kernel)).ok();
    assert_eq!(ended.out, "Volt\n");
    assert!(ended.err.contains("web has 10.42.0.2 on volt0"), "{ended:?}");
    host.clean();
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn guest_that_resets_boots_again_with_the_same_console() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("counter", &[&print("boot "), &echo(), RESET, SPIN]);
    let mut vm = Running::start(host.full("web", &kernel).stdin(Stdio::piped()));
    let mut keys = vm.child.stdin.take().unwrap();
    for (key, shown) in [("1", "boot "), ("2", "boot 1boot "), (".", "boot 1boot 2boot ")] {
        vm.says(shown);
        keys.write_all(key.as_bytes()).unwrap();
    }
    assert_eq!(vm.end().ok().out, "boot 1boot 2boot .");
    host.clean();
}

#[test]
fn guest_that_resets_ends_the_run_where_no_reboot_is_asked_for() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("reset", &[&print("Volt"), RESET, SPIN]);
    assert_eq!(host.run(host.plain("web", &kernel).arg("--no-reboot")).ok().out, "Volt");
}

#[test]
fn second_signal_ends_a_guest_that_ignores_the_power_button_in_order() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    let vms: Vec<_> = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]
        .map(|signal| (signal, Running::start(&mut host.plain(&format!("web-{signal}"), &kernel))))
        .into();
    for (_, vm) in &vms {
        vm.says("up");
    }
    for _ in 0..2 {
        vms.iter().for_each(|(signal, vm)| vm.signal(*signal));
        std::thread::sleep(Duration::from_millis(300));
    }
    for (_, vm) in vms {
        vm.end().ok();
    }
    host.clean();
}

#[test]
fn one_signal_gives_the_guest_its_grace_time() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let begin = Instant::now();
    vm.signal(libc::SIGTERM);
    vm.end().ok();
    assert!(begin.elapsed() >= Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn hang_up_that_nohup_ignores_changes_nothing() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("echo", &[&print("up"), &echo(), SPIN]);
    let mut command = std::process::Command::new("nohup");
    let volt = host.plain("web", &kernel);
    command.arg(volt.get_program()).args(volt.get_args()).envs(volt.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut vm = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    vm.says("up");
    for _ in 0..2 {
        vm.signal(libc::SIGHUP);
        std::thread::sleep(Duration::from_millis(100));
    }
    vm.child.stdin.take().unwrap().write_all(b".").unwrap();
    assert_eq!(vm.end().ok().out, "up.");
}

#[test]
fn stopped_vm_is_listed_until_then_and_its_name_is_free_at_once() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[SPIN]);
    for _ in 0..5 {
        let vm = Running::start(&mut host.full("web", &kernel));
        host.runs("web");
        host.run(&mut host.full("web", &kernel)).refused(&["alreadyExists", "volt stop web"]);
        host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
        let off = host.kernel("off", &[POWEROFF, SPIN]);
        host.run(&mut host.full("web", &off)).ok();
        vm.end().ok();
    }
    host.run(&mut host.volt(&["stop", "web"])).refused(&["notFound", "volt list"]);
    assert_eq!(host.run(&mut host.volt(&["list"])).ok().out, "NAME  STATE  CPUS  MEMORY\n");
    host.clean();
}

#[test]
fn address_is_told_before_the_end_mark_and_not_beside_the_user_s_own() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print("up"), SPIN]);
    for (given, read) in [
        ("quiet -- single", "quiet ip=ADDRESS::10.42.0.1:255.255.255.0:web::off -- single"),
        ("a=\"b -- c\"", "a=\"b -- c\" ip=ADDRESS::10.42.0.1:255.255.255.0:web::off"),
        ("quiet ip=dhcp -- x", "quiet ip=dhcp -- x"),
        ("quiet -- ip=dhcp", "quiet ip=ADDRESS::10.42.0.1:255.255.255.0:web::off -- ip=dhcp"),
    ] {
        let vm = Running::start(host.full("web", &kernel).args(["--cmdline", given]));
        vm.says("up");
        let found = host.cmdline_of_the_core();
        host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
        let said = vm.end().ok().err;
        let address = said.split_once("web has ").unwrap().1.split_once(' ').unwrap().0;
        assert_eq!(found, read.replace("ADDRESS", address));
        assert_eq!(said.contains("has an ip= of its own"), !read.contains("ADDRESS"));
        host.clean();
    }
    host.run(host.full("web", &kernel).args(["--cmdline", "a=\"b"])).refused(&["--cmdline", "double quote"]);
}
