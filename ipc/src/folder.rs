//! Folders in which nobody else can put something of theirs in the place of ours. Makes and looks at folders; opens no file.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Makes `folder`, and those above it that are absent, for this user alone (mode 0700), or checks that what is there is this
/// user's, that no other user may write to it, and that none but root and this user can rename it or a folder above it.
/// Gives its path without symbolic links, which stays true: use that one.
pub fn private_folder(folder: &Path) -> io::Result<PathBuf> {
    private_folder_for(None, folder)
}

/// As [`private_folder`], for a service that will be `user`: the folder, but none above it, may be that user's already.
pub fn private_folder_for(user: Option<u32>, folder: &Path) -> io::Result<PathBuf> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // A link that somebody put there would choose for us.
    if !fs::symlink_metadata(folder)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory"));
    }
    let folder = firm_for(user, folder)?;
    let found = fs::symlink_metadata(&folder)?;
    if found.uid() != rustix::process::geteuid().as_raw() && Some(found.uid()) != user {
        return Err(denied(format!("{} belongs to user {}", folder.display(), found.uid())));
    }
    if writable_by_others(&found) {
        return Err(open_to_others(&folder, &found));
    }
    Ok(folder)
}

/// The path of a folder without symbolic links, where nobody but root and this user can move what this user has put in
/// it: each folder on the way belongs to one of them and is either closed to others or sticky, as /tmp is.
pub(crate) fn firm(folder: &Path) -> io::Result<PathBuf> {
    firm_for(None, folder)
}

fn firm_for(user: Option<u32>, folder: &Path) -> io::Result<PathBuf> {
    // A relative name of one step has an empty parent.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = folder.canonicalize()?;
    let own = rustix::process::geteuid().as_raw();
    for (above, step) in folder.ancestors().enumerate() {
        let found = fs::symlink_metadata(step)?;
        if !found.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a directory", step.display())));
        }
        let users = above == 0 && Some(found.uid()) == user;
        if found.uid() != 0 && found.uid() != own && !users {
            return Err(denied(format!("{} belongs to user {}", step.display(), found.uid())));
        }
        if writable_by_others(&found) && found.mode() & libc::S_ISVTX == 0 {
            return Err(open_to_others(step, &found));
        }
    }
    Ok(folder)
}

/// Whether others may write to it. The group of root, and that of this user alone (where, as many distributions have it, it has
/// the user's number), are no others.
fn writable_by_others(found: &fs::Metadata) -> bool {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let own_group = found.gid() == 0 || (found.gid() == group && group == user);
    found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && !own_group)
}

fn open_to_others(folder: &Path, found: &fs::Metadata) -> io::Error {
    denied(format!("others may write to {} (mode {:o})", folder.display(), found.mode() & 0o7777))
}

fn denied(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_is_made_for_its_user_alone_with_those_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        assert_eq!(private_folder(&deep).unwrap(), deep.canonicalize().unwrap());
        for made in [dir.path().join("a"), deep] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_folder_of_the_service_s_user_is_taken_for_that_user_and_none_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("f");
        private_folder(&folder).unwrap();
        if chown(&folder, Some(4713), Some(4713)).is_err() {
            return testkit::skip!("becoming another user takes root");
        }
        private_folder_for(Some(4713), &folder).unwrap();
        assert!(private_folder_for(Some(4714), &folder).is_err());
        assert!(private_folder(&folder).is_err());
        assert!(private_folder_for(Some(4713), &folder.join("g")).is_err());
    }

    #[test]
    fn a_folder_that_others_may_read_is_taken_and_one_that_they_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("f");
        fs::create_dir(&folder).unwrap();
        for (bits, taken) in [(0o700, true), (0o755, true), (0o702, false), (0o777, false), (0o1777, false)] {
            mode(&folder, bits);
            assert_eq!(private_folder(&folder).is_ok(), taken, "{bits:o}");
        }
        mode(&folder, 0o770);
        if chown(&folder, None, Some(4713)).is_ok() {
            assert!(private_folder(&folder).is_err(), "another group may write to it");
        }
    }

    #[test]
    fn a_folder_above_may_be_sticky_and_may_not_be_open() {
        let dir = tempfile::tempdir().unwrap();
        let (above, folder) = (dir.path().join("above"), dir.path().join("above/f"));
        private_folder(&folder).unwrap();
        for (bits, taken) in [(0o755, true), (0o1777, true), (0o777, false)] {
            mode(&above, bits);
            assert_eq!(private_folder(&folder).is_ok(), taken, "{bits:o}");
            assert_eq!(firm(&folder).is_ok(), taken, "{bits:o}");
        }
    }

    #[test]
    fn a_folder_of_another_user_or_below_one_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return testkit::skip!("giving folders away takes root");
        }
        let dir = tempfile::tempdir().unwrap();
        let (above, folder) = (dir.path().join("above"), dir.path().join("above/f"));
        private_folder(&folder).unwrap();
        for theirs in [&folder, &above] {
            chown(theirs, Some(4713), None).unwrap();
            let error = private_folder(&folder).unwrap_err();
            assert!(error.to_string().contains("belongs to user 4713"), "{error}");
            chown(theirs, Some(0), None).unwrap();
            private_folder(&folder).unwrap();
        }
    }

    #[test]
    fn a_symbolic_link_is_refused_as_the_folder_and_resolved_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        private_folder(&real).unwrap();
        symlink(&real, &link).unwrap();
        assert!(private_folder(&link).is_err());
        let below = private_folder(&link.join("f")).unwrap();
        assert_eq!(below, real.canonicalize().unwrap().join("f"));
        // Where it leads is what counts.
        mode(&real, 0o777);
        assert!(private_folder(&link.join("f")).is_err());
    }
}
