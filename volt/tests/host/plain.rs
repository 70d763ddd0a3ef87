//! The same command as a plain user: what user namespaces give is taken, and what is missing is said.

use std::{
    ffi::CString,
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};

use crate::{
    host::{Host, Running, uid},
    kernel::{POWEROFF, SPIN, echo, print},
};

/// Has `command` run as `user`, who may use KVM through `node`.
fn as_user(command: &mut Command, user: u32, node: &Path) {
    let node = CString::new(node.as_os_str().as_encoded_bytes()).unwrap();
    let become_user = move || {
        // SAFETY: all are system calls on numbers and on texts that outlive them; the mount namespace is the child's own.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"".as_ptr(),
                    c"/".as_ptr(),
                    c"".as_ptr(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(node.as_ptr(), c"/dev/kvm".as_ptr(), c"".as_ptr(), libc::MS_BIND, std::ptr::null()) == 0
                && libc::setgroups(0, std::ptr::null()) == 0
                && libc::setresgid(user, user, user) == 0
                && libc::setresuid(user, user, user) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(become_user) };
}

#[test]
fn a_plain_user_s_vm_is_alone_in_namespaces_and_what_is_missing_is_said() {
    let test = "a_plain_user_s_vm_is_alone_in_namespaces_and_what_is_missing_is_said";
    let Some(host) = Host::new(test) else { return };
    let user = host.user + 20;
    let programs = Path::new(env!("CARGO_BIN_EXE_volt"));
    if let Some(closed) = programs.ancestors().find(|path| fs::metadata(path).unwrap().mode() & 0o001 == 0) {
        return println!("skipped: {test}: a plain user cannot reach the programs through {}", closed.display());
    }
    fs::set_permissions(host.path("."), fs::Permissions::from_mode(0o711)).unwrap();
    for dir in ["run", "state"] {
        fs::create_dir(host.path(dir)).unwrap();
        chown(host.path(dir), Some(user), Some(user)).unwrap();
    }
    let node = host.path("kvm");
    let path = CString::new(node.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path outlives the call.
    let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, fs::metadata("/dev/kvm").unwrap().rdev()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    let kernel = host.kernel("echo", &[&print("up"), &echo(), POWEROFF, SPIN]);
    fs::set_permissions(&kernel, fs::Permissions::from_mode(0o644)).unwrap();
    let disk = host.path("own-disk");
    fs::write(&disk, [0; 4096]).unwrap();
    chown(&disk, Some(user), Some(user)).unwrap();

    let mut command = host.plain("web", &kernel);
    command.arg("--disk").arg(&disk);
    as_user(&mut command, user, &node);
    let vm = Running::start(&mut command);
    vm.says("up");
    for program in ["vmm-core", "vhost-blk-backend"] {
        let [pid] = host.processes(program)[..] else { panic!("{program}: {:?}", host.processes(program)) };
        let process = format!("/proc/{pid}");
        assert_eq!(uid(Path::new(&process)), user);
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(field("NSpid:").split_whitespace().last(), Some("1"));
        for set in ["CapPrm:", "CapEff:", "CapInh:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set).trim_start_matches('0'), "", "{set}");
        }
        assert_eq!(fs::read_dir(format!("{process}/root")).unwrap().count(), 0);
        for kind in ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"] {
            let namespace = |process: &str| fs::read_link(format!("{process}/ns/{kind}")).unwrap();
            assert_ne!(namespace(&process), namespace("/proc/thread-self"), "{kind}");
        }
    }
    host.run(&mut {
        let mut stop = host.volt(&["stop", "web", "--grace", "0"]);
        as_user(&mut stop, user, &node);
        stop
    })
    .ok();
    let ended = vm.end().ok();
    for missing in ["a user of the VM's own (needs root)", "a cgroup with limits (needs root)"] {
        assert!(ended.err.contains(missing), "{missing:?} is not in {:?}", ended.err);
    }
    host.clean();

    let mut strict = host.volt(&["--confinement", "strict", "run", "--name", "web", "--kernel", &kernel]);
    as_user(&mut strict, user, &node);
    host.run(&mut strict).refused(&["a user of the VM's own", "strict"]);
}
