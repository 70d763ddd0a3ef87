//! What this host's kernel cannot give any process is said once a boot, and not by each process of each VM.

use std::{fs, path::Path};

use confine::Policy;

use crate::{host::paths::Paths, output::say};

/// What `policy` is for this process and those that it starts, once it has said which layers are missing: the first time since the
/// host booted, and again when something else is missing. `volt doctor` says it as often as it is asked.
pub fn once(paths: &Paths, policy: Policy) -> Policy {
    let missing = confine::missing();
    if policy != Policy::BestEffort || missing.is_empty() {
        return policy;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let line = format!("runs without {}", confine::list(&missing));
    // Not in the runtime directory, where there is nothing but sockets.
    if is_new(&paths.state.join("said"), &format!("{}: {line}\n", boot.trim())) {
        say(format_args!("{line}. This is said once, until the host boots again; volt doctor has it as well"));
    }
    Policy::BestEffortQuiet
}

/// Whether `text` is not what `note` has; it has it from now on. Where it cannot be noted, it stays new.
fn is_new(note: &Path, text: &str) -> bool {
    let new = fs::read_to_string(note).ok().as_deref() != Some(text);
    if new {
        let _unnoted = fs::write(note, text);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_new_once_a_boot_and_again_where_it_is_something_else_or_cannot_be_noted() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("said");
        for text in ["boot-1: truncate", "boot-2: truncate", "boot-2: truncate, scopes", "boot-2: truncate"] {
            assert!(is_new(&note, text), "{text}");
            assert!(!is_new(&note, text), "{text}");
        }
        let nowhere = dir.path().join("none/said");
        assert!(is_new(&nowhere, "boot-1: truncate") && is_new(&nowhere, "boot-1: truncate"));
    }
}
