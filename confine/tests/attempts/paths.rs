//! Landlock on paths: what is denied, and what an allowed directory or file still gives.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use confine::{Capability, Error};
use libc::EACCES;

use crate::harness::{attempt, confined, done, exit, is_refused, is_root, sandbox};

fn write(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(true).open(path)?.write_all(b"text")
}

fn make_node(path: &Path, mode: u32) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `path` outlives the call.
    done(unsafe { libc::mknod(path.as_ptr(), mode, 0) })
}

/// Executes `path` in a fork; succeeds if that ran.
fn execute(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let argv = [path.as_ptr(), std::ptr::null()];
    let mut status = 0;
    // SAFETY: the calls' pointers outlive them; the fork's child ends in it.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            libc::execv(path.as_ptr(), argv.as_ptr());
            exit(*libc::__errno_location());
        }
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
    }
    match libc::WEXITSTATUS(status) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[test]
fn without_allowed_paths_nothing_can_be_read_listed_made_truncated_or_removed() {
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write(&file).unwrap();
        fs::read(&file).unwrap();
        fs::read("/proc/self/status").unwrap();
        fs::read_dir(dir.path()).unwrap();
        write(&dir.path().join("other")).unwrap();
        fs::remove_file(dir.path().join("other")).unwrap();
        let confined = confined();
        is_refused(fs::read(&file), EACCES);
        is_refused(fs::read("/proc/self/status"), EACCES);
        is_refused(fs::read_dir(dir.path()), EACCES);
        is_refused(write(&file), EACCES);
        is_refused(write(&dir.path().join("other")), EACCES);
        is_refused(fs::create_dir(dir.path().join("d")), EACCES);
        is_refused(fs::remove_file(&file), EACCES);
        let path = CString::new(file.as_os_str().as_bytes()).unwrap();
        // SAFETY: `path` outlives the call.
        is_refused(done(unsafe { libc::truncate(path.as_ptr(), 0) }), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn a_file_that_was_kept_open_stays_usable() {
    attempt(|| {
        let mut file = tempfile::tempfile().unwrap();
        let confined = sandbox().keep_fd(file.as_raw_fd()).confine().unwrap();
        file.write_all(b"text").unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        drop(confined);
    })
    .passes();
}

#[test]
fn allow_dir_rw_gives_files_and_directories_beneath_and_nothing_beside() {
    attempt(|| {
        let (dir, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (inside, outside) = (dir.path().join("file"), beside.path().join("file"));
        write(&outside).unwrap();
        let confined = sandbox().allow_dir_rw(dir.path()).confine().unwrap();
        write(&inside).unwrap();
        assert_eq!(fs::read(&inside).unwrap(), b"text");
        OpenOptions::new().write(true).open(&inside).unwrap().set_len(1).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::rename(&inside, dir.path().join("sub/file")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::remove_file(dir.path().join("sub/file")).unwrap();
        fs::remove_dir(dir.path().join("sub")).unwrap();
        write(&inside).unwrap();
        is_refused(fs::read(&outside), EACCES);
        is_refused(write(&outside), EACCES);
        is_refused(fs::read_dir(beside.path()), EACCES);
        is_refused(fs::rename(&inside, beside.path().join("moved")), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn allow_dir_rw_gives_no_execution_and_no_special_files() {
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::copy("/bin/true", &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let special = dir.path().join("special");
        execute(&program).unwrap();
        execute(Path::new("/bin/true")).unwrap();
        for mode in [libc::S_IFIFO, libc::S_IFSOCK] {
            make_node(&special, mode | 0o600).unwrap();
            fs::remove_file(&special).unwrap();
        }
        std::os::unix::fs::symlink("/etc", &special).unwrap();
        fs::remove_file(&special).unwrap();
        let confined = sandbox().allow_dir_rw(dir.path()).confine().unwrap();
        is_refused(execute(&program), EACCES);
        is_refused(execute(Path::new("/bin/true")), EACCES);
        is_refused(make_node(&special, libc::S_IFIFO | 0o600), EACCES);
        is_refused(make_node(&special, libc::S_IFSOCK | 0o600), EACCES);
        is_refused(std::os::unix::fs::symlink("/etc", &special), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn device_nodes_cannot_be_made_where_files_can_even_with_the_capability() {
    if !is_root() {
        return;
    }
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let null = dir.path().join("null");
        make_node(&null, libc::S_IFCHR | 0o600).unwrap();
        fs::remove_file(&null).unwrap();
        let kept = sandbox().keep_capability(Capability::CAP_MKNOD).allow_dir_rw(dir.path());
        let confined = kept.confine().unwrap();
        is_refused(make_node(&null, libc::S_IFCHR | 0o600), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn allow_dir_ro_gives_reading_and_no_writing() {
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write(&file).unwrap();
        let confined = sandbox().allow_dir_ro(dir.path()).confine().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"text");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        is_refused(write(&file), EACCES);
        is_refused(write(&dir.path().join("other")), EACCES);
        is_refused(fs::remove_file(&file), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn allow_dir_exec_gives_programs_beneath_and_no_writing() {
    attempt(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        // Static, so that nothing but itself has to be reachable.
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let list = |program: &Path| {
            let mut spawn = confine::Spawn::new(program);
            spawn.arg("--list");
            spawn.spawn().map(|mut child| assert!(child.wait().unwrap().success()))
        };
        execute(Path::new("/bin/true")).unwrap();
        list(&program).unwrap();
        let null = Path::new("/dev/null"); // Every child's standard input.
        let confined = sandbox().allow_dir_exec(dir.path()).allow_file_rw(null).confine().unwrap();
        list(&program).unwrap();
        is_refused(execute(Path::new("/bin/true")), EACCES);
        is_refused(write(&program), EACCES);
        is_refused(fs::read_dir(dir.path()), EACCES);
        drop(confined);
    })
    .passes();
}

/// Makes a TAP in this process's network namespace.
fn make_tap() -> io::Result<File> {
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero request is valid; the kernel reads and writes within it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        done(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request))?;
    }
    Ok(tun)
}

#[test]
fn allow_file_rw_gives_a_device_with_its_ioctls_and_a_directory_does_not() {
    if !is_root() {
        return;
    }
    // SAFETY: gives the attempt's process a network namespace of its own.
    let own_network = || done(unsafe { libc::unshare(libc::CLONE_NEWNET) }).unwrap();
    attempt(move || {
        own_network();
        let kept = sandbox().keep_capability(Capability::CAP_NET_ADMIN);
        let confined = kept.allow_file_rw(Path::new("/dev/net/tun")).confine().unwrap();
        make_tap().unwrap();
        is_refused(File::open("/dev/null"), EACCES);
        drop(confined);
    })
    .passes();
    attempt(move || {
        own_network();
        make_tap().unwrap();
        let kept = sandbox().keep_capability(Capability::CAP_NET_ADMIN);
        let confined = kept.allow_dir_rw(Path::new("/dev/net")).confine().unwrap();
        OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
        is_refused(make_tap(), EACCES);
        drop(confined);
    })
    .passes();
}

#[test]
fn a_path_that_is_missing_or_of_the_wrong_kind_is_named() {
    attempt(|| {
        let error = sandbox().allow_dir_rw(Path::new("/nowhere/at/all")).confine().err().unwrap();
        assert!(matches!(&error, Error::Path { path, .. } if path == Path::new("/nowhere/at/all")), "{error}");
        assert!(error.to_string().contains("/nowhere/at/all"));
    })
    .passes();
    attempt(|| {
        let error = sandbox().allow_dir_ro(Path::new("/dev/null")).confine().err().unwrap();
        assert!(matches!(error, Error::PathKind { wanted: "directory", .. }), "{error}");
    })
    .passes();
    attempt(|| {
        let error = sandbox().allow_file_rw(Path::new("/dev")).confine().err().unwrap();
        assert!(matches!(error, Error::PathKind { wanted: "file", .. }), "{error}");
    })
    .passes();
}
