//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use crate::names::{is_network, is_workload};

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
    fn kept_names_break_no_promise() {
        testkit::corpus::replay("names", super::names);
    }
}
