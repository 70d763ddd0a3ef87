//! Many VMs started at once, on a host where nothing runs yet: none is refused for how many there are.

use crate::{
    host::{Host, Running},
    kernel::{POWEROFF, print},
};

const MANY: usize = 50;

/// Starts a VM by each command before any has ended, and sees that each guest ran to its own end.
fn all_run(host: &Host, command: impl Fn(usize) -> std::process::Command) {
    let running: Vec<_> = (0..MANY).map(|n| Running::start(&mut command(n))).collect();
    for vm in running {
        let ended = vm.end().ok();
        assert!(ended.out.contains("up"), "{ended:?}");
    }
    host.clean();
}

#[test]
fn fifty_vms_of_one_kernel_file_started_at_once_all_run() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("kernel", &[&print("up"), POWEROFF]);
    all_run(&host, |n| host.plain(&format!("vm-{n}"), &kernel));
    let listed = host.run(&mut host.volt(&["kernel", "list"])).ok();
    assert_eq!(listed.out.lines().count(), 2, "{listed:?}");
}

#[test]
fn fifty_vms_with_a_kernel_file_and_a_card_each_started_at_once_all_run() {
    let Some(host) = Host::new() else { return };
    let kernels: Vec<_> =
        (0..MANY).map(|n| host.kernel(&format!("kernel-{n}"), &[&print(&format!("up {n}")), POWEROFF])).collect();
    all_run(&host, |n| {
        let mut command = host.plain(&format!("vm-{n}"), &kernels[n]);
        command.args(["--net", "volt0"]);
        command
    });
}
