//! Namespaces: each is tried, with a child that ends at once.

use rustix::{
    io::Errno,
    process::{Gid, Uid, geteuid},
    thread::{UnshareFlags, set_thread_res_gid, set_thread_res_uid, unshare_unsafe},
};

use super::{Check, probe};

/// Those that a VM's processes get beside a user namespace.
const OTHERS: [(&str, libc::c_int); 6] = [
    ("mount", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
];

/// A user without rights.
const NOBODY: u32 = 65534;

/// User namespaces, and that one gives the rights it should: some hosts let it be made but forbid everything in it.
pub fn users() -> Check {
    let tried = probe::in_child(0, || {
        if geteuid().is_root() {
            // A VM's user makes them, not root, whom the kernel forbids nothing.
            let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
        }
        // SAFETY: it takes nothing that this process, which ends soon, refers to.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
        // SAFETY: takes strings that end, and null where the kernel reads nothing. The mounts are a new namespace's.
        let done = unsafe {
            let root = c"/".as_ptr();
            libc::mount(std::ptr::null(), root, std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE, std::ptr::null())
        };
        if done == 0 { Ok(()) } else { Err(probe::last_errno()) }
    });
    judge(tried, &Settings::read())
}

/// What administrators set to forbid them. `None`: this kernel has no such setting.
struct Settings {
    most: Option<u64>,
    unprivileged: Option<u64>,
    apparmor: Option<u64>,
}

impl Settings {
    fn read() -> Settings {
        Settings {
            most: probe::number("/proc/sys/user/max_user_namespaces"),
            unprivileged: probe::number("/proc/sys/kernel/unprivileged_userns_clone"),
            apparmor: probe::number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }
}

fn judge(tried: Result<(), Errno>, settings: &Settings) -> Check {
    let Settings { most, unprivileged, apparmor } = settings;
    let errno = match tried {
        Ok(()) => {
            let most = most.map_or("of an unknown number".into(), |most| format!("of at most {most}"));
            return Check::ok("user-namespaces", format!("made one {most}, with full rights in it"));
        }
        Err(errno) => errno,
    };
    let remedy = if *most == Some(0) {
        "sysctl user.max_user_namespaces=10000"
    } else if *unprivileged == Some(0) {
        "sysctl kernel.unprivileged_userns_clone=1"
    } else if *apparmor == Some(1) {
        "an AppArmor profile that allows volt userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else if errno == Errno::NOSPC {
        "sysctl user.max_user_namespaces larger, or fewer nested namespaces"
    } else if errno == Errno::INVAL || errno == Errno::NOSYS {
        "a kernel with CONFIG_USER_NS"
    } else {
        "let the outer sandbox (a container's seccomp filter, say) allow user namespaces"
    };
    Check::missing("user-namespaces", format!("cannot be made: {errno}"), remedy)
}

/// The other namespaces; `owned`: within a user namespace, as every user may have them there.
pub fn others(owned: bool) -> Check {
    let user = if owned { libc::CLONE_NEWUSER } else { 0 };
    let failed: Vec<String> = OTHERS
        .iter()
        .filter_map(|(name, flag)| Some(format!("{name}: {}", probe::in_child(user | flag, || Ok(())).err()?)))
        .collect();
    if failed.is_empty() {
        return Check::ok("namespaces", OTHERS.map(|(name, _)| name).join(", "));
    }
    let remedy = if owned { "a kernel with these namespaces" } else { "see user-namespaces, or run as root" };
    Check::missing("namespaces", format!("cannot be made: {}", failed.join("; ")), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn remedy_names_the_setting_that_forbids_user_namespaces() {
        let settings = |most, unprivileged, apparmor| Settings { most, unprivileged, apparmor };
        let remedy = |errno, settings| judge(Err(errno), &settings).remedy.unwrap();
        assert!(remedy(Errno::NOSPC, settings(Some(0), None, None)).contains("max_user_namespaces=10000"));
        assert!(remedy(Errno::PERM, settings(Some(9), Some(0), None)).contains("unprivileged_userns_clone=1"));
        assert!(remedy(Errno::ACCESS, settings(Some(9), Some(1), Some(1))).contains("AppArmor"));
        assert!(remedy(Errno::NOSPC, settings(Some(9), None, None)).contains("larger"));
        assert!(remedy(Errno::INVAL, settings(None, None, None)).contains("CONFIG_USER_NS"));
        assert!(remedy(Errno::PERM, settings(Some(9), None, Some(0))).contains("outer sandbox"));
        assert_eq!(judge(Ok(()), &settings(Some(9), Some(0), Some(1))).state, State::Ok);
    }
}
