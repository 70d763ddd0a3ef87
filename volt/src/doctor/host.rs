//! The kernel's version, and Volt's own programs.

use std::{env, path::PathBuf};

use rustix::fs::{Access, access};
use schema::programs::beside_volt;

use super::Check;

/// The oldest kernel that Volt is made for, and the first with every layer of confinement.
const OLDEST: (u32, u32) = (5, 15);
const WHOLE: (u32, u32) = (6, 12);

/// The kernel's version. What an older one lacks has rows of its own.
pub fn kernel() -> Check {
    let name = rustix::system::uname();
    judge(&name.release().to_string_lossy(), &name.machine().to_string_lossy())
}

fn judge(release: &str, machine: &str) -> Check {
    let detail = format!("Linux {release} {machine}");
    match version(release) {
        Some(version) if version >= WHOLE => Check::ok("kernel", detail),
        Some(version) if version >= OLDEST => {
            Check::limited("kernel", detail, "Linux 6.12, for every layer of confinement")
        }
        _ => Check::missing("kernel", detail, "Linux 5.15, better 6.12").vital(),
    }
}

/// Major and minor version at the start of `uname -r`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Where this program is, and the others should be.
pub fn folder() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.to_path_buf())
}

/// Whether the programs that `volt run` starts are beside `volt`.
pub fn programs() -> Check {
    let Some(dir) = folder() else {
        return Check::missing("programs", "/proc/self/exe cannot be read", "mount /proc").vital();
    };
    let absent: Vec<&str> =
        beside_volt().filter(|program| access(dir.join(program), Access::EXEC_OK).is_err()).collect();
    let dir = dir.display();
    if absent.is_empty() {
        return Check::ok("programs", format!("all {} in {dir}", beside_volt().count()));
    }
    let detail = format!("not to be executed in {dir}: {}", absent.join(", "));
    Check::missing("programs", detail, "install all of Volt's programs in one folder").vital()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn kernel_is_judged_by_major_and_minor_version() {
        let state = |release| judge(release, "x86_64").state;
        assert_eq!(state("6.12.48+deb13-amd64"), State::Ok);
        assert_eq!(state("6.18"), State::Ok);
        assert_eq!(state("7.0.0-rc1"), State::Ok);
        assert_eq!(state("6.1.0-40-cloud-amd64"), State::Limited);
        assert_eq!(state("5.15.0"), State::Limited);
        for old in ["5.10.0-36-amd64", "4.19", "", "six.one"] {
            assert_eq!(state(old), State::Missing, "{old}");
        }
    }
}
