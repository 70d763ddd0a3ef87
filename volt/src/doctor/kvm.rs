//! KVM: whether it opens and has what a VM needs, and whether hardware runs the guest.

use std::{
    os::fd::OwnedFd,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open, stat},
    io::Errno,
};
use vmm_core::host::{self, HARDWARE};

use super::Check;

/// A software KVM takes a fifth of a second.
const DEADLINE: Duration = Duration::from_secs(10);

fn open_kvm() -> Result<OwnedFd, Errno> {
    open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// The device.
pub fn device() -> Check {
    let absent = |detail: String, remedy: &str| Check::missing("kvm", detail, remedy).vital();
    let kvm = match open_kvm() {
        Ok(kvm) => kvm,
        Err(errno) => {
            if let (Errno::ACCESS | Errno::PERM, Ok(stat)) = (errno, stat("/dev/kvm")) {
                let detail =
                    format!("/dev/kvm: {errno}; it is group {}'s, mode {:o}", stat.st_gid, stat.st_mode & 0o777);
                return absent(detail, "add this user to that group, as a rule: usermod -aG kvm USER");
            }
            let remedy =
                "modprobe kvm_intel or kvm_amd; in the firmware, or the outer VM's settings, allow virtualisation";
            return absent(format!("/dev/kvm: {errno}"), remedy);
        }
    };
    match host::abilities(kvm) {
        None => absent("/dev/kvm is not KVM, or not of API version 12".into(), "see what made that file"),
        Some(host::Abilities { lacks: Some(lacks), .. }) => absent(format!("it lacks {lacks}"), "a newer kernel"),
        Some(host::Abilities { vcpus, .. }) => Check::ok("kvm", format!("API version 12, up to {vcpus} vCPUs a VM")),
    }
}

/// Whether it is backed by hardware, by timing a guest of a few instructions.
pub fn speed() -> Check {
    let Ok(kvm) = open_kvm() else {
        return Check::missing("kvm-speed", "cannot be measured: /dev/kvm does not open", "see kvm");
    };
    let (sender, result) = channel();
    // A KVM that hangs takes its thread with it, not this command.
    thread::spawn(move || sender.send(host::instructions_per_second(kvm)));
    match result.recv_timeout(DEADLINE) {
        Ok(Ok(rate)) => judge(rate),
        Ok(Err(error)) => Check::missing("kvm-speed", ipc::chain(&error), "see kvm").vital(),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let detail = format!("a guest of a few instructions did not end in {} s", DEADLINE.as_secs());
            Check::missing("kvm-speed", detail, "see what the kernel says: dmesg").vital()
        }
    }
}

fn judge(rate: f64) -> Check {
    let detail = format!("{:.1} million instructions/s", rate / 1e6);
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
        assert_eq!(judge(4.2e6).state, State::Limited);
        assert!(judge(4.2e6).detail.contains("4.2 million"));
        assert_eq!(judge(1.5e9).state, State::Ok);
    }
}
