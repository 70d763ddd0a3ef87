//! `cargo xtask demo | test | bench | soak | blast-radius`: shows Volt at work, proves it, measures it. Installs what it needs from Debian's
//! archive; keeps its files below cargo's target directory.

mod aarch64;
mod attach;
mod bench;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod blast_radius;
mod debian;
mod demo;
mod deny;
mod emulator;
mod forward;
mod fuzz;
mod harness;
mod image;
mod kernel_alone;
mod kernel_image;
mod kvm;
mod lab;
mod schema;
mod sizes;
mod soak;
mod startup;
mod test;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use volt_tests::workspace::{self, Workspace};

const USAGE: &str = "\
usage: cargo xtask demo               boot a stock Debian kernel in a microVM and show that its disk and network work
       cargo xtask test [TIER]...     run the tests: unit, host, lab (these if none is named), kernels
       cargo xtask bench [NAME]...    measure: boot, footprint, attach, forward, confine, size (all of them if none is named)
       cargo xtask soak NAME [COUNT]  run a test in its long form: restarts (of each service under ten VMs, 200 times),
                                      network (1,000 operations with a kill of netmgr at each)
       cargo xtask soak fuzz [SECONDS] [TARGET]...
                                      look for inputs that break a promise: 600 s a target, all targets if none is named
       cargo xtask check-aarch64      see whether what is meant for aarch64 compiles for it
       cargo xtask deny               check what Volt is built on: licences, sources, crates that are there twice
       cargo xtask blast-radius       have the escape suite try everything and write what succeeds into docs/SECURITY.md";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["demo", programs, staged] if volt_tests::namespaces::inside() => {
            demo::inside(Path::new(programs), Path::new(staged))?;
            Ok(ExitCode::SUCCESS)
        }
        ["demo"] => demo::run(&Workspace::find()?),
        ["test", tiers @ ..] => test::run(&Workspace::find()?, tiers),
        ["bench", names @ ..] => bench::run(&Workspace::find()?, names).map(|()| ExitCode::SUCCESS),
        ["check-aarch64"] => aarch64::run(&Workspace::find()?),
        ["deny"] => deny::run(&Workspace::find()?),
        ["soak", "fuzz", words @ ..] => fuzz::run(&Workspace::find()?, words),
        ["soak", name] => soak::run(&Workspace::find()?, name, None),
        ["soak", name, count] => soak::run(&Workspace::find()?, name, Some(count)),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        ["blast-radius"] => blast_radius::write(&Workspace::find()?).map(|()| ExitCode::SUCCESS),
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
