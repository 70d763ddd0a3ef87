//! Cgroups that tests make in the host's hierarchies, and the end of those that tests have left which were killed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Once,
};

use crate::host::{kill, until};

/// What the names of them all begin with; behind it comes the number of the test program that made it.
const OURS: &str = "volt-test-";
/// What has those that are frozen go on, in version 1 and in version 2: they do not end before that, whatever they are sent.
const THAWS: [(&str, &str); 2] = [("freezer.state", "THAWED"), ("cgroup.freeze", "0")];

/// Where hierarchies of that type are mounted, with their options: `cgroup` for version 1, `cgroup2`.
pub fn hierarchies(kind: &str) -> Vec<(PathBuf, String)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut words = filesystem.split(' ');
        (words.next()? == kind).then_some(())?;
        Some((mount.split(' ').nth(4)?.into(), words.nth(1)?.to_owned()))
    });
    found.collect()
}

/// One of this program's, in a hierarchy.
pub fn own(hierarchy: &Path, name: &str) -> PathBuf {
    static CLEARED: Once = Once::new();
    CLEARED.call_once(clear);
    let path = hierarchy.join(format!("{OURS}{}-{name}", std::process::id()));
    fs::create_dir(&path).unwrap();
    path
}

/// One in a hierarchy of that type whose mount has `option`; `None` if there is none.
pub fn own_of(kind: &str, option: &str, name: &str) -> Option<PathBuf> {
    let fits = |options: &str| option.is_empty() || options.split(',').any(|word| word == option);
    let (hierarchy, _) = hierarchies(kind).into_iter().find(|(_, options)| fits(options))?;
    Some(own(&hierarchy, name))
}

/// Removes one, in which there was something until a moment ago.
pub fn remove(cgroup: &Path) {
    until("nobody is in the cgroup", || fs::remove_dir(cgroup).map_err(|e| format!("{}: {e}", cgroup.display())));
}

/// Ends what runs in those whose makers do not any more.
fn clear() {
    let folders = ["cgroup", "cgroup2"].into_iter().flat_map(hierarchies).map(|(top, _)| top);
    let cgroups = folders.flat_map(|top| fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path()));
    for cgroup in cgroups {
        let maker = cgroup.file_name().and_then(|name| name.to_str()?.strip_prefix(OURS)?.split_once('-'));
        let Some((maker, _)) = maker.filter(|(maker, _)| maker.parse::<u32>().is_ok()) else { continue };
        if Path::new("/proc").join(maker).exists() {
            continue;
        }
        for (file, thawed) in THAWS {
            let _is_of_the_other_version = fs::write(cgroup.join(file), thawed);
        }
        let within = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        within.lines().filter_map(|pid| pid.parse().ok()).for_each(|pid| kill(pid, libc::SIGKILL));
        remove(&cgroup);
    }
}

#[test]
fn cgroup_of_a_test_that_was_killed_goes_with_what_is_frozen_in_it() {
    let kinds = [("cgroup", "freezer", "freezer.state", "FROZEN"), ("cgroup2", "", "cgroup.freeze", "1")];
    for (kind, option, file, frozen) in kinds {
        let Some(kept) = own_of(kind, option, "kept") else { continue };
        let mut maker = std::process::Command::new("true").spawn().unwrap();
        let mut within = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let left = kept.with_file_name(format!("{OURS}{}-left", maker.id()));
        maker.wait().unwrap();
        fs::create_dir(&left).unwrap();
        fs::write(left.join("cgroup.procs"), within.id().to_string()).unwrap();
        fs::write(left.join(file), frozen).unwrap();
        let reaper = std::thread::spawn(move || within.wait().unwrap());
        clear();
        assert!(!left.exists() && kept.exists());
        assert!(!reaper.join().unwrap().success());
        remove(&kept);
    }
}
