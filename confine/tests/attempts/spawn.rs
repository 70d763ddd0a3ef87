//! Children: exactly the fds they were given, nothing else inherited, and never left behind.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use confine::{Error, Spawn};

use crate::harness::{attempt, done, exit, is_refused};

const LONG: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Spawn {
    let mut spawn = Spawn::new(Path::new("/bin/sh"));
    spawn.args(["-c", script]);
    spawn
}

/// Runs it to its end; its standard output.
fn output(mut spawn: Spawn) -> String {
    let (mut from, to) = io::pipe().unwrap();
    spawn.stdout(to.into());
    let mut child = spawn.spawn().unwrap();
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success());
    text
}

/// The fd, at a number of the caller's choice.
fn at(number: i32, fd: OwnedFd) -> OwnedFd {
    // SAFETY: nothing in the attempt's process owns that number, which the result does from now on.
    unsafe {
        assert_eq!(libc::fcntl(number, libc::F_GETFD), -1, "{number} is in use");
        done(libc::dup2(fd.as_raw_fd(), number)).unwrap();
        OwnedFd::from_raw_fd(number)
    }
}

#[test]
fn fds_arrive_at_their_numbers_even_where_these_collide_with_the_callers() {
    attempt(|| {
        // Above the range that is under test; so 3, 4 and 5 are free.
        let pipes = [40, 50, 60].map(|number| {
            let (from, to) = io::pipe().unwrap();
            (at(number, from.into()), at(number + 1, to.into()))
        });
        // SAFETY: closes what the harness may have left there; nothing owns it.
        unsafe { libc::close_range(3, 39, 0) };
        let [(from_a, a), (from_b, b), (from_c, c)] = pipes;
        // Crosswise: the caller's 4 becomes 3, 5 becomes 4, and 3 becomes 5.
        let (a, b, c) = (at(4, a), at(5, b), at(3, c));
        let mut spawn = shell("echo a >&3; echo b >&4; echo c >&5");
        assert_eq!(spawn.fd(a), 3);
        assert_eq!(spawn.fd(b), 4);
        assert_eq!(spawn.fd(c), 5);
        assert!(spawn.spawn().unwrap().wait().unwrap().success());
        for (from, text) in [(from_a, "a\n"), (from_b, "b\n"), (from_c, "c\n")] {
            assert_eq!(io::read_to_string(File::from(from)).unwrap(), text);
        }
    })
    .passes();
}

#[test]
fn fds_arrive_at_their_numbers_where_the_callers_own_copies_would_lie_there() {
    attempt(|| {
        let pipes = [40, 50, 60].map(|number| {
            let (from, to) = io::pipe().unwrap();
            (at(number, from.into()), at(number + 1, to.into()))
        });
        // SAFETY: closes what the harness may have left there; nothing owns it. All targets are free in the caller.
        unsafe { libc::close_range(3, 39, 0) };
        let mut spawn = shell("echo a >&3; echo b >&4; echo c >&5; echo heard >&2; echo lost");
        let from = pipes.map(|(from, to)| {
            spawn.fd(to);
            from
        });
        assert!(spawn.spawn().unwrap().wait().unwrap().success());
        for (from, text) in from.into_iter().zip(["a\n", "b\n", "c\n"]) {
            assert_eq!(io::read_to_string(File::from(from)).unwrap(), text);
        }
    })
    .passes()
    .says("heard");
}

#[test]
fn no_fd_is_inherited_that_was_not_given() {
    attempt(|| {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let _open = [7, 8, 500].map(|number| at(number, null())); // Not close-on-exec.
        let mut spawn = shell("for fd in 3 4 5 7 8 500; do [ -e /proc/$$/fd/$fd ] && echo $fd; done; true");
        spawn.fd(null());
        assert_eq!(output(spawn), "3\n");
        let mut all = std::process::Command::new("/bin/sh");
        all.args(["-c", "[ -e /proc/$$/fd/7 ] && [ -e /proc/$$/fd/500 ]"]);
        assert!(all.status().unwrap().success(), "they would be inherited otherwise");
    })
    .passes();
}

#[test]
fn standard_input_and_output_are_null_and_stderr_is_the_callers_or_the_given_one() {
    let streams = "both=$(readlink /proc/$$/fd/0 /proc/$$/fd/1); echo \"$both\" >&2";
    attempt(move || {
        assert!(shell(streams).spawn().unwrap().wait().unwrap().success());
    })
    .passes()
    .says("/dev/null\n/dev/null\n");
    let (mut from, to) = io::pipe().unwrap();
    let mut spawn = shell(streams);
    spawn.stderr(to.into());
    assert!(spawn.spawn().unwrap().wait().unwrap().success());
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    assert_eq!(text, "/dev/null\n/dev/null\n");
}

#[test]
fn the_environment_is_empty() {
    assert!(std::env::vars_os().next().is_some());
    assert_eq!(output(Spawn::new(Path::new("/usr/bin/env"))), "");
}

#[test]
fn arguments_arrive_as_they_were_given() {
    let mut spawn = Spawn::new(Path::new("/usr/bin/printf"));
    spawn.arg("<%s>").args(["", "a b", "ü\n"]);
    assert_eq!(output(spawn), "<><a b><ü\n>");
}

#[test]
fn it_leads_a_session_with_default_signals() {
    attempt(|| {
        // SAFETY: takes numbers and sets that outlive the calls.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&mut set, libc::SIGUSR1);
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::signal(libc::SIGUSR2, libc::SIG_IGN);
        }
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(!own.contains("SigBlk:\t0000000000000000") && !own.contains("SigIgn:\t0000000000000000"));
        let mut spawn = Spawn::new(Path::new("/bin/cat"));
        spawn.args(["/proc/self/stat", "/proc/self/status"]);
        let text = output(spawn);
        assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
        assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
        let fields = text.split(' ').collect::<Vec<_>>();
        assert_eq!(fields[0], fields[5], "process and session");
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(own.contains("SigBlk:\t0000000000000200"), "the caller's mask is as it was: {own}");
    })
    .passes();
}

#[test]
fn a_program_that_cannot_be_executed_is_an_error_and_leaves_no_child() {
    attempt(|| {
        for (program, errno) in [("/nowhere/program", libc::ENOENT), ("/etc/passwd", libc::EACCES)] {
            let error = Spawn::new(Path::new(program)).spawn().err().unwrap();
            let Error::Spawn { step, source, .. } = &error else { panic!("{error}") };
            assert_eq!((*step, source.raw_os_error()), ("execute it", Some(errno)));
            assert!(error.to_string().contains(program), "{error}");
        }
        // There, and to be executed by what is not.
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/nowhere/at-all\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let error = Spawn::new(&script).spawn().err().unwrap().to_string();
        assert!(error.contains("interpreter") && !error.contains("check that the file is there"), "{error}");
        let mut spawn = Spawn::new(Path::new("/bin/true"));
        spawn.arg("a\0b");
        assert!(spawn.spawn().err().unwrap().to_string().contains("NUL"));
        // SAFETY: takes numbers and no place for a status.
        is_refused(done(unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) }), libc::ECHILD);
    })
    .passes();
}

#[test]
fn its_status_comes_through_and_its_pidfd_tells_its_end() {
    let (until, end) = io::pipe().unwrap();
    let mut shell = shell("read line <&3; exit 7");
    assert_eq!(shell.fd(until.into()), 3);
    let mut child = shell.spawn().unwrap();
    assert!(child.try_wait().unwrap().is_none());
    assert!(child.wait_for(Duration::from_millis(20)).unwrap().is_none());
    drop(end);
    let mut poll = libc::pollfd { fd: child.pidfd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` outlives the call.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 20_000) }, 1);
    assert_eq!(child.wait_for(LONG).unwrap().unwrap().code(), Some(7));
    assert_eq!(child.wait().unwrap().code(), Some(7), "and can be asked again");
    child.kill().unwrap();
}

#[test]
fn kill_ends_it() {
    let mut child = shell("exec sleep 100").spawn().unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait_for(LONG).unwrap().unwrap().signal(), Some(libc::SIGKILL));
    let mut child = shell("exec sleep 100").spawn().unwrap();
    child.signal(libc::SIGTERM).unwrap();
    assert_eq!(child.wait_for(LONG).unwrap().unwrap().signal(), Some(libc::SIGTERM));
}

fn exists(pid: i32) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::kill(pid, 0) == 0 }
}

#[test]
fn dropped_it_is_killed_and_reaped_and_detached_it_runs_on() {
    attempt(|| {
        let (_open, stdin) = io::pipe().unwrap();
        let mut sleeping = shell("exec sleep 100");
        sleeping.fd(stdin.into());
        let (dropped, detached) = (sleeping.spawn().unwrap(), shell("exec sleep 100").spawn().unwrap());
        let (gone, stays) = (dropped.pid(), detached.pid());
        assert!(exists(gone) && exists(stays));
        drop(dropped);
        assert!(!exists(gone), "neither running nor a zombie");
        detached.detach();
        assert!(exists(stays));
        let mut status = 0;
        // SAFETY: takes numbers and a place for a status.
        unsafe {
            assert_eq!(libc::waitpid(stays, &mut status, libc::WNOHANG), 0, "it runs");
            libc::kill(stays, libc::SIGKILL);
            assert_eq!(libc::waitpid(stays, &mut status, 0), stays);
        }
    })
    .passes();
}

#[test]
fn with_die_with_parent_it_ends_when_the_parent_is_killed_and_otherwise_it_does_not() {
    for (bound, dies) in [(true, true), (false, false)] {
        attempt(move || {
            // SAFETY: takes numbers; orphans come to this process.
            unsafe { done(libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)).unwrap() };
            let (mut from, to) = io::pipe().unwrap();
            // SAFETY: the process has one thread.
            let parent = unsafe { libc::fork() };
            if parent == 0 {
                let mut spawn = shell("exec sleep 100");
                if bound {
                    spawn.die_with_parent();
                }
                let child = spawn.spawn().unwrap();
                io::Write::write_all(&mut &to, &child.pid().to_ne_bytes()).unwrap();
                std::thread::sleep(LONG);
                exit(1)
            }
            let mut pid = [0; 4];
            from.read_exact(&mut pid).unwrap();
            let child = i32::from_ne_bytes(pid);
            let mut status = 0;
            // SAFETY: takes numbers and a place for a status.
            unsafe {
                libc::kill(parent, libc::SIGKILL);
                assert_eq!(libc::waitpid(parent, &mut status, 0), parent);
                let start = Instant::now();
                let patience = if dies { LONG } else { Duration::from_millis(300) };
                let ended = loop {
                    match libc::waitpid(child, &mut status, libc::WNOHANG) {
                        0 if start.elapsed() > patience => break false,
                        0 => std::thread::sleep(Duration::from_millis(5)),
                        answer => break answer == child && libc::WTERMSIG(status) == libc::SIGKILL,
                    }
                };
                libc::kill(child, libc::SIGKILL);
                assert_eq!(ended, dies);
            }
        })
        .passes();
    }
}
