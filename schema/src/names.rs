//! Which names the services take, said once: what one of them takes, the next one has to take as well. Pure.

use std::ops::RangeInclusive;

/// Most bytes of an interface's name (IFNAMSIZ less its NUL), and so of a network's.
pub const INTERFACE_MAX: usize = 15;
/// Most bytes of a workload's name.
pub const WORKLOAD_MAX: usize = 63;
/// Most bytes of a VM's name.
pub const VM_MAX: usize = 59;
/// Most bytes of an installation's name.
pub const INSTANCE_MAX: usize = 32;
/// The groups that netmgrs' interfaces are in until each has its mark, by which udev knows them (70-volt-vmm.rules): all numbers of ten digits that begin
/// with the same four.
pub const HALF_MADE: RangeInclusive<u32> = 1_986_000_000..=1_986_999_999;
/// What the workload that a VM is begins with.
const VM: &str = "vm-";

/// What [`is_workload`] asks for, in words.
pub const WORKLOAD_RULE: &str = "it must be 1 to 63 bytes of [a-z0-9-]";
/// What [`is_network`] asks for, in words.
pub const NETWORK_RULE: &str =
    "it must be 1 to 15 bytes of [A-Za-z0-9_.-], not start with a dot or a dash, and not be all or default";

/// What [`is_vm`] asks for, in words.
pub const VM_RULE: &str = "1 to 59 of a-z, 0-9 and '-', not starting with '-'";
/// What [`is_instance`] asks for, in words.
pub const INSTANCE_RULE: &str = "it must be 1 to 32 bytes of [a-z0-9]";

/// Whether this can be the name of a workload, such as `vm-web`, or of a tenant.
pub fn is_workload(name: &str) -> bool {
    (1..=WORKLOAD_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether this can be the name of a network: an interface name that needs no quoting, and none that the kernel keeps for settings
/// which concern every interface.
pub fn is_network(name: &str) -> bool {
    (1..=INTERFACE_MAX).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !matches!(name, "all" | "default")
}

/// Whether this can be a VM's name, which becomes part of a socket's, a cgroup's and its workload's.
pub fn is_vm(name: &str) -> bool {
    name.len() <= VM_MAX && is_workload(name) && !name.starts_with('-')
}

/// The workload that the VM of that name is.
pub fn workload_of_vm(name: &str) -> String {
    format!("{VM}{name}")
}

/// A workload's name less what says that it is a VM.
pub fn without_vm(workload: &str) -> &str {
    workload.strip_prefix(VM).filter(|rest| !rest.is_empty()).unwrap_or(workload)
}

/// Whether this can be the name of an installation of Volt, by which it tells its own interfaces from another's.
pub fn is_instance(name: &str) -> bool {
    (1..=INSTANCE_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_names_hold_63_bytes_and_no_more() {
        for good in ["vm-web", "a", &"a".repeat(63)] {
            assert!(is_workload(good), "{good:?}");
        }
        for bad in ["", "vm_web", "Vm", "a.b", "a b", "vm\0", "vm-\u{e9}", &"a".repeat(64)] {
            assert!(!is_workload(bad), "{bad:?}");
        }
    }

    #[test]
    fn vm_names_hold_59_bytes_and_each_is_a_workload() {
        for good in ["web", "0", "a-", &"a".repeat(VM_MAX)] {
            assert!(is_vm(good), "{good:?}");
            let workload = workload_of_vm(good);
            assert!(is_workload(&workload) && without_vm(&workload) == good, "{workload:?}");
        }
        for bad in ["", "Web", "-web", "we/b", "..", &"a".repeat(VM_MAX + 1)] {
            assert!(!is_vm(bad), "{bad:?}");
        }
        assert_eq!((without_vm("web"), without_vm("vm-")), ("web", "vm-"));
        assert!(VM_RULE.contains(&VM_MAX.to_string()));
    }

    #[test]
    fn installation_names_hold_32_bytes_and_no_more() {
        for good in ["a", "0123456789abcdef", &"a".repeat(INSTANCE_MAX)] {
            assert!(is_instance(good), "{good:?}");
        }
        for bad in ["", "A", "a-b", "-", "a b", &"a".repeat(INSTANCE_MAX + 1)] {
            assert!(!is_instance(bad), "{bad:?}");
        }
        assert!(INSTANCE_RULE.contains(&INSTANCE_MAX.to_string()));
    }

    #[test]
    fn network_names_are_interface_names() {
        for good in ["v", "volt0", "Net_1.lan-x", "exactly15bytes_"] {
            assert!(is_network(good), "{good:?}");
        }
        let bad = [
            "",
            "all",
            "default",
            "..",
            ".hidden",
            "-dash",
            "sixteen_bytes_xx",
            "a b",
            "a/b",
            "\u{fc}nl",
            "a:b",
            "a\0",
        ];
        for bad in bad {
            assert!(!is_network(bad), "{bad:?}");
        }
    }
}
