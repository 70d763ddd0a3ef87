//! Virtual functions of network cards (SR-IOV): which interfaces have some, and how many of them nobody uses, by what sysfs says of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Check;

const CLASS: &str = "/sys/class/net";
/// The most cards that are told of.
const MOST: usize = 64;

/// What there is for networks of virtual functions. None is no lack: no other network takes one.
pub fn functions() -> Check {
    let mut cards: Vec<String> = fs::read_dir(CLASS)
        .into_iter()
        .flatten()
        .flatten()
        .take(MOST * 16)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            card(&name, &entry.path())
        })
        .take(MOST)
        .collect();
    cards.sort();
    let none = || "no network card has any; one is needed for a network of type sriov alone".to_owned();
    Check::ok("sriov", if cards.is_empty() { none() } else { cards.join("; ") })
}

/// What there is to say of an interface, if it can have virtual functions.
fn card(name: &str, interface: &Path) -> Option<String> {
    let device = interface.join("device");
    let number = |file: &str| fs::read_to_string(device.join(file)).ok()?.trim().parse::<usize>().ok();
    let (most, count) = (number("sriov_totalvfs").filter(|most| *most > 0)?, number("sriov_numvfs")?);
    if count == 0 {
        return Some(format!("{name} has none, of {most} (echo {most} > {}/sriov_numvfs)", device.display()));
    }
    let free = (0..count).filter(|number| is_free(&device.join(format!("virtfn{number}/net")))).count();
    Some(format!("{name} has {count}, {free} of them free"))
}

/// Whether one is likely so: its interface is there, down, and neither noted nor under another one. Whether it has addresses, sysfs does not say.
fn is_free(interfaces: &Path) -> bool {
    let Some(interface) = fs::read_dir(interfaces).into_iter().flatten().flatten().map(|entry| entry.path()).next()
    else {
        return false;
    };
    let text = |file: &str| fs::read_to_string(interface.join(file)).unwrap_or_default();
    let flags = u32::from_str_radix(text("flags").trim().trim_start_matches("0x"), 16);
    let is_up = flags.is_ok_and(|flags| flags & libc::IFF_UP.cast_unsigned() != 0);
    let is_over = |path: PathBuf| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("upper_") || name == "master"
        })
    };
    let mut beside = fs::read_dir(&interface).into_iter().flatten().flatten().map(|entry| entry.path());
    !is_up && text("ifalias").trim().is_empty() && !beside.any(is_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_with_their_functions_and_how_many_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        let write = |path: &str, text: &str| {
            let path = device.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(card("eth0", dir.path()), None);
        write("sriov_totalvfs", "0\n");
        write("sriov_numvfs", "0\n");
        assert_eq!(card("eth0", dir.path()), None, "as of one whose driver has none");
        write("sriov_totalvfs", "7\n");
        assert!(card("eth0", dir.path()).unwrap().starts_with("eth0 has none, of 7 (echo 7 > "));
        write("sriov_numvfs", "6\n");
        for (number, (flags, alias, more)) in [
            ("0x1002", "", "mtu"),
            ("0x1003", "", "mtu"),
            ("0x1002", "mine\n", "mtu"),
            ("0x1002", "\n", "upper_v0"),
            ("0x1002", "", "master"),
        ]
        .into_iter()
        .enumerate()
        {
            for (file, text) in [("flags", flags), ("ifalias", alias), (more, "")] {
                write(&format!("virtfn{number}/net/v{number}/{file}"), text);
            }
        }
        // The last has another driver.
        assert_eq!(card("eth0", dir.path()).unwrap(), "eth0 has 6, 1 of them free");
    }
}
