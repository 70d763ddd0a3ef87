//! Standard input and output of every kind.

use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    host::{Host, Running, kill, until},
    kernel::{POWEROFF, SPIN, echo, flood, print},
};

#[test]
fn input_that_ends_or_never_was_does_not_end_the_guest() {
    let Some(host) = Host::new() else { return };
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
    let Some(host) = Host::new() else { return };
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
    let Some(host) = Host::new() else { return };
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
    on_terminal_with(command, used, foreground, Stdio::null())
}

fn on_terminal_with(command: &mut Command, used: &OwnedFd, foreground: bool, err: Stdio) -> std::process::Child {
    command.stdin(used.try_clone().unwrap()).stdout(used.try_clone().unwrap()).stderr(err);
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

/// What is shown next is that, and nothing else.
fn shows(shown: &mut File, text: &[u8]) {
    let mut bytes = vec![0; text.len()];
    shown.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(text));
}

/// A guest that echoes so many keys.
fn echoing(host: &Host, keys: usize) -> String {
    let echoes: Vec<Vec<u8>> = std::iter::repeat_with(echo).take(keys).collect();
    let code: Vec<&[u8]> = echoes.iter().map(Vec::as_slice).chain([SPIN]).collect();
    host.kernel("echo", &[&[&print(">")[..]], &code[..]].concat())
}

#[test]
fn terminal_passes_every_key_and_is_restored() {
    let Some(host) = Host::new() else { return };
    // Ctrl-Z, Enter, Ctrl-J, Ctrl-S, Ctrl-Q, Ctrl-C, Ctrl-\, Ctrl-D, Ctrl-V, Ctrl-U, delete, a byte of eight bits.
    let keys = b"\x1a\r\n\x13\x11\x03\x1c\x04\x16\x15\x7f\xe9";
    let kernel = echoing(&host, keys.len() + 2);
    let (mut shown, used) = terminal();
    let before = rustix::termios::tcgetattr(used.as_fd()).unwrap();
    let mut child = on_terminal(&mut host.plain("web", &kernel), &used, true);
    shows(&mut shown, b">");
    assert!(!echoes(&used));
    for key in keys {
        shown.write_all(&[*key]).unwrap();
        // Shown once, by the guest; the terminal still makes lines of line feeds.
        shows(&mut shown, if *key == b'\n' { b"\r\n" } else { std::slice::from_ref(key) });
    }
    // The escape key twice is the key.
    shown.write_all(b"\x1d\x1d").unwrap();
    shows(&mut shown, b"\x1d");
    // Another key behind it is nobody's.
    shown.write_all(b"\x1dx.").unwrap();
    shows(&mut shown, b".");
    assert!(child.wait().unwrap().success());
    let after = rustix::termios::tcgetattr(used.as_fd()).unwrap();
    let modes = |t: &rustix::termios::Termios| (t.input_modes, t.output_modes, t.control_modes, t.local_modes);
    assert_eq!(modes(&after), modes(&before));
}

#[test]
fn escape_key_ends_a_guest_that_takes_no_input_and_says_what_it_offers() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print(">"), SPIN]);
    for end in [&b"\x1dk"[..], b"\x1ds\x1dK"] {
        let (mut shown, used) = terminal();
        let mut child = on_terminal(&mut host.plain("web", &kernel), &used, true);
        shows(&mut shown, b">");
        // More than fits on the way to the guest. What is shown has to be read, or the terminal takes no more.
        for _ in 0..300 {
            shown.write_all(&[b'x'; 1000]).unwrap();
        }
        shown.write_all(end).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(echoes(&used));
        host.clean();
    }
    let (mut shown, used) = terminal();
    let (mut err, theirs) = std::io::pipe().unwrap();
    let mut command = host.plain("web", &kernel);
    let mut child = on_terminal_with(&mut command, &used, true, theirs.into());
    drop(command);
    shows(&mut shown, b">");
    shown.write_all(b"\x1d\x1dk\x1dk").unwrap();
    child.wait().unwrap();
    let mut said = String::new();
    err.read_to_string(&mut said).unwrap();
    assert!(said.contains("Ctrl-] is the way out") && said.contains("s stops web, k ends it at once"), "{said}");
}

#[test]
fn terminal_is_restored_by_a_signal_s_end_and_taken_again_by_who_was_stopped() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[&print(">"), SPIN]);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let (mut shown, used) = terminal();
        let before = rustix::termios::tcgetattr(used.as_fd()).unwrap();
        let mut child = on_terminal(&mut host.plain("web", &kernel), &used, true);
        shows(&mut shown, b">");
        let pid = child.id().cast_signed();
        kill(pid, libc::SIGSTOP);
        let stat = format!("/proc/{pid}/stat");
        until("it has stopped", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            if stat.contains(") T ") { Ok(()) } else { Err(stat) }
        });
        // As a shell does.
        rustix::termios::tcsetattr(used.as_fd(), rustix::termios::OptionalActions::Now, &before).unwrap();
        kill(pid, libc::SIGCONT);
        until("the terminal is raw again", || if echoes(&used) { Err("it echoes".into()) } else { Ok(()) });
        for _ in 0..2 {
            kill(pid, signal);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(child.wait().unwrap().success());
        assert!(echoes(&used));
    }
}

/// Lets the guest's output run into a wall, and on once that is gone.
fn output_goes_on(host: &Host, log: &Path, volt: &mut Command, why: &str) {
    let file = File::options().append(true).open(log).unwrap();
    let vm = Running::start(volt.stdout(file));
    vm.complains(&format!("cannot be written now: {why}"));
    // Room again.
    File::options().write(true).open(log).unwrap().set_len(0).unwrap();
    vm.complains("bytes of the console of web were lost");
    until("output goes on", || if std::fs::metadata(log).unwrap().len() > 0 { Ok(()) } else { Err(String::new()) });
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
}

#[test]
fn output_that_cannot_be_written_for_a_while_goes_on_and_what_was_lost_is_said() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("flood", &[&flood()]);
    // A file system that is full. Mounts of this thread's own, and of what it starts.
    testkit::namespace::mounts().unwrap();
    use rustix::mount::{MountFlags, mount};
    let small = host.path("small");
    std::fs::create_dir(&small).unwrap();
    mount("small", &small, "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
    let log = small.join("log");
    std::fs::write(&log, "").unwrap();
    output_goes_on(&host, &log, &mut host.plain("web", &kernel), "no space left");

    // A limit on the size of files: with room for guest RAM, which is one.
    const LIMIT: u64 = 1 << 30;
    let log = host.path("log");
    File::create(&log).unwrap().set_len(LIMIT - 100).unwrap();
    let mut limited = host.plain("web", &kernel);
    let limit = || {
        let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
        // SAFETY: reads a struct that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: one async-signal-safe call.
    unsafe { limited.pre_exec(limit) };
    output_goes_on(&host, &log, &mut limited, "file too large");
}

#[test]
fn output_to_a_file_in_memory_takes_so_much_of_it_and_no_more_and_goes_on_once_it_is_cut() {
    const MOST: u64 = 64 << 20;
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("flood", &[&flood()]);
    let file = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::APPEND).unwrap();
    let length = || file.metadata().unwrap().len();
    let vm = Running::start(host.plain("web", &kernel).stdout(file.try_clone().unwrap()));
    vm.complains("standard output is a file in memory: it takes 64 MiB more of the console");
    // As if it had printed so much, which takes a guest its time.
    file.set_len(MOST - 100).unwrap();
    vm.complains("cannot be written now: file too large");
    assert_eq!(length(), MOST);
    file.set_len(0).unwrap();
    vm.complains("bytes of the console of web were lost");
    until("output goes on", || if length() > 0 { Ok(()) } else { Err(String::new()) });
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();

    let log = host.path("log");
    let file = File::create(&log).unwrap();
    if disk::is_in_memory(&file).unwrap() {
        return testkit::skip!("a file on a disk: {} is none", log.display());
    }
    let vm = Running::start(host.plain("web", &kernel).stdout(file));
    host.runs("web");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", vm.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert!(line.contains("unlimited"), "{line}");
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    assert!(!vm.end().ok().err.contains("in memory"));
}

#[test]
fn run_in_the_background_of_a_terminal_is_not_stopped_by_it() {
    let Some(host) = Host::new() else { return };
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
