//! Which names are acceptable. Pure.

/// What [`is_workload`] asks for, in words.
pub const WORKLOAD_RULE: &str = "a workload's name is 1 to 63 bytes of [a-z0-9-]";
/// What [`is_network`] asks for, in words.
pub const NETWORK_RULE: &str = "a network's name is 1 to 15 bytes of [A-Za-z0-9_.-], not starting with a dot or a dash";

/// Whether this can be the name of a workload, such as `vm-web`.
pub fn is_workload(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether this can be the name of a network: an interface name that needs no quoting.
pub fn is_network(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_names_hold_63_bytes_and_no_more() {
        assert!(is_workload("vm-web"));
        assert!(is_workload(&"a".repeat(63)));
        assert!(!is_workload(&"a".repeat(64)));
        assert!(!is_workload(""));
        assert!(!is_workload("vm_web"));
        assert!(!is_workload("Vm"));
        assert!(!is_workload("vm\0"));
        assert!(!is_workload("vm-\u{e9}"));
    }

    #[test]
    fn network_names_are_interface_names() {
        assert!(is_network("volt0"));
        assert!(is_network(&"a".repeat(15)));
        assert!(!is_network(&"a".repeat(16)));
        assert!(!is_network(""));
        assert!(!is_network(".."));
        assert!(!is_network("-x"));
        assert!(!is_network("a/b"));
        assert!(!is_network("a b"));
    }
}
