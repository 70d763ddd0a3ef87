//! Runs that fail halfway: the message names thing and remedy, and what was taken until then is given back at once.

use std::{fs, os::unix::process::CommandExt, path::Path, process::Command};

use testkit::program;

use crate::{
    host::{Host, Running},
    kernel::{POWEROFF, SPIN, elf, print},
};

#[test]
fn disk_of_another_vm_is_refused_before_anything_runs() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(&mut host.full("other", &off)).refused(&["open disk 0", "in use by another process"]);
    // Twice in one VM is no better, unless nobody writes.
    let disk = host.path("disk").display().to_string();
    host.run(host.plain("other", &off).args(["--disk", &disk])).refused(&["in use"]);
    assert_eq!(host.free("volt0"), 252);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.run(host.plain("other", &off).args(["--disk", &disk, "--disk", &disk])).refused(&["in use"]);
    let read_only = format!("{disk},ro");
    host.run(host.plain("other", &off).args(["--disk", &read_only, "--disk", &read_only])).ok();
    let made = Command::new("losetup").args(["--find", "--show", &disk]).output().unwrap();
    let device = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    if made.status.success() {
        host.run(host.plain("other", &off).args(["--disk", &disk])).refused(&["in use", &device, "losetup --detach"]);
        // The device itself is a disk, for one VM.
        let spin = host.kernel("spin", &[&print("up"), SPIN]);
        let vm = Running::start(host.plain("web", &spin).args(["--disk", &device]));
        vm.says("up");
        host.run(host.plain("other", &off).args(["--disk", &device])).refused(&["in use", "mounted"]);
        host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
        vm.end().ok();
        assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
    }
    host.clean();
}

#[test]
fn kernel_or_initrd_that_does_not_fit_the_memory_says_so_and_gives_back_the_address() {
    let Some(host) = Host::new() else {
        return;
    };
    let large = host.file("large", &elf(SPIN, 100 << 20));
    host.run(&mut host.full("web", &large)).refused(&["start the VM web", "memory"]);
    assert_eq!(host.free("volt0"), 253);
    let initrd = host.path("initrd");
    std::fs::File::create(&initrd).unwrap().set_len(10 << 30).unwrap();
    let ended = host.run(host.full("web", &host.kernel("spin", &[SPIN])).arg("--initrd").arg(&initrd));
    ended.refused(&["start the VM web", "initrd", "more memory"]);
    assert_eq!(host.free("volt0"), 253);
    host.clean();
}

#[test]
fn exhausted_pool_refuses_and_gives_back_the_port_and_the_address_of_another_card() {
    let Some(host) = Host::new() else {
        return;
    };
    let one = r#"{"network":"small","subnet":"10.9.0.0/24","gateway":"10.9.0.1","pool":{"start":"10.9.0.2","end":"10.9.0.2"}}"#;
    host.run(&mut host.volt(&["network", "define", &host.file("small.json", one.as_bytes())])).ok();
    let vm = Running::start(host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])).args(["--net", "small"]));
    vm.says("up");
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let mut second = host.plain("other", &off);
    second.args(["--net", "volt0", "--net", "small"]);
    host.run(&mut second).refused(&["exhausted", "small"]);
    assert_eq!((host.free("volt0"), host.free("small")), (253, 0));
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert_eq!(table.matches("tap-").count(), 1, "{table}");
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.run(&mut second).ok();
    host.clean();
}

#[test]
fn network_that_is_not_defined_or_given_twice_is_refused() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.full("web", &off).args(["--net", "other"])).refused(&["network other", "volt network define"]);
    host.run(host.full("web", &off).args(["--net", "volt0"])).refused(&["volt0 is given twice"]);
    host.clean();
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn runtime_directory_with_too_long_a_name_is_refused() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    let long = host.path(&"d".repeat(90));
    host.run(host.plain("web", &kernel).env("VOLT_RUNTIME_DIR", &long)).refused(&["107", "VOLT_RUNTIME_DIR"]);
    assert_eq!(std::fs::read_dir(long.join("vms")).unwrap().count(), 0);
}

#[test]
fn user_without_directories_or_rights_is_told_what_to_set() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.plain("web", &kernel).env("VOLT_RUNTIME_DIR", "/dev/null/run"))
        .refused(&["/dev/null/run", "VOLT_RUNTIME_DIR"]);
    std::os::unix::fs::symlink("/tmp", host.path("link")).unwrap();
    let mut command = host.plain("web", &kernel);
    host.run(command.env("VOLT_RUNTIME_DIR", host.path("link"))).refused(&["link", "not a directory"]);
    host.clean();
}

/// The command with a hard limit.
fn limited(mut command: Command, resource: u32, limit: u64) -> Command {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        // SAFETY: reads a struct that outlives the call.
        match unsafe { libc::setrlimit(resource, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one async-signal-safe call.
    unsafe { command.pre_exec(set) };
    command
}

/// The same, by a shell that is under that limit and follows `advice` first.
fn following(command: &Command, resource: u32, limit: u64, advice: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{advice} && exec \"$0\" \"$@\"")]).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    limited(shell, resource, limit)
}

#[test]
fn limit_that_is_too_low_for_the_vm_is_named_with_a_remedy_that_works() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    // Services have limits of their own, or those of whoever starts them first.
    host.run(&mut host.full("first", &off)).ok();
    // A disk that nobody writes may be there often.
    let disk = format!("{},ro", host.path("disk").display());
    let run = || {
        let mut command = host.plain("web", &off);
        command.args(["--cpus", "4", "--net", "volt0"]);
        command.args((0..8).flat_map(|_| ["--disk", &disk]));
        command
    };
    let (memory, threads) = (64 << 20, 4 + 9);
    for (resource, least, flag) in [
        (libc::RLIMIT_FSIZE, memory, "ulimit -f"),
        (libc::RLIMIT_AS, memory + (64 << 20) + (4 << 20) * threads, "ulimit -v"),
        (libc::RLIMIT_NOFILE, 64 + 4 * 4 + 12 * 9, "ulimit -n"),
    ] {
        host.run(&mut limited(run(), resource, least)).ok();
        let ended = host.run(&mut limited(run(), resource, least - 1));
        ended.refused(&["exhausted: run the VM web", &least.to_string(), flag]);
        // What it says to do: by who may, and where the limit was set.
        if rustix::thread::capabilities(None).unwrap().effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
            let advice = ended.err.split_once("CAP_SYS_RESOURCE: ").unwrap().1.split('.').next().unwrap();
            host.run(&mut following(&run(), resource, least - 1, advice)).ok();
        }
        let takes = ended.err.split_once(" takes ").unwrap().1.split('.').next().unwrap();
        host.run(&mut limited(run(), resource, takes.parse().unwrap())).ok();
    }
    // The least that there may be is no better.
    for (resource, least) in [(libc::RLIMIT_FSIZE, 0), (libc::RLIMIT_NOFILE, 16)] {
        host.run(&mut limited(host.plain("web", &off), resource, least))
            .refused(&["exhausted: run the VM web", "ulimit"]);
    }
    host.clean();
}

#[test]
fn program_whose_interpreter_is_missing_is_named_with_that() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let (built, copies) = (Path::new(env!("CARGO_BIN_EXE_volt")).parent().unwrap(), host.path("bin"));
    fs::create_dir(&copies).unwrap();
    for name in schema::programs::programs() {
        program::copy(built.join(name), &copies.join(name));
    }
    let run = || {
        let of = host.plain("web", &off);
        let mut command = Command::new(copies.join("volt"));
        command.args(of.get_args()).envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command
    };
    // The core is started by the launcher, the store by the keeper, which says it in the log.
    let log = || fs::read_to_string(host.path("state/services.log")).unwrap_or_default();
    for (name, said_by) in [("kernel-store", "services.log"), ("vmm-core", "")] {
        program::write("#!/nowhere/at-all\n", &copies.join(name));
        let ended = host.run(&mut run());
        assert!(!ended.status.success());
        let said = if said_by.is_empty() {
            ended.err
        } else {
            ended.refused(&[said_by]);
            log()
        };
        assert!(said.contains(name) && said.contains("interpreter") && said.contains("No such file"), "{said}");
        // What it says to do.
        fs::remove_file(copies.join(name)).unwrap();
        program::copy(built.join(name), &copies.join(name));
        host.run(&mut run()).ok();
    }
    host.clean();
}

#[test]
fn full_state_directory_is_named_and_room_helps() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let state = host.small_state();
    let filler = state.join("filler");
    let fill = |left: u64| fs::write(&filler, vec![0; usize::try_from((64 << 20) - left).unwrap()]).unwrap();
    fill(64 << 10);
    for mut command in [host.full("web", &off), host.volt(&["network", "list"])] {
        host.run(&mut command).refused(&["exhausted", "is full", &state.display().to_string(), "VOLT_STATE_DIR"]);
    }
    fs::remove_file(&filler).unwrap();
    host.run(&mut host.full("web", &off)).ok();
    host.clean();
}
