//! What fuzzing has found worth keeping, replayed as an ordinary test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

/// Where a target's inputs are: a file each.
pub fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target)
}

/// Gives each input to a target, and the first bytes of each, as a connection or a file that is cut short would.
///
/// # Panics
/// As the target does, once it has said with which input; and where there is no input.
pub fn replay(target: &str, run: impl Fn(&[u8])) {
    let folder = folder(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut count = 0;
    for file in files {
        let path = file.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        for end in [input.len(), input.len() / 2, input.len().saturating_sub(1)] {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&input[..end]))) {
                eprintln!("{target}: the first {end} bytes of {}", path.display());
                resume_unwind(panic);
            }
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}
