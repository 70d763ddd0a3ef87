//! Resource limits: up to the limit things work, past it they do not, and it cannot be raised again.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use confine::Limit;
use libc::{EAGAIN, EMFILE, ENOMEM, EPERM};

use crate::harness::{attempt, confined, done, filter, is_refused, is_root, sandbox};

#[test]
fn open_files_up_to_the_limit() {
    attempt(|| {
        let confined = sandbox().limit(Limit::OpenFiles, 20).confine().unwrap();
        // SAFETY: takes numbers.
        let copy = || done(unsafe { libc::dup(2) });
        for expected in 3..20 {
            assert_eq!(copy().unwrap(), expected);
        }
        is_refused(copy(), EMFILE);
        drop(confined);
    })
    .passes();
}

fn grow(file: &mut File, bytes: usize) {
    file.write_all(&vec![1; bytes]).unwrap();
}

#[test]
fn a_file_grows_up_to_the_limit_and_past_it_the_process_ends() {
    let limited = |file: &File| sandbox().keep_fd(file.as_raw_fd()).limit(Limit::FileSize, 8192).confine().unwrap();
    attempt(move || {
        let mut file = tempfile::tempfile().unwrap();
        let confined = limited(&file);
        grow(&mut file, 8192);
        drop(confined);
    })
    .passes();
    attempt(move || {
        let mut file = tempfile::tempfile().unwrap();
        let confined = limited(&file);
        grow(&mut file, 8192);
        grow(&mut file, 1);
        drop(confined);
    })
    .is_killed_by(libc::SIGXFSZ);
}

/// Reserves address space; touches none of it.
fn reserve(bytes: usize) -> std::io::Result<()> {
    let (flags, anywhere) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, std::ptr::null_mut());
    // SAFETY: a new mapping at an address of the kernel's choice.
    match unsafe { libc::mmap(anywhere, bytes, libc::PROT_NONE, flags, -1, 0) } {
        libc::MAP_FAILED => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[test]
fn address_space_up_to_the_limit() {
    attempt(|| {
        reserve(2 << 30).unwrap();
        let confined = sandbox().limit(Limit::AddressSpace, 3 << 30).confine().unwrap();
        reserve(900 << 20).unwrap();
        is_refused(reserve(200 << 20), ENOMEM);
        drop(confined);
    })
    .passes();
}

#[test]
fn locked_memory_up_to_the_limit_and_none_by_default() {
    // Root would be exempt through a capability; both attempts show it is not any more.
    attempt(|| {
        let page = vec![0_u8; 4096];
        // SAFETY: locks memory that lives.
        let lock = || done(unsafe { libc::mlock(page.as_ptr().cast(), 1) });
        lock().unwrap();
        // SAFETY: unlocks it.
        unsafe { libc::munlockall() };
        let confined = confined();
        is_refused(lock(), EPERM);
        drop(confined);
    })
    .passes();
    attempt(|| {
        let pages = vec![0_u8; 3 * 4096];
        let first = pages.as_ptr().wrapping_add(pages.as_ptr().align_offset(4096));
        // SAFETY: locks pages within a buffer that lives.
        let lock = |bytes| done(unsafe { libc::mlock(first.cast(), bytes) });
        let confined = sandbox().limit(Limit::LockedMemory, 4096).confine().unwrap();
        lock(4096).unwrap();
        is_refused(lock(2 * 4096), ENOMEM);
        drop(confined);
    })
    .passes();
}

/// Becomes a user that has no other process.
fn become_somebody() {
    // SAFETY: takes numbers; the attempt's process has one thread.
    unsafe {
        let id = 3_000_000_000 + libc::getpid() as u32;
        done(libc::setresgid(id, id, id)).unwrap();
        done(libc::setresuid(id, id, id)).unwrap();
    }
}

/// Makes a process that lives for two seconds.
fn fork() -> std::io::Result<i64> {
    // SAFETY: the child makes no call but those two.
    unsafe {
        match done(libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0)) {
            Ok(0) => {
                libc::sleep(2);
                libc::_exit(0)
            }
            other => other,
        }
    }
}

#[test]
fn processes_up_to_the_limit_and_none_by_default_once_entered() {
    if !is_root() {
        return; // Only root can become a user without processes.
    }
    let allowing = filter().allow(&[libc::SYS_clone, libc::SYS_clock_nanosleep]);
    let filter = allowing.clone();
    attempt(move || {
        become_somebody();
        fork().unwrap();
        let confined = confined();
        let thread = confined.spawn("before", &filter, || ()).unwrap();
        confined.enter(&filter).unwrap();
        thread.join().unwrap();
        is_refused(fork(), EAGAIN);
    })
    .passes();
    attempt(move || {
        become_somebody();
        let confined = sandbox().limit(Limit::Processes, 2).confine().unwrap();
        confined.enter(&allowing).unwrap();
        fork().unwrap();
        is_refused(fork(), EAGAIN);
    })
    .passes();
}

fn limit(resource: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the kernel writes into `limit`.
    done(unsafe { libc::getrlimit(resource, &mut limit) }).unwrap();
    (limit.rlim_cur, limit.rlim_max)
}

fn set_limit(resource: libc::__rlimit_resource_t, value: u64) -> std::io::Result<i64> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the kernel reads `limit`.
    done(unsafe { libc::setrlimit(resource, &limit) })
}

#[test]
fn limits_have_safe_defaults_and_cannot_be_raised_again() {
    attempt(|| {
        if is_root() {
            set_limit(libc::RLIMIT_CORE, 1 << 20).unwrap();
        }
        let confined = confined();
        let defaults = [
            (libc::RLIMIT_NOFILE, 1024),
            (libc::RLIMIT_FSIZE, 1 << 30),
            (libc::RLIMIT_AS, 4 << 30),
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_MEMLOCK, 0),
        ];
        for (resource, default) in defaults {
            assert_eq!(limit(resource), (default, default), "{resource}");
            is_refused(set_limit(resource, default + 1), EPERM);
        }
        drop(confined);
    })
    .passes();
}

#[test]
fn a_limit_that_was_lower_already_is_not_raised() {
    attempt(|| {
        set_limit(libc::RLIMIT_NOFILE, 100).unwrap();
        let confined = sandbox().limit(Limit::OpenFiles, 200).confine().unwrap();
        assert_eq!(limit(libc::RLIMIT_NOFILE), (100, 100));
        drop(confined);
    })
    .passes();
}
