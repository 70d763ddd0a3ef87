//! What holds for the process as a whole: `no_new_privs`, no tracing, no second thread while it is confined.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use confine::Error;
use libc::{EINVAL, EPERM};

use crate::harness::{attempt, confined, done, exit, is_refused, is_root, sandbox};

#[test]
fn no_new_privs_is_set_for_good() {
    // SAFETY: takes numbers.
    let get = || unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) };
    attempt(move || {
        assert_eq!(get(), 0);
        let confined = confined();
        assert_eq!(get(), 1);
        // SAFETY: takes numbers.
        is_refused(done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0) }), EINVAL);
        drop(confined);
    })
    .passes();
}

#[test]
fn a_process_of_the_same_user_can_neither_trace_it_nor_open_its_memory() {
    if !is_root() {
        return; // The tracer must be one without capabilities, and the parent, at any level of Yama but the highest.
    }
    attempt(|| {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        // SAFETY: both processes have one thread; the calls take numbers.
        let tracee = unsafe { libc::fork() };
        // SAFETY: as above. Changing the user made the process non-dumpable, which must not come from that.
        unsafe {
            done(libc::setresgid(65534, 65534, 65534)).unwrap();
            done(libc::setresuid(65534, 65534, 65534)).unwrap();
            done(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0)).unwrap();
        }
        if tracee == 0 {
            let mut go = [0];
            there.write_all(b"1").unwrap();
            there.read_exact(&mut go).unwrap();
            let confined = sandbox().keep_fd(there.as_raw_fd()).confine().unwrap();
            there.write_all(b"2").unwrap();
            let _closed = there.read(&mut go);
            drop(confined);
            exit(0)
        }
        drop(there);
        // SAFETY: takes numbers.
        let seize = || done(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tracee, 0, 0) });
        let memory = || std::fs::File::open(format!("/proc/{tracee}/mem"));
        let mut turn = [0];
        here.read_exact(&mut turn).unwrap();
        memory().unwrap();
        seize().unwrap();
        // SAFETY: takes numbers and a place for a status.
        unsafe {
            done(libc::ptrace(libc::PTRACE_INTERRUPT, tracee, 0, 0)).unwrap();
            done(libc::waitpid(tracee, &mut 0, 0)).unwrap();
            done(libc::ptrace(libc::PTRACE_DETACH, tracee, 0, 0)).unwrap();
        }
        here.write_all(b"1").unwrap();
        here.read_exact(&mut turn).unwrap();
        is_refused(seize(), EPERM);
        memory().expect_err("its memory can be opened");
    })
    .passes();
}

#[test]
fn a_process_with_a_second_thread_is_not_confined() {
    attempt(|| {
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let second = std::thread::spawn(move || held.recv());
        let error = sandbox().confine().err().unwrap();
        assert!(matches!(error, Error::Threads), "{error}");
        drop(hold);
        second.join().unwrap().unwrap_err();
        drop(sandbox().confine().unwrap());
    })
    .passes();
}
