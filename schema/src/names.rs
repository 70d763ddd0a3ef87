//! Which names the services take, said once: what one of them takes, the next one has to take as well. Pure.

/// What [`is_workload`] asks for, in words.
pub const WORKLOAD_RULE: &str = "it must be 1 to 63 bytes of [a-z0-9-]";
/// What [`is_network`] asks for, in words.
pub const NETWORK_RULE: &str =
    "it must be 1 to 15 bytes of [A-Za-z0-9_.-], not start with a dot or a dash, and not be all or default";

/// Whether this can be the name of a workload, such as `vm-web`, or of a tenant.
pub fn is_workload(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether this can be the name of a network: an interface name that needs no quoting, and none that the kernel keeps for settings
/// which concern every interface.
pub fn is_network(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !matches!(name, "all" | "default")
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
