//! Files and the loop devices that are made of them, as sysfs tells.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What sysfs says of a loop device's file, if it is one: its path when it was set up.
fn named_in(device: &Path) -> Option<PathBuf> {
    let name = fs::read_to_string(device.join("loop/backing_file")).ok()?;
    Some(PathBuf::from(name.strip_suffix('\n').unwrap_or(&name)))
}

/// The file behind a loop device or a partition of one, opened for the same.
pub fn file_of(device: &Metadata, read_only: bool) -> Option<File> {
    let number = device.rdev();
    let device = format!("/sys/dev/block/{}:{}", libc::major(number), libc::minor(number));
    let device = fs::canonicalize(device).ok()?;
    let path = named_in(&device).or_else(|| named_in(device.parent()?))?;
    File::options().read(true).write(!read_only).open(path).ok()
}

/// The loop device that has this file, if one has: where both are only read there is no harm.
pub fn device_of(file: &Metadata, read_only: bool) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let found = fs::metadata(named_in(&entry.path())?).ok()?;
        let harmless = || read_only && fs::read_to_string(entry.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
        let same = (found.dev(), found.ino()) == (file.dev(), file.ino());
        (same && !harmless()).then(|| format!("/dev/{}", entry.file_name().to_string_lossy()))
    })
}
