//! What whoever happens to start a VM, or a service with it, has set for itself: none of it is the services' or the VM's.

use std::os::unix::process::CommandExt;

use crate::{
    host::Host,
    kernel::{POWEROFF, SPIN, print},
};

#[test]
fn a_vm_with_a_card_and_a_disk_starts_under_any_umask_with_services_that_start_under_it() {
    let test = "a_vm_with_a_card_and_a_disk_starts_under_any_umask_with_services_that_start_under_it";
    for umask in [0, 0o022, 0o027, 0o007, 0o077, 0o777] {
        let Some(host) = Host::new(test) else { return };
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
                for program in ["volt keep", "netmgr", "ipamd", "kernel-store"] {
                    host.processes(program).into_iter().for_each(|pid| crate::host::kill(pid, libc::SIGKILL));
                }
            }
        }
        host.clean();
    }
}
