//! The program as a process: who may use it, what it may do itself, how it starts and ends.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
    time::Duration,
};

use common::*;
use ipc::Code;
use testrig::service::{Client as _, IDLE, inherited_sockets_are_served_until_nobody_is_connected};

const NOBODY: u32 = 65_534;

#[test]
fn only_root_and_its_own_user_are_given_the_host() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        fs::set_permissions(netmgr.socket.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let lane = format!("{}.fds", netmgr.socket.display());
        for socket in [netmgr.socket.to_str().unwrap(), &lane] {
            assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
            // The check below must hold even where the socket's mode lets everybody in.
            fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
        }
        let socket = netmgr.socket.clone();
        let stranger = testkit::user::as_user(NOBODY, move || {
            // Never a host; mostly told why: a refusal that crosses with a call is seen as the connection's end.
            run(async {
                let mut told = 0;
                for _ in 0..20 {
                    let connection = ipc::Connection::connect(&socket).await.unwrap();
                    let client = Client::from(connection);
                    let fault = client.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap();
                    told += u32::from(fault.code == Code::PermissionDenied && fault.why.contains("user 65534"));
                }
                told
            })
        });
        assert!(stranger.join().unwrap() > 0);
        assert!(interfaces().is_empty());
        run(async { netmgr.connect().await.define_default().await });
    });
}

#[test]
fn process_keeps_net_admin_alone_and_each_thread_has_its_filter() {
    in_own_network(|| {
        let netmgr = Netmgr::start_with(|command| _ = command.args(["--confinement", "strict"]));
        // Its sockets are there before it is narrow, but it answers only after.
        run(async { netmgr.connect().await.define_default().await });
        let pid = netmgr.process.id();
        // CAP_NET_ADMIN is 12.
        netmgr.is_confined(2, 1 << 12);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("CapBnd:\t0000000000001000"), "{status}");
        // Nothing is open but sockets, the runtime's own descriptors, three folders as places only, and the three standard ones.
        for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let fd = fd.unwrap();
            // The connection that the question came over is just being closed.
            let Ok(to) = fs::read_link(fd.path()) else { continue };
            let to = to.display().to_string();
            let number: i32 = fd.file_name().to_str().unwrap().parse().unwrap();
            assert!(
                number <= 2
                    || to.starts_with("socket:")
                    || to.starts_with("anon_inode:")
                    || to == "/proc/sys/net/ipv4/conf"
                    || to == "/proc/sys/net/ipv6/conf"
                    || to == "/sys/devices/virtual/net",
                "{number}: {to}"
            );
        }
    });
}

#[test]
fn opener_of_macvtaps_has_its_socket_and_no_right_and_ends_with_netmgr() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start_with(|command| _ = command.args(["--confinement", "strict", "--user", "64999"]));
        run(async { netmgr.connect().await.define_default().await });
        let pid = netmgr.process.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let opener: u32 = children.trim().parse().unwrap();
        let at = |what: &str| format!("/proc/{opener}/{what}");
        eventually("it is narrow", || fs::read_to_string(at("status")).unwrap().contains("Seccomp:\t2"));
        let status = fs::read_to_string(at("status")).unwrap();
        for line in ["Name:\tmacvtap-opener", "Uid:\t64999\t64999\t64999\t64999", "Threads:\t1", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "{line}: {status}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(status.contains(&format!("{set}:\t0000000000000000")), "{set}: {status}");
        }
        for namespace in ["net", "mnt", "ipc", "uts", "pid"] {
            let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_ne!(of(opener), of(std::process::id()), "{namespace}");
        }
        let open = fs::read_dir(at("fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
        let beyond: Vec<_> = open.filter(|to| to.to_str().unwrap().starts_with("socket:")).collect();
        assert_eq!(beyond.len(), 1, "{beyond:?}");
        let ended = || fs::read_link(at("exe")).is_err();
        assert!(!ended());
        netmgr.kill();
        eventually("it ends", ended);
    });
}

#[test]
fn inherited_sockets_are_served_and_idle_netmgr_ends_with_0_and_leaves_its_network() {
    in_own_network(|| {
        let dir = tempfile::tempdir().unwrap();
        inherited_sockets_are_served_until_nobody_is_connected(dir.path(), async |client: &Client| {
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            client.fd(&port).await.unwrap();
            tokio::time::sleep(2 * IDLE).await;
            assert_eq!(interfaces(), ["volt0", "tap-web"]);
            drop(port);
        });
        assert_eq!(interfaces(), ["volt0"]);
    });
}

#[test]
fn netmgr_to_which_nobody_is_connected_keeps_a_guest_to_its_rules_and_ends_once_that_has_gone() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start_with(|command| _ = command.args(["--idle-exit", &IDLE.as_secs().to_string()]));
        let container = testrig::container::Container::new();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            client.veth(&factory, "container-db", &container, |mut asked| asked.set_durable(true)).await.unwrap();
        });
        std::thread::sleep(3 * IDLE);
        assert_eq!(netmgr.process.try_wait().unwrap(), None);
        nft("flush ruleset");
        eventually("its rules are there again", || nft("list ruleset").contains("veth-db-h"));
        drop(container);
        eventually("it ends", || netmgr.process.try_wait().unwrap().is_some_and(|status| status.success()));
    });
}

#[test]
fn without_the_right_it_does_not_start_and_names_it() {
    in_own_network(|| {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("netmgr");
        testkit::program::copy(env!("CARGO_BIN_EXE_netmgr"), &copy);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new(&copy);
        command.arg("--socket").arg(dir.path().join("s")).uid(NOBODY).gid(NOBODY);
        let said = refusal(command);
        assert!(said.contains("CAP_NET_ADMIN is missing") && said.contains("start it as root"), "{said}");
    });
}

#[test]
fn right_over_another_user_namespace_is_not_enough_and_the_call_names_the_remedy() {
    in_own_network(|| {
        // All capabilities, but in a user namespace that does not own the network namespace.
        let netmgr = Netmgr::start_with(|command| {
            let mut inner = Command::new("unshare");
            inner
                .args(["--user", "--map-root-user", "--kill-child"])
                .arg(command.get_program())
                .args(command.get_args());
            *command = inner;
        });
        run(async {
            let client = netmgr.connect().await;
            let fault = client.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap();
            assert_eq!(fault.code, Code::PermissionDenied);
            assert!(fault.to_string().contains("CAP_NET_ADMIN in the user namespace that owns"), "{fault}");
        });
        assert!(interfaces().is_empty());
    });
}

#[test]
fn without_the_tun_device_networks_work_and_a_port_names_the_remedy() {
    in_own_network(|| {
        // An empty root: the program is static.
        let root = tempfile::tempdir().unwrap();
        testkit::program::copy(env!("CARGO_BIN_EXE_netmgr"), &root.path().join("netmgr"));
        let mut command = Command::new("/netmgr");
        command.args(["--socket", "/s"]).stdin(Stdio::null()).stderr(Stdio::piped());
        let into = std::ffi::CString::new(root.path().to_str().unwrap()).unwrap();
        // SAFETY: prctl, chroot and chdir are system calls that touch nothing but the child; the strings outlive them.
        unsafe {
            command.pre_exec(move || {
                let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                    && libc::chroot(into.as_ptr()) == 0
                    && libc::chdir(c"/".as_ptr()) == 0;
                if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            });
        }
        let mut service = Service::of(command.spawn().unwrap(), root.path().join("s"));
        run(async {
            let client = service.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let fault = client.tap(&factory, "vm-web").await.err().unwrap();
            assert_eq!(fault.code, Code::Unavailable);
            assert!(fault.to_string().contains("modprobe tun"), "{fault}");
            assert_eq!(interfaces(), ["volt0"]);
        });
        service.kill();
        let said = std::io::read_to_string(service.process.stderr.take().unwrap()).unwrap();
        assert!(said.contains("/dev/net/tun is not there"), "{said}");
    });
}

#[test]
fn unusable_arguments_end_it_with_an_error_that_names_them() {
    let cases: [(&[&str], &str); 7] = [
        (&[], "--listen-fd"),
        (&["--listen-fd", "3"], "--lane-fd"),
        (&["--listen-fd", "77", "--lane-fd", "78"], "descriptor 77"),
        (&["--listen-fd", "0", "--lane-fd", "1"], "descriptor 0"),
        (&["--socket", "/nowhere/at/all", "--confinement", "lax"], "lax"),
        (&["--socket", "/nowhere/at/all"], "/nowhere/at/all"),
        (&["--socket", "/nowhere/at/all", "--instance", "No Name"], "No Name"),
    ];
    for (arguments, named) in cases {
        in_own_network(move || {
            let output = Command::new(Client::PROGRAM).args(arguments).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(!output.status.success() && output.status.code().is_some(), "{arguments:?}");
            assert!(said.contains(named), "{arguments:?}: {said}");
        });
    }
}

#[test]
fn second_netmgr_on_the_same_socket_is_refused() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        let mut command = Command::new(Client::PROGRAM);
        command.arg("--socket").arg(&netmgr.socket);
        let said = refusal(command);
        assert!(said.contains("another program does"), "{said}");
        run(async { netmgr.connect().await.define_default().await });
    });
}

#[test]
fn netmgr_that_is_killed_at_any_moment_leaves_no_tap_and_a_bridge_that_the_next_one_adopts() {
    in_own_network(|| {
        for moment in 0..20 {
            let mut netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let work = async {
                    let network = client.define("volt0", "10.42.0.1", 24, 0).await?;
                    let factory = client.factory(&network, 9).await?;
                    let _a = client.tap(&factory, "vm-a").await?;
                    let _b = client.tap(&factory, "vm-a-longer-name").await?;
                    std::future::pending::<Result<(), ipc::Fault>>().await
                };
                let _ = tokio::time::timeout(Duration::from_micros(moment * 400), work).await;
                netmgr.kill();
            });
            let left = interfaces();
            assert!(left.is_empty() || left == ["volt0"], "{left:?}");
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                client.define_default().await;
                client.remove("volt0").await.unwrap();
            });
            assert!(interfaces().is_empty());
        }
    });
}
