//! Inherited fds: those that were listed stay, all others are gone.

use confine::Error;
use libc::EBADF;

use crate::harness::{attempt, done, is_refused, sandbox};

fn open_at(number: i32) {
    // SAFETY: copies an fd to a number that nothing in the attempt's process uses.
    unsafe {
        let null = done(libc::open(c"/dev/null".as_ptr(), libc::O_RDWR)).unwrap();
        done(libc::dup2(null as i32, number)).unwrap();
    }
    flags(number).unwrap();
}

fn flags(fd: i32) -> std::io::Result<i64> {
    // SAFETY: takes numbers.
    done(unsafe { libc::fcntl(fd, libc::F_GETFD) })
}

#[test]
fn only_listed_fds_and_the_standard_three_stay_open() {
    attempt(|| {
        for fd in [3, 40, 41, 42, 43, 44, 45, 1000] {
            open_at(fd);
        }
        let kept = sandbox().keep_fd(44).keep_fd(41).keep_fd(42).keep_fd(41).keep_fd(1);
        let confined = kept.confine().unwrap();
        for fd in [3, 40, 43, 45, 1000] {
            is_refused(flags(fd), EBADF);
        }
        for fd in [0, 1, 2] {
            flags(fd).unwrap();
        }
        for fd in [41, 42, 44] {
            assert_eq!(flags(fd).unwrap(), i64::from(libc::FD_CLOEXEC), "{fd}");
        }
        drop(confined);
    })
    .passes();
}

#[test]
fn keeping_an_fd_that_is_not_open_is_an_error_that_names_it() {
    attempt(|| {
        let error = sandbox().keep_fd(77).confine().err().unwrap();
        assert!(matches!(error, Error::FdNotOpen(77)), "{error}");
        assert!(error.to_string().contains("fd 77"));
    })
    .passes();
    attempt(|| {
        let error = sandbox().keep_fd(-1).confine().err().unwrap();
        assert!(matches!(error, Error::FdNotOpen(-1)), "{error}");
    })
    .passes();
}
