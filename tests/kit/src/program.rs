//! Programs that a test makes. They are written by a process of their own: a descriptor of the test's that is open for writing would be in
//! whatever another test starts at that moment, until that executes, and for so long the kernel runs no such program (ETXTBSY).

use std::path::Path;
use std::process::Command;

/// Copies a program.
pub fn copy(program: impl AsRef<Path>, to: &Path) {
    assert!(Command::new("cp").arg("--").arg(program.as_ref()).arg(to).status().unwrap().success());
}

/// Writes a script.
pub fn write(script: &str, to: &Path) {
    let write = r#"printf %s "$1" >"$0" && chmod 755 "$0""#;
    assert!(Command::new("sh").args(["-c", write]).arg(to).arg(script).status().unwrap().success());
}
