//! The demo: one VM from the command line that the README shows, and the two things that it proves.

use std::{fs, path::Path, time::Duration};

use anyhow::{Result, bail, ensure};

use crate::{
    console::Console,
    volt::{Vm, Volt},
};

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
    let disk = dir.join("disk.img");
    fs::File::create(&disk)?.set_len(16 << 20)?;
    let (kernel, initrd) = (dir.join("vmlinuz"), dir.join("initrd"));
    let vm = Vm { name: "web", kernel: &kernel, initrd: &initrd, disk: &disk, cpus: 2, cmdline: None };
    let command = volt.boot(&vm);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    show(&format!("$ volt {}", words.join(" ")))?;
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
