//! Control groups: version, controllers, and whether groups of VMs and of services can be made at the top of the hierarchy, as Volt
//! does.

use std::path::PathBuf;

use rustix::fs::{Access, access};

use super::{Check, probe};

/// What a VM's processes are limited by.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// What comes of it where they are not all there.
const WITHOUT: &str = "VMs have no limits of memory and CPU, and services no reserve of memory";

/// The groups as this process meets them.
pub fn check() -> Check {
    let read = |path: &str| probe::read(path).unwrap_or_default();
    let groups = Groups::parse(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"));
    let controllers = groups.top.as_ref().and_then(|top| probe::read(top.join("cgroup.controllers").to_str()?).ok());
    let writable = groups.top.as_ref().is_some_and(|top| access(top, Access::WRITE_OK | Access::EXEC_OK).is_ok());
    judge(&groups, controllers.as_deref(), writable)
}

/// What `/proc/self/cgroup` and the mounts say.
#[derive(Debug, PartialEq)]
struct Groups {
    /// Where the v2 hierarchy is mounted.
    top: Option<PathBuf>,
    /// Controllers that v1 hierarchies have.
    v1: Vec<String>,
}

impl Groups {
    fn parse(groups: &str, mounts: &str) -> Groups {
        // "36 35 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
        let top = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4)).flatten()
        });
        // "8:pids:/" and "2:cpu,cpuacct:/" are v1, and so is "1:name=systemd:/", without controllers; "0::/user.slice" is v2.
        let named = groups.lines().filter_map(|line| line.split(':').nth(1)).flat_map(|names| names.split(','));
        let mut v1: Vec<String> = named.filter(|n| !n.is_empty() && !n.contains('=')).map(str::to_owned).collect();
        v1.sort_unstable();
        Groups { top: top.map(PathBuf::from), v1 }
    }
}

fn judge(groups: &Groups, controllers: Option<&str>, writable: bool) -> Check {
    let v1 = if groups.v1.is_empty() { "none".into() } else { groups.v1.join(" ") };
    let boot = "mount cgroup2 with these controllers: boot with systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all";
    let (Some(top), Some(controllers)) = (&groups.top, controllers) else {
        return Check::missing("cgroups", format!("no v2; controllers of v1: {v1}; {WITHOUT}"), boot);
    };
    let top = top.display();
    let has = |name: &&str| controllers.split_whitespace().any(|one| one == *name);
    let absent: Vec<&str> = WANTED.into_iter().filter(|name| !has(name)).collect();
    if absent.len() == WANTED.len() {
        return Check::missing(
            "cgroups",
            format!("v2 at {top} has none of cpu, memory, pids; controllers of v1: {v1}; {WITHOUT}"),
            boot,
        );
    }
    if !absent.is_empty() {
        return Check::limited(
            "cgroups",
            format!("v2 at {top} lacks {}; controllers of v1: {v1}; {WITHOUT}", absent.join(", ")),
            boot,
        );
    }
    if !writable {
        return Check::limited("cgroups", format!("v2 at {top}, where this user cannot make a group"), "run as root");
    }
    Check::ok("cgroups", format!("v2 at {top}, with {controllers}; groups can be made"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    const V2: &str = "36 35 0:30 / /sys/fs/cgroup rw,nosuid,nodev shared:9 - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn unified_hybrid_and_v1_hosts_are_told_apart() {
        let top = || Some("/sys/fs/cgroup".into());
        assert_eq!(Groups::parse("0::/user.slice/session-3.scope", V2), Groups { top: top(), v1: vec![] });
        let hybrid = "9:name=systemd:/\n8:pids:/\n2:cpu,cpuacct:/\n0::/";
        let names = ["cpu", "cpuacct", "pids"].map(str::to_owned).to_vec();
        assert_eq!(Groups::parse(hybrid, V2), Groups { top: top(), v1: names.clone() });
        let v1 = "22 1 0:5 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids";
        assert_eq!(Groups::parse(hybrid, v1), Groups { top: None, v1: names });
        for (groups, mounts) in [("", ""), ("0\n::\nx", "a - cgroup2 ")] {
            assert_eq!(Groups::parse(groups, mounts), Groups { top: None, v1: vec![] });
        }
    }

    #[test]
    fn state_follows_from_controllers_and_rights() {
        let v2 = Groups { top: Some("/sys/fs/cgroup".into()), v1: vec![] };
        let state = |controllers, writable| judge(&v2, controllers, writable).state;
        assert_eq!(state(Some("cpuset cpu io memory pids"), true), State::Ok);
        assert_eq!(state(Some("cpuset cpu io memory pids"), false), State::Limited);
        assert_eq!(state(Some("memory pids"), true), State::Limited);
        assert_eq!(state(Some("cpuset"), true), State::Missing);
        assert_eq!(state(None, true), State::Missing);
        let v1 = judge(&Groups { top: None, v1: vec!["pids".into()] }, None, false);
        assert_eq!(v1.state, State::Missing);
        assert!(v1.detail.contains("v1: pids"));
    }
}
