//! KVM: whether it opens and has what a VM needs, and whether hardware runs the guest. What is behind `/dev/kvm` the core says, in a
//! process that this command has started for that; nothing that it prints is relied on.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use confine::Spawn;
use rustix::{
    fs::{Mode, OFlags, open, stat},
    io::Errno,
};
use schema::{
    about_kvm::{ARGUMENT, Fact},
    programs::KVM_PROBE,
};

use super::{
    Check, host,
    probe::{self, Printed},
};

/// A software KVM takes a fifth of a second.
const DEADLINE: Duration = Duration::from_secs(10);
/// Instructions a second that tell hardware from software; they differ by three orders of magnitude.
const HARDWARE: u64 = 50_000_000;

/// The device, and whether it is backed by hardware.
pub fn checks() -> [Check; 2] {
    let kvm = match open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(kvm) => kvm,
        Err(errno) => {
            let speed = Check::missing("kvm-speed", "cannot be measured: /dev/kvm does not open", "see kvm");
            return [closed(errno), speed];
        }
    };
    let printed = host::folder().ok_or_else(|| "/proc/self/exe cannot be read".to_owned());
    match printed.and_then(|folder| ask(&folder.join(KVM_PROBE.program), kvm)) {
        Ok(printed) => [device(&printed), speed(&printed)],
        Err(why) => ["kvm", "kvm-speed"].map(|check| {
            Check::limited(
                check,
                format!("/dev/kvm opens, and what it gives cannot be found out: {why}"),
                "see programs",
            )
        }),
    }
}

/// The device that does not open.
fn closed(errno: Errno) -> Check {
    if let (Errno::ACCESS | Errno::PERM, Ok(stat)) = (errno, stat("/dev/kvm")) {
        let detail = format!("/dev/kvm: {errno}; it is group {}'s, mode {:o}", stat.st_gid, stat.st_mode & 0o777);
        let remedy = "add this user to that group, as a rule: usermod -aG kvm USER";
        return Check::missing("kvm", detail, remedy).vital();
    }
    let remedy = "modprobe kvm_intel or kvm_amd; in the firmware, or the outer VM's settings, allow virtualisation";
    Check::missing("kvm", format!("/dev/kvm: {errno}"), remedy).vital()
}

fn ask(program: &Path, kvm: OwnedFd) -> Result<Printed, String> {
    let mut spawn = Spawn::new(program);
    let number = spawn.fd(kvm);
    spawn.args([ARGUMENT, &number.to_string()]);
    probe::printed(spawn, DEADLINE)
}

/// The first of what it printed that `of` takes.
fn find<T>(printed: &Printed, of: impl Fn(Fact) -> Option<T>) -> Option<T> {
    printed.lines.iter().filter_map(|line| line.parse().ok()).find_map(of)
}

fn device(printed: &Printed) -> Check {
    let said = find(printed, |fact| match fact {
        Fact::NotKvm => Some(Err(("/dev/kvm is not KVM, or not of API version 12".into(), "see what made that file"))),
        Fact::Lacks(lacks) => Some(Err((format!("it lacks {lacks}"), "a newer kernel"))),
        Fact::Vcpus(most) => Some(Ok(most)),
        Fact::Speed(_) | Fact::NoSpeed(_) => None,
    });
    match said.unwrap_or_else(|| Err((unsaid(printed), "see what the kernel says: dmesg"))) {
        Ok(most) => Check::ok("kvm", format!("API version 12, up to {most} vCPUs a VM")),
        Err((detail, remedy)) => Check::missing("kvm", detail, remedy).vital(),
    }
}

fn speed(printed: &Printed) -> Check {
    let said = find(printed, |fact| match fact {
        Fact::Speed(rate) => Some(Ok(rate)),
        Fact::NoSpeed(why) => Some(Err((why, "see kvm"))),
        _ => None,
    });
    match said.unwrap_or_else(|| Err((unsaid(printed), "see what the kernel says: dmesg"))) {
        Ok(rate) => judge(rate),
        Err((detail, remedy)) => Check::missing("kvm-speed", detail, remedy).vital(),
    }
}

/// What became of an answer that is not there.
fn unsaid(printed: &Printed) -> String {
    if !printed.ended {
        return format!("a guest of a few instructions did not end in {} s", DEADLINE.as_secs());
    }
    // A panic's message has two lines.
    let last = printed.lines.get(printed.lines.len().saturating_sub(2)..).unwrap_or_default().join(" ");
    let last = if last.is_empty() { "nothing" } else { &last };
    format!("{} ended without an answer; the last that it said: {last}", KVM_PROBE.program)
}

fn judge(rate: u64) -> Check {
    let detail = format!("{:.1} million instructions/s", rate as f64 / 1e6);
    if rate >= HARDWARE {
        return Check::ok("kvm-speed", format!("{detail}: backed by hardware"));
    }
    let remedy =
        "a machine with VT-x or AMD-V, or an outer VM with nested virtualisation: stock kernels take hours here";
    Check::limited("kvm-speed", format!("{detail}: not backed by hardware"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn software_is_told_from_hardware_by_its_speed() {
        assert_eq!(judge(4_200_000).state, State::Limited);
        assert!(judge(4_200_000).detail.contains("4.2 million"));
        for (rate, state) in [(HARDWARE - 1, State::Limited), (HARDWARE, State::Ok), (u64::MAX, State::Ok)] {
            assert_eq!(judge(rate).state, state, "{rate}");
        }
    }

    /// What is made of a core that is this shell script.
    fn answered(script: &str, limit: Duration) -> [Check; 2] {
        let mut spawn = Spawn::new(Path::new("/bin/sh"));
        spawn.args(["-c", script]);
        let printed = probe::printed(spawn, limit).unwrap();
        [device(&printed), speed(&printed)]
    }

    #[test]
    fn core_s_answer_is_judged_whatever_else_it_says() {
        let told = |script| answered(script, DEADLINE);
        let [device, speed] = told("echo vcpus 8; echo speed 60000000");
        assert_eq!((device.state, speed.state), (State::Ok, State::Ok));
        assert!(device.detail.contains("up to 8 vCPUs"), "{device:?}");
        let [device, speed] = told("echo not-kvm; echo no-speed because");
        assert_eq!((device.state, device.vital, speed.detail.as_str()), (State::Missing, true, "because"));
        let [device, _] = told("echo lacks irqfd >&2");
        assert_eq!(device.detail, "it lacks irqfd");
        let [device, speed] = told("echo vcpus 8; kill -SYS $$");
        assert_eq!((device.state, speed.state, speed.vital), (State::Ok, State::Missing, true));
        assert!(speed.detail.contains("vcpus 8"), "{speed:?}");
        // Nothing, no text, more than is read, a terminal's escapes.
        for script in [":", r"printf '\377\376\n'", "exec yes speed", r"printf 'no-speed \033[2J\n'"] {
            for row in told(script) {
                assert!(row.detail.len() < 200 && !row.detail.chars().any(char::is_control), "{script}: {row:?}");
                assert_eq!((row.state, row.vital), (State::Missing, true), "{script}: {row:?}");
            }
        }
    }

    #[test]
    fn core_that_hangs_is_ended_and_keeps_its_first_answer() {
        let [_, speed] = answered("echo vcpus 8; exec sleep 600", Duration::from_secs(3));
        assert!(speed.state == State::Missing && speed.detail.contains("did not end"), "{speed:?}");
        let hung = Printed { lines: vec!["vcpus 8".into()], ended: false };
        assert_eq!((device(&hung).state, super::speed(&hung).detail), (State::Ok, speed.detail));
    }

    #[test]
    fn core_that_is_not_there_is_named() {
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let why = ask(Path::new("/nowhere/core"), null).unwrap_err();
        assert!(why.contains("/nowhere/core"), "{why}");
    }
}
