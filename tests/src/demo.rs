//! The demo: the README's first VM, and the two things that it proves.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, bail, ensure};

use crate::{console::Console, docs, volt::Volt};

/// What the demo's guest does by itself, one command a word (see `lab/guest-init.sh`).
pub const COMMANDS: &str = "write:volt read:volt ping:10.42.0.1 poweroff";

/// The answers that have to come, and what each one proves.
const PROOFS: [(&str, &str); 2] = [
    ("lab: read:volt ok", "the guest wrote 1 MiB to its disk and read it back"),
    ("lab: ping:10.42.0.1 ok", "the guest reached the gateway through its network card"),
];

/// Boots a VM from the files in `dir` (vmlinuz, initrd; disk.img is made here), hands every line of its console to
/// `show`, and fails unless all is proven.
pub fn run(volt: &Volt, dir: &Path, patience: Duration, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    fs::File::create(dir.join("disk.img"))?.set_len(16 << 20)?;
    let words = docs::first_vm()?;
    let [_, arguments @ ..] = words.as_slice() else { bail!("The README's command is empty") };
    let mut command = volt.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.current_dir(dir);
    show(&format!("$ {}", words.join(" ")))?;
    let mut console = Console::start("web", command)?;
    while let Some(line) = console.line(patience)? {
        show(&line)?;
    }
    let status = console.wait(patience)?;
    ensure!(status.success(), "volt run ended with {status}");
    for (answer, proof) in PROOFS {
        if !console.transcript.iter().any(|line| line.contains(answer)) {
            bail!("Not proven: {proof}");
        }
        show(&format!("Proven: {proof}."))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_shows_the_command_and_what_is_proven() {
        let command = format!("\n$ {}\n", docs::first_vm().unwrap().join(" "));
        assert!(docs::README.contains(&command), "{command}");
        for (answer, proof) in PROOFS {
            assert!(docs::README.contains(&format!("\n{answer}\n")), "{answer}");
            assert!(docs::README.contains(&format!("\nProven: {proof}.\n")), "{proof}");
        }
    }
}
