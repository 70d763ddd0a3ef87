//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use crate::{
    about_kvm::Fact,
    names::{is_network, is_workload},
};

/// What a core says of KVM, a line: what is read as a fact is printed as one that is read as the same.
pub fn kvm_facts(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    if let Ok(fact) = line.parse::<Fact>() {
        assert_eq!(fact.to_string().parse(), Ok(fact));
    }
}

/// Names: what is taken can stand in a path, in a command and in a line of text as it is, and is no longer than it may be.
pub fn names(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let plain = |bytes: &[u8]| bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    if is_workload(name) {
        assert!(plain(data) && (1..=63).contains(&data.len()) && !data.contains(&b'.'));
    }
    if is_network(name) {
        assert!(plain(data) && (1..=15).contains(&data.len()) && !name.starts_with(['.', '-']));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn kept_facts_of_kvm_break_no_promise() {
        testkit::corpus::replay("kvm_facts", super::kvm_facts);
    }

    #[test]
    fn kept_names_break_no_promise() {
        testkit::corpus::replay("names", super::names);
    }
}
