//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use crate::{
    about_kvm::Fact,
    names::{is_network, is_workload},
    policy::{Rule, Rules},
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

/// A policy, a rule in each line: what is taken is said again as the same, fits where it is kept, and is not widened by being narrowed. What is not
/// taken is refused with why.
pub fn policies(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rules = match Rules::new(text.lines()) {
        Ok(rules) => rules,
        Err((_, why)) => return assert!(!why.is_empty()),
    };
    let said: Vec<String> = rules.iter().map(Rule::to_string).collect();
    assert!(said.iter().all(|rule| rule.len() <= 127), "a comment of nft's: {said:?}");
    assert_eq!(Rules::new(said.iter().map(String::as_str)).as_ref(), Ok(&rules));
    assert_eq!(rules.narrowed(&Rules::everything()).as_ref(), Ok(&rules));
    if let Ok(same) = rules.narrowed(&rules) {
        assert_eq!(same, rules);
    }
    for rule in rules.iter() {
        let ranges = rule.to.ranges(|_| Vec::new());
        assert!(ranges.iter().all(|(first, last)| first <= last && first.is_ipv4() == last.is_ipv4()), "{rule}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn kept_facts_of_kvm_break_no_promise() {
        testkit::corpus::replay("kvm_facts", super::kvm_facts);
    }

    #[test]
    fn kept_policies_break_no_promise() {
        testkit::corpus::replay("policies", super::policies);
    }

    #[test]
    fn kept_names_break_no_promise() {
        testkit::corpus::replay("names", super::names);
    }
}
