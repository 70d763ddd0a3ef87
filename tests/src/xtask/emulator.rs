//! The QEMU that the lab host runs in: Debian 12's own where it is new enough, else the one of its backports, unpacked under
//! `target/lab` without being installed, and without a change to the machine's package lists.
//!
//! Before version 8.1 QEMU may go on with code that was changed while it translated it, and kernels change theirs as they run.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::debian::{install, mirror, output, run, say, unpack_downloaded};

/// The first version that will do.
const ENOUGH: (u32, u32) = (8, 1);
/// Where Debian 12 has it.
const BACKPORTS: &str = "bookworm-backports";
/// Its program, and what that reads.
const PACKAGES: [&str; 3] = ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];
const PROGRAM: &str = "qemu-system-x86_64";

/// An emulator, ready to be started.
pub struct Emulator {
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Emulator {
    /// Finds one on this machine or in `lab`, or fetches it.
    pub fn fetch(lab: &Path) -> Result<Emulator> {
        // With the libraries and the firmware that either version takes.
        install(&["qemu-system-x86"])?;
        if version(Path::new(PROGRAM))? >= ENOUGH {
            return Ok(Emulator { program: PROGRAM.into(), arguments: Vec::new() });
        }
        let dir = lab.join("qemu");
        if !dir.join("complete").exists() {
            unpack(&dir).with_context(|| format!("Cannot get QEMU from Debian's {BACKPORTS}"))?;
        }
        let program = dir.join("usr/bin").join(PROGRAM);
        let found = version(&program)?;
        ensure!(found >= ENOUGH, "{} is of version {}.{}", program.display(), found.0, found.1);
        let data = [dir.join("usr/share/qemu"), "/usr/share/seabios".into()];
        let arguments = data.into_iter().flat_map(|data| ["-L".into(), data.into_os_string()]).collect();
        Ok(Emulator { program, arguments })
    }

    /// The same in words, with spaces between them.
    pub fn words(&self) -> OsString {
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        words.collect::<Vec<_>>().join(OsStr::new(" "))
    }

    /// A command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }
}

/// Major and minor.
fn version(program: &Path) -> Result<(u32, u32)> {
    let said = output(Command::new(program).arg("--version"))?;
    parse(&said).with_context(|| format!("{} says no version but {said:?}", program.display()))
}

/// "QEMU emulator version 7.2.22 (Debian ...)"
fn parse(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn unpack(dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    let apt = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(apt.join("sources.list"), format!("deb [signed-by={key}] {} {BACKPORTS} main\n", mirror()?))?;
    // Lists and caches of its own. The fetching user of apt cannot write below a private target directory.
    let option = |name: &str, value: &str| format!("{name}={}", apt.join(value).display());
    let options = [
        option("Dir::Etc::sourcelist", "sources.list"),
        "Dir::Etc::sourceparts=-".into(),
        option("Dir::State::lists", "lists"),
        option("Dir::Cache", "cache"),
        "APT::Sandbox::User=root".into(),
    ];
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.arg("-q").args(options.iter().flat_map(|option| ["-o", option])).current_dir(dir);
        command
    };
    say("downloading a newer QEMU");
    run(apt_get().args(["update", "--error-on=any"]))?;
    run(apt_get().arg("download").args(PACKAGES.map(|package| format!("{package}/{BACKPORTS}"))))?;
    unpack_downloaded(dir)?;
    fs::remove_dir_all(&apt)?;
    // Written last: its presence says that everything else is there.
    fs::write(dir.join("complete"), "")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions_are_found_in_what_qemu_says() {
        assert_eq!(parse("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"), Some((7, 2)));
        assert_eq!(parse("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(parse("QEMU emulator version x"), None);
        assert_eq!(parse("no such program"), None);
    }
}
