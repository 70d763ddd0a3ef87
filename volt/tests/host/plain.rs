//! The same command as a plain user, and where an outer sandbox forbids mounts or namespaces: what is to be had is taken,
//! and what is missing is said.

use std::{
    ffi::{CStr, CString},
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    ptr,
};

use schema::programs::{JANITOR, KEEPER, SUPERVISOR, beside_volt};

use crate::{
    host::{Host, Running, services, uid},
    kernel::{POWEROFF, SPIN, echo, print},
};

/// Has `command` run as `user`, who may use KVM through `node`.
pub fn as_user(command: &mut Command, user: u32, node: &Path) {
    with_node(command, node, c"/dev/kvm");
    let become_user = move || {
        // SAFETY: all are system calls on numbers.
        let done = unsafe {
            libc::setgroups(0, ptr::null()) == 0
                && libc::setresgid(user, user, user) == 0
                && libc::setresuid(user, user, user) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(become_user) };
}

/// Has `command` see `node` as `device`.
fn with_node(command: &mut Command, node: &Path, device: &'static CStr) {
    let node = CString::new(node.as_os_str().as_encoded_bytes()).unwrap();
    let mount = move || {
        // SAFETY: all are system calls on numbers and on texts that outlive them; the mount namespace is the child's own.
        let done = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(c"".as_ptr(), c"/".as_ptr(), c"".as_ptr(), libc::MS_REC | libc::MS_PRIVATE, ptr::null())
                    == 0
                && libc::mount(node.as_ptr(), device.as_ptr(), c"".as_ptr(), libc::MS_BIND, ptr::null()) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(mount) };
}

/// Makes a node of the same device as `like`, for everybody.
pub fn node(path: PathBuf, like: &str) -> PathBuf {
    let text = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path outlives the call.
    let made = unsafe { libc::mknod(text.as_ptr(), libc::S_IFCHR | 0o666, fs::metadata(like).unwrap().rdev()) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    path
}

#[test]
fn a_plain_user_s_vm_is_alone_in_namespaces_and_what_is_missing_is_said() {
    let Some(host) = Host::new() else { return };
    let user = host.user + 20;
    let programs = Path::new(env!("CARGO_BIN_EXE_volt"));
    if let Some(closed) = programs.ancestors().find(|path| fs::metadata(path).unwrap().mode() & 0o001 == 0) {
        return testkit::skip!("a plain user cannot reach the programs through {}", closed.display());
    }
    fs::set_permissions(host.path("."), fs::Permissions::from_mode(0o711)).unwrap();
    for dir in ["run", "state"] {
        fs::create_dir(host.path(dir)).unwrap();
        chown(host.path(dir), Some(user), Some(user)).unwrap();
    }
    let node = node(host.path("kvm"), "/dev/kvm");
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

/// Has `command` run where these system calls are refused.
fn without(command: &mut Command, forbidden: &[libc::c_long]) {
    let op = |code: u32, jt: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf: 0, k };
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    // The number of the call, then for each a jump over the rest to the refusal.
    let mut program = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for (n, call) in forbidden.iter().enumerate() {
        program.push(op(jump, (forbidden.len() - n) as u8, *call as u32));
    }
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    program.push(op(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    let install = move || {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: the program is as long as it says, and outlives the call, which copies it.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes a system call only, and allocates nothing.
    unsafe { command.pre_exec(install) };
}

/// Runs a VM where those calls are refused to root: it works, and every process says that it has no `lost` of its own.
fn runs_and_says(forbidden: &[libc::c_long], lost: &str) {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("echo", &[&print("up"), &echo(), POWEROFF, SPIN]);
    let mut command = host.full("web", &kernel);
    // netmgr has no node of its own there.
    with_node(&mut command, &node(host.path("tun"), "/dev/net/tun"), c"/dev/net/tun");
    without(&mut command, forbidden);
    let vm = Running::start(&mut command);
    vm.says("up");
    for program in beside_volt() {
        let [pid] = host.processes(program)[..] else { panic!("{program}: {:?}", host.processes(program)) };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert_ne!(uid(Path::new(&format!("/proc/{pid}"))), 0, "{program}");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        assert_eq!(field("NoNewPrivs:"), "1", "{program}");
        // One is the outer sandbox's.
        assert!(field("Seccomp_filters:").parse::<u32>().unwrap() >= 2, "{program}: {status}");
    }
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    let ended = vm.end().ok();
    for program in [SUPERVISOR.title, JANITOR.title] {
        let line = format!("{program}: runs without {lost} of its own");
        assert!(ended.err.contains(&line), "{line:?} is not in {:?}", ended.err);
    }
    assert!(ended.err.contains("without namespaces of the VM's own"), "{:?}", ended.err);
    let log = fs::read_to_string(host.path("state").join("services.log")).unwrap();
    for service in services().chain([KEEPER.title]) {
        assert!(log.contains(&format!("{service}: runs without {lost} of its own")), "{log}");
    }
    host.clean();
}

#[test]
fn where_mounts_are_forbidden_to_root_a_vm_runs_and_what_is_missing_is_said() {
    // As in a container that has CAP_SYS_ADMIN, and AppArmor's usual profile.
    let mounts = [libc::SYS_mount, libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_pivot_root];
    runs_and_says(&mounts, "a root");
}

#[test]
fn where_unshare_is_forbidden_to_root_a_vm_runs_and_what_is_missing_is_said() {
    // As under systemd's RestrictNamespaces=.
    runs_and_says(&[libc::SYS_unshare], "namespaces");
}
