//! Runs an attempt in a process of its own, single-threaded and disposable, and says how that ended.

use std::cell::Cell;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use confine::{Confined, Filter, Policy, Sandbox, base};

const WANTED: &str = "CONFINE_TEST_ATTEMPT";
/// What an attempt that hangs is ended by.
const SECONDS: u32 = 30;

thread_local! {
    static ATTEMPTS: Cell<u32> = const { Cell::new(0) };
}

/// How an attempt ended. `None`: this process is one that was started for another attempt of the same test.
#[must_use]
pub struct Ended(Option<Output>);

/// Runs `body` in a process of its own. A test may make several attempts.
pub fn attempt(body: impl FnOnce()) -> Ended {
    let number = ATTEMPTS.replace(ATTEMPTS.get() + 1).to_string();
    match std::env::var(WANTED) {
        Ok(wanted) if wanted == number => run(body),
        Ok(_) => Ended(None),
        Err(_) => {
            let test = std::thread::current().name().expect("a test thread has its test's name").to_owned();
            let output = Command::new(std::env::current_exe().unwrap())
                .args([&test, "--exact", "--nocapture", "--test-threads=1"])
                .env(WANTED, number)
                .env_remove("RUST_BACKTRACE")
                // The thread that becomes the attempt is not the harness's first, and would have a heap of its own.
                .env("MALLOC_ARENA_MAX", "1")
                .output();
            Ended(Some(output.unwrap()))
        }
    }
}

/// The test's thread is not its process's only one; a fork of it is.
fn run(body: impl FnOnce()) -> ! {
    // SAFETY: nothing else runs here than the harness's main thread, which waits for this one.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: sets a timer.
        unsafe { libc::alarm(SECONDS) };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        exit(if outcome.is_ok() { 0 } else { 101 })
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call; raising the child's signal ends this process as the child was.
    unsafe {
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        if libc::WIFSIGNALED(status) {
            libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
            libc::raise(libc::WTERMSIG(status));
        }
    }
    exit(libc::WEXITSTATUS(status))
}

pub fn exit(code: i32) -> ! {
    // SAFETY: ends the process, with no destructor and no handler.
    unsafe { libc::_exit(code) }
}

impl Ended {
    fn check(&self, what: &str, holds: impl FnOnce(&Output) -> bool) -> &Ended {
        if let Some(output) = &self.0 {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(holds(output), "expected: {what}; got {}, stderr:\n{stderr}", output.status);
        }
        self
    }

    pub fn passes(&self) -> &Ended {
        self.check("success", |output| output.status.success())
    }

    pub fn is_killed_by(&self, signal: i32) -> &Ended {
        self.check(&format!("death by signal {signal}"), |output| output.status.signal() == Some(signal))
    }

    pub fn says(&self, text: &str) -> &Ended {
        self.check(text, |output| String::from_utf8_lossy(&output.stderr).contains(text))
    }

    pub fn says_not(&self, text: &str) -> &Ended {
        self.check(&format!("nothing of {text}"), |output| !String::from_utf8_lossy(&output.stderr).contains(text))
    }

    pub fn says_nothing(&self) -> &Ended {
        self.check("no output", |output| output.stderr.is_empty())
    }

    pub fn says_one_line(&self) -> &Ended {
        self.check("one line", |output| String::from_utf8_lossy(&output.stderr).lines().count() == 1)
    }
}

/// Whether tests that need it may run; says so where not.
pub fn is_root() -> bool {
    // SAFETY: asks for a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

pub fn sandbox() -> Sandbox {
    Sandbox::new("attempt", Policy::BestEffort)
}

pub fn confined() -> Confined {
    sandbox().confine().unwrap()
}

/// A filter that lets a test compare, panic and end, beside what it adds.
pub fn filter() -> Filter {
    Filter::new("attempt").with(&base::exit()).with(&base::heap())
}

/// The result of a libc call, as a result.
pub fn done(answer: impl Into<i64>) -> io::Result<i64> {
    match answer.into() {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

pub fn is_refused<T: std::fmt::Debug>(result: io::Result<T>, errno: i32) {
    match result {
        Ok(value) => panic!("was allowed: {value:?}"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(errno), "{error}"),
    }
}
