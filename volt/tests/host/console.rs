//! Standard input and output of every kind.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    host::{Host, Running, until},
    kernel::{POWEROFF, SPIN, echo, flood, print},
};

#[test]
fn input_that_ends_or_never_was_does_not_end_the_guest() {
    let Some(host) = Host::new("input_that_ends_or_never_was_does_not_end_the_guest") else { return };
    let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
    let mut closed = host.plain("closed", &kernel);
    // SAFETY: between fork and exec; takes no pointer.
    unsafe {
        closed.stdin(Stdio::inherit()).pre_exec(|| {
            libc::close(0);
            Ok(())
        })
    };
    assert_eq!(host.run(&mut closed).ok().out, "Volt");
    let folder = File::open("/").unwrap();
    assert_eq!(host.run(host.plain("folder", &kernel).stdin(folder)).ok().out, "Volt");
    let ended = Running::start(host.plain("ended", &kernel).stdin(Stdio::piped()));
    assert_eq!(ended.end().ok().out, "Volt");
    // Nothing to read yet, and whoever gave it made it non-blocking.
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let late = Running::start(host.plain("late", &host.kernel("echo", &[&print("up"), &echo()])).stdin(reader));
    late.says("up");
    writer.write_all(b".").unwrap();
    assert_eq!(late.end().ok().out, "up.");
}

#[test]
fn closed_output_and_error_do_not_end_the_guest() {
    let Some(host) = Host::new("closed_output_and_error_do_not_end_the_guest") else { return };
    let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut unread = host.full("unread", &kernel);
    host.run(unread.stdout(writer.try_clone().unwrap()).stderr(writer.try_clone().unwrap())).ok();
    host.run(host.volt(&["list"]).stdout(writer.try_clone().unwrap())).ok();
    let mut refused = host.full("no/name", &kernel);
    let ended = host.run(refused.stderr(writer));
    assert_eq!(ended.status.code(), Some(1));
    let mut closed = host.plain("closed", &kernel);
    // SAFETY: between fork and exec; takes no pointers.
    unsafe {
        closed.pre_exec(|| {
            (0..3).for_each(|fd| {
                libc::close(fd);
            });
            Ok(())
        })
    };
    host.run(&mut closed).ok();
    host.clean();
}

#[test]
fn reader_that_has_stopped_reading_does_not_hold_up_the_end() {
    let Some(host) = Host::new("reader_that_has_stopped_reading_does_not_hold_up_the_end") else { return };
    for blocks in [true, false] {
        let (_reader, mut writer) = std::io::pipe().unwrap();
        let room = rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        writer.write_all(&vec![b'.'; room]).unwrap();
        rustix::io::ioctl_fionbio(&writer, !blocks).unwrap();
        let vm = Running::start(host.full("web", &host.kernel("flood", &[&flood()])).stdout(writer));
        host.runs("web");
        std::thread::sleep(Duration::from_millis(300));
        host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
        vm.end().ok();
        host.clean();
    }
}

/// A terminal: the side that shows it, and the side that programs have.
fn terminal() -> (File, OwnedFd) {
    let (mut shown, mut used) = (0, 0);
    let null = std::ptr::null_mut();
    // SAFETY: two numbers to fill in, and no name, modes or size.
    assert_eq!(unsafe { libc::openpty(&raw mut shown, &raw mut used, null, null.cast(), null.cast()) }, 0);
    // SAFETY: openpty has just made them.
    unsafe { (File::from_raw_fd(shown), OwnedFd::from_raw_fd(used)) }
}

/// Starts `command` on a terminal of its own, in the foreground or not.
fn on_terminal(command: &mut Command, used: &OwnedFd, foreground: bool) -> std::process::Child {
    command.stdin(used.try_clone().unwrap()).stdout(used.try_clone().unwrap()).stderr(Stdio::null());
    let prepare = move || {
        // SAFETY: takes numbers only. The shell of the terminal's session is this process itself, before exec; in the
        // background it is a child that the session's leader waits for.
        unsafe {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            if !foreground {
                match libc::fork() {
                    0 => libc::setpgid(0, 0),
                    child => {
                        // Whoever spawned us waits for the descriptor that the child closes when it executes.
                        libc::close_range(3, libc::c_uint::MAX, 0);
                        let mut status = 0;
                        libc::waitpid(child, &raw mut status, libc::WUNTRACED);
                        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 99 })
                    }
                };
            }
        }
        Ok(())
    };
    // SAFETY: async-signal-safe calls only.
    unsafe { command.pre_exec(prepare) };
    command.spawn().unwrap()
}

fn echoes(used: &OwnedFd) -> bool {
    rustix::termios::tcgetattr(used.as_fd()).unwrap().local_modes.contains(rustix::termios::LocalModes::ECHO)
}

#[test]
fn terminal_passes_keys_one_by_one_ctrl_z_among_them_and_is_restored() {
    let Some(host) = Host::new("terminal_passes_keys_one_by_one_ctrl_z_among_them_and_is_restored") else { return };
    let kernel = host.kernel("echo", &[&print(">"), &echo(), &echo(), SPIN]);
    let (mut shown, used) = terminal();
    let mut child = on_terminal(&mut host.plain("web", &kernel), &used, true);
    let mut byte = [0];
    shown.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b">");
    assert!(!echoes(&used));
    // Shown once, by the guest.
    for key in [b"\x1a", b"."] {
        shown.write_all(key).unwrap();
        shown.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, key);
    }
    assert!(child.wait().unwrap().success());
    assert!(echoes(&used));
}

#[test]
fn run_in_the_background_of_a_terminal_is_not_stopped_by_it() {
    let Some(host) = Host::new("run_in_the_background_of_a_terminal_is_not_stopped_by_it") else { return };
    let kernel = host.kernel("spin", &[&print(">"), SPIN]);
    let (mut shown, used) = terminal();
    let mut child = on_terminal(&mut host.plain("web", &kernel), &used, false);
    let mut byte = [0];
    shown.read_exact(&mut byte).unwrap();
    assert!(echoes(&used));
    shown.write_all(b"typed at the shell\n").unwrap();
    host.runs("web");
    std::thread::sleep(Duration::from_millis(500));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    until("it has ended", || {
        child.try_wait().unwrap().map(|status| assert_eq!(status.code(), Some(0))).ok_or(String::new())
    });
}
