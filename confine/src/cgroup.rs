//! A cgroup (v2) with limits, for all processes of one VM, and the one of services and helpers.
//!
//! Takes root: the files are root's. Volt's cgroups are below `volt-vmm` at the top of the hierarchy.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::error::Error;

/// What the limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Microseconds in which `cpu.max` counts.
const PERIOD: u64 = 100_000;

/// What a cgroup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Bytes of memory, the kernel's own for it and the page cache included. Past it the whole cgroup is killed.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Processors' worth of time.
    pub cpus: u64,
}

/// Processes and threads of the cgroup of services: three services, and a janitor for each VM.
const SERVICE_PIDS: u64 = 4096;
/// Bytes that the host takes from others first, when it runs out of memory.
const SERVICE_MEMORY: u64 = 64 << 20;

/// A cgroup's place. What is [`make`](Cgroup::make)de there stays until it is [`remove`](Cgroup::remove)d.
#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// The cgroup that holds all others of Volt's, at the top of the hierarchy.
    pub const PARENT: &str = "volt-vmm";
    /// That of services and helpers in it, beside those of VMs.
    pub const SERVICES: &str = "services";

    /// Where the cgroup `name` is to be. Makes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::NoCgroup`] where version 2 is not mounted.
    pub fn place(name: &str) -> Result<Cgroup, Error> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| Error::NoCgroup(e.to_string()))?;
        hierarchy(&mounts).map(|top| Cgroup(top.join(Cgroup::PARENT).join(name)))
    }

    /// Makes it, in place of one that a process which was killed has left.
    ///
    /// # Errors
    ///
    /// [`Error::NoCgroup`] where the host has none to give, and says why. Nothing of it is left then.
    pub fn make(&self, limits: CgroupLimits) -> Result<(), Error> {
        self.make_with(&[
            ("memory.max", limits.memory.to_string()),
            ("memory.oom.group", "1".into()),
            ("pids.max", limits.pids.to_string()),
            ("cpu.max", format!("{} {PERIOD}", limits.cpus.saturating_mul(PERIOD))),
        ])
    }

    fn make_with(&self, settings: &[(&str, String)]) -> Result<(), Error> {
        let own = &self.0;
        let mut above = own.ancestors().skip(1);
        let (Some(parent), Some(top)) = (above.next(), above.next()) else {
            return Err(Error::NoCgroup(format!("{} is no place for one", own.display())));
        };
        let failed = |path: &Path, error: io::Error| Error::NoCgroup(format!("{}: {error}", path.display()));
        let make = |path: &Path| match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path, error)),
            _ => Ok(()),
        };
        let offer = |level: &Path| {
            let offered = read(&level.join("cgroup.controllers"))?;
            if let Some(missing) = CONTROLLERS.iter().find(|name| !offered.split_whitespace().any(|o| o == **name)) {
                let why = format!("{} has no {missing} controller (cgroup v1 may have it)", level.display());
                return Err(Error::NoCgroup(why));
            }
            let path = level.join("cgroup.subtree_control");
            fs::write(&path, CONTROLLERS.map(|name| format!("+{name}")).join(" ")).map_err(|e| failed(&path, e))
        };
        // Nothing is made, or left, where none can be used.
        if let Err(error) = offer(top).and_then(|()| make(parent)).and_then(|()| offer(parent)) {
            let _not_empty = fs::remove_dir(parent);
            return Err(error);
        }
        // One that is left over is empty, and has another VM's limits and counts.
        let _absent = fs::remove_dir(own);
        make(own)?;
        for (file, value) in settings {
            let path = own.join(file);
            if let Err(error) = fs::write(&path, value) {
                let _empty = fs::remove_dir(own);
                return Err(failed(&path, error));
            }
        }
        Ok(())
    }

    /// The one of services and helpers, made where it is not there yet. Where the host runs out of memory, it has a reserve.
    ///
    /// # Errors
    ///
    /// [`Error::NoCgroup`] where the host has none to give, and says why.
    pub fn services() -> Result<Cgroup, Error> {
        let cgroup = Cgroup::place(Cgroup::SERVICES)?;
        let reserve = ("memory.min", SERVICE_MEMORY.to_string());
        cgroup.make_with(&[("pids.max", SERVICE_PIDS.to_string()), reserve.clone()])?;
        // What is kept for one below has to be kept for all of them; no other asks for it.
        if let Some(all) = cgroup.0.parent() {
            let path = all.join(reserve.0);
            fs::write(&path, reserve.1).map_err(|e| Error::NoCgroup(format!("{}: {e}", path.display())))?;
        }
        Ok(cgroup)
    }

    /// What tells whether its limit of memory was passed.
    ///
    /// # Errors
    ///
    /// Where the cgroup is not there.
    pub fn watch_memory(&self) -> Result<MemoryWatch, Error> {
        let path = self.0.join("memory.events");
        File::open(&path).map(MemoryWatch).map_err(|e| Error::NoCgroup(format!("{}: {e}", path.display())))
    }

    /// The names of those that are there, of VMs and of whatever else.
    pub fn names() -> Vec<String> {
        let folder = Cgroup::place("").ok().map(|cgroup| fs::read_dir(cgroup.0));
        let entries = folder.into_iter().flatten().flatten().flatten();
        entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The same, for who sees the folder that it is in at `folder`.
    pub fn seen_in(&self, folder: &Path) -> Cgroup {
        Cgroup(self.0.file_name().map_or_else(|| folder.to_owned(), |name| folder.join(name)))
    }

    /// Moves the calling process into it; what it starts is in it as well.
    ///
    /// # Errors
    ///
    /// Where the kernel forbids it.
    pub fn enter(&self) -> Result<(), Error> {
        let path = self.0.join("cgroup.procs");
        fs::write(&path, "0").map_err(|e| Error::NoCgroup(format!("{}: {e}", path.display())))
    }

    /// Removes it, if no process is left in it. Whether it is gone, or never was.
    pub fn remove(&self) -> bool {
        match fs::remove_dir(&self.0) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Has the calling process leave whoever's cgroups it is in, in every hierarchy: for that of services where the hierarchy has limits
/// for them, for its top where not. Takes root.
pub(crate) fn enter_services() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let now = fs::read_to_string("/proc/self/cgroup")?;
    let mut failed = Ok(());
    for (kinds, top) in hierarchies(&mounts) {
        let own = match kinds.as_str() {
            "" => Cgroup::services().ok().map(|cgroup| cgroup.0),
            _ if kinds.split(',').any(|kind| kind == "pids") => services_in_version_1(&top).ok(),
            _ => None,
        };
        let into = own.unwrap_or_else(|| top.clone());
        // Moving takes the kernel a while.
        let path = into.strip_prefix(&top).map(|path| Path::new("/").join(path)).unwrap_or_default();
        let there = now.lines().any(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            parts.next() == Some(kinds.as_str()) && parts.next().map(Path::new) == Some(&path)
        });
        if !there && let Err(error) = fs::write(into.join("cgroup.procs"), "0") {
            failed = Err(io::Error::new(error.kind(), format!("{}: {error}", into.display())));
        }
    }
    failed
}

/// Version 1 has no reserve of memory to give.
fn services_in_version_1(top: &Path) -> io::Result<PathBuf> {
    let own = top.join(Cgroup::PARENT).join(Cgroup::SERVICES);
    fs::create_dir_all(&own)?;
    fs::write(own.join("pids.max"), SERVICE_PIDS.to_string())?;
    Ok(own)
}

/// All that are mounted, once each: what they control as `/proc/self/cgroup` has it (nothing for version 2), and where.
fn hierarchies(mountinfo: &str) -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mut parts = filesystem.split(' ');
        let kinds = match parts.next() {
            Some("cgroup2") => String::new(),
            // What it controls, or its name, among options of its own.
            Some("cgroup") => {
                let options = parts.nth(1).unwrap_or_default().split(',');
                let apart = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods"];
                let kinds = options.filter(|option| !apart.contains(option) && !option.starts_with("release_agent="));
                kinds.collect::<Vec<_>>().join(",")
            }
            _ => continue,
        };
        let Some(place) = mount.split(' ').nth(4) else { continue };
        if !found.iter().any(|(known, _)| *known == kinds) {
            found.push((kinds, place.into()));
        }
    }
    found
}

/// The kernel's counts of what a cgroup's limit of memory did, for who cannot open a file any more.
#[derive(Debug)]
pub struct MemoryWatch(File);

impl MemoryWatch {
    /// Bytes of each read, for a filter.
    pub const READ: usize = 128;

    /// Whether the kernel has ended processes of the cgroup for taking more than the limit.
    pub fn was_passed(self) -> bool {
        let (mut file, mut events, mut part) = (self.0, Vec::new(), [0; Self::READ]);
        while let Ok(n @ 1..) = file.read(&mut part) {
            events.extend(part.iter().take(n));
            // The kernel's file has some hundred bytes.
            if events.len() > 4096 {
                break;
            }
        }
        killed(&String::from_utf8_lossy(&events))
    }
}

impl AsFd for MemoryWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a cgroup's `memory.events` tell of processes that were killed, and of the cgroup's own want: the host's kills as well.
fn killed(events: &str) -> bool {
    let happened = |event: &str| {
        let count = events.lines().find_map(|line| line.strip_prefix(event)?.trim().parse::<u64>().ok());
        count.is_some_and(|count| count > 0)
    };
    happened("oom ") && happened("oom_kill ")
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|e| Error::NoCgroup(format!("{}: {e}", path.display())))
}

/// Where the unified hierarchy is mounted (proc_pid_mountinfo(5)).
fn hierarchy(mountinfo: &str) -> Result<PathBuf, Error> {
    let found = mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4))?
    });
    found.map(PathBuf::from).ok_or_else(|| Error::NoCgroup("cgroup v2 is not mounted".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CgroupLimits = CgroupLimits { memory: 1 << 20, pids: 7, cpus: 3 };

    #[test]
    fn unified_hierarchy_is_found_among_mounts_and_its_absence_said() {
        let v1 = "30 20 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n";
        let v2 = "31 20 0:27 / /sys/fs/cgroup rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(hierarchy(&format!("{v1}{v2}")).unwrap(), Path::new("/sys/fs/cgroup"));
        assert!(hierarchy(v1).unwrap_err().to_string().contains("not mounted"));
    }

    #[test]
    fn every_hierarchy_is_found_once_with_what_it_controls() {
        let mounts = "29 23 0:25 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
            30 29 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
            31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            32 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
            33 29 0:28 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n";
        let at = |place: &str| Path::new("/sys/fs/cgroup").join(place);
        assert_eq!(
            hierarchies(mounts),
            [("", "unified"), ("name=systemd", "systemd"), ("cpu,cpuacct", "cpu,cpuacct")]
                .map(|(kinds, place)| (kinds.to_owned(), at(place)))
        );
    }

    #[test]
    fn killed_processes_are_found_among_a_limit_s_events() {
        let events = |oom, kills| format!("low 0\nhigh 0\nmax 17\noom {oom}\noom_kill {kills}\noom_group_kill 1\n");
        assert!(killed(&events(1, 3)));
        // The second is the host's own want of memory.
        for none in [&events(1, 0), &events(0, 3), "", "oom 1\noom_kill x", "oom 1\noom_killer 1"] {
            assert!(!killed(none), "{none}");
        }
        let dir = tempfile::tempdir().unwrap();
        let cgroup = Cgroup(dir.path().to_owned());
        assert!(cgroup.watch_memory().is_err());
        for (content, passed) in
            [(events(1, 1), true), (events(1, 0), false), ("low 0\n".repeat(10_000) + &events(1, 1), false)]
        {
            fs::write(dir.path().join("memory.events"), content).unwrap();
            assert_eq!(cgroup.watch_memory().unwrap().was_passed(), passed);
        }
    }

    #[test]
    fn hierarchy_without_the_controllers_is_named_with_the_one_that_it_lacks() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("cgroup.controllers"), "cpuset cpu memory hugetlb\n").unwrap();
        let cgroup = Cgroup(top.path().join(Cgroup::PARENT).join("web.7"));
        let error = cgroup.make(LIMITS).unwrap_err().to_string();
        assert!(error.contains("no pids controller"), "{error}");
        assert!(!cgroup.path().parent().unwrap().exists() && cgroup.remove());
    }
}
