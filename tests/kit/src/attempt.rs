//! Runs an attempt in a process of its own, single-threaded and disposable, and says how that ended: for what a process does to
//! itself and cannot undo, confinement above all.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

const WANTED: &str = "VOLT_TEST_ATTEMPT";
/// What an attempt that hangs is ended by.
const SECONDS: u32 = 120;

thread_local! {
    static ATTEMPTS: Cell<u32> = const { Cell::new(0) };
}

/// How an attempt ended. `None`: this process is one that was started for another attempt of the same test.
#[must_use]
pub struct Ended(Option<Output>);

/// Runs `body` in a process of its own. A test may make several attempts. What one puts below the folder for temporary files is removed
/// once it has ended.
pub fn attempt(body: impl FnOnce()) -> Ended {
    let number = ATTEMPTS.replace(ATTEMPTS.get() + 1).to_string();
    match std::env::var(WANTED) {
        Ok(wanted) if wanted == number => run(body),
        Ok(_) => Ended(None),
        Err(_) => {
            let test = std::thread::current().name().expect("a test thread has its test's name").to_owned();
            let folder = tempfile::tempdir().unwrap();
            // Also for an attempt that becomes another user.
            std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).unwrap();
            let output = Command::new(std::env::current_exe().unwrap())
                .args([&test, "--exact", "--nocapture", "--test-threads=1"])
                .env(WANTED, number)
                .env("TMPDIR", folder.path())
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

/// Ends the process of an attempt.
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

    /// It came to its end.
    pub fn passes(&self) -> &Ended {
        self.check("success", |output| output.status.success())
    }

    /// That signal ended it.
    pub fn is_killed_by(&self, signal: i32) -> &Ended {
        self.check(&format!("death by signal {signal}"), |output| output.status.signal() == Some(signal))
    }

    /// It said that on stderr.
    pub fn says(&self, text: &str) -> &Ended {
        self.check(text, |output| String::from_utf8_lossy(&output.stderr).contains(text))
    }

    /// It did not say that.
    pub fn says_not(&self, text: &str) -> &Ended {
        self.check(&format!("nothing of {text}"), |output| !String::from_utf8_lossy(&output.stderr).contains(text))
    }

    /// It said nothing.
    pub fn says_nothing(&self) -> &Ended {
        self.check("no output", |output| output.stderr.is_empty())
    }

    /// It said one line.
    pub fn says_one_line(&self) -> &Ended {
        self.check("one line", |output| String::from_utf8_lossy(&output.stderr).lines().count() == 1)
    }
}
