//! Services that are missing, that end at the wrong moment, or that cannot start.

use std::{
    fs,
    os::{fd::AsFd, unix::net::UnixListener},
    time::Duration,
};

use crate::{
    host::{Host, Running, kill, uid, until},
    kernel::{POWEROFF, SPIN, print},
};

/// The set that holds CAP_NET_ADMIN alone (capabilities(7)).
const NET_ADMIN: u64 = 1 << 12;

#[test]
fn many_runs_at_once_start_each_service_once() {
    let Some(host) = Host::new("many_runs_at_once_start_each_service_once") else { return };
    let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
    let vms: Vec<_> =
        (0..6).map(|n| Running::start(host.plain(&format!("web-{n}"), &kernel).args(["--net", "volt0"]))).collect();
    for vm in vms {
        assert_eq!(vm.end().ok().out, "Volt");
    }
    for service in ["kernel-store", "netmgr", "ipamd", "volt keep"] {
        assert_eq!(host.processes(service).len(), 1, "{service}");
    }
    host.clean();
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn of_many_runs_with_one_name_one_runs() {
    let Some(host) = Host::new("of_many_runs_with_one_name_one_runs") else { return };
    let kernel = host.kernel("spin", &[SPIN]);
    let vms: Vec<_> = (0..6).map(|_| Running::start(&mut host.plain("web", &kernel))).collect();
    host.runs("web");
    std::thread::sleep(Duration::from_millis(500));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    let ended: Vec<_> = vms.into_iter().map(Running::end).collect();
    assert_eq!(ended.iter().filter(|ended| ended.status.success()).count(), 1, "{ended:?}");
    ended.iter().filter(|ended| !ended.status.success()).for_each(|ended| ended.refused(&["alreadyExists", "web"]));
    host.clean();
}

#[test]
fn service_that_ends_just_as_it_is_connected_to_is_started_anew() {
    let Some(host) = Host::new("service_that_ends_just_as_it_is_connected_to_is_started_anew") else { return };
    let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
    host.run(&mut host.volt(&["list"])).ok();
    // Listens, and ends once somebody waits in the queue: what an idle service's last moment looks like.
    let path = host.path("run/kernel-store.sock");
    let (rpc, lane) = (UnixListener::bind(&path).unwrap(), seqpacket(&host.path("run/kernel-store.sock.fds")));
    let ending = std::thread::spawn(move || {
        let mut polled = [rustix::event::PollFd::new(&rpc, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop((rpc, lane));
    });
    assert_eq!(host.run(&mut host.plain("web", &kernel)).ok().out, "Volt");
    ending.join().unwrap();
}

fn seqpacket(path: &std::path::Path) -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    listen(socket.as_fd(), 8).unwrap();
    socket
}

#[test]
fn service_that_does_not_answer_is_named() {
    let Some(host) = Host::new("service_that_does_not_answer_is_named") else { return };
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    let store = host.processes("kernel-store")[0];
    kill(store, libc::SIGSTOP);
    host.run(&mut host.volt(&["kernel", "list"])).refused(&["reach kernel-store", "kernel-store.sock"]);
    kill(store, libc::SIGCONT);
    host.run(&mut host.volt(&["kernel", "list"])).ok();
}

#[test]
fn service_that_cannot_start_leaves_no_socket_and_its_log_is_named() {
    let Some(host) = Host::new("service_that_cannot_start_leaves_no_socket_and_its_log_is_named") else { return };
    let kernel = host.kernel("off", &[POWEROFF, SPIN]);
    fs::create_dir(host.path("state")).unwrap();
    fs::write(host.path("state/ipamd"), "not a directory").unwrap();
    host.run(&mut host.full("web", &kernel)).refused(&["services.log"]);
    host.clean();
    assert!(fs::read_to_string(host.path("state/services.log")).unwrap().contains("ipamd"));
    fs::remove_file(host.path("state/ipamd")).unwrap();
    until("ipamd's sockets are gone", || {
        let left = host.sockets("run").into_iter().find(|name| name.starts_with("ipamd"));
        left.map_or(Ok(()), Err)
    });
    host.run(&mut host.full("web", &kernel)).ok();
}

#[test]
fn services_and_their_sockets_go_once_nobody_needs_them() {
    let Some(host) = Host::new("services_and_their_sockets_go_once_nobody_needs_them") else { return };
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    // The idle time is half a minute.
    until("services and sockets are gone", || {
        let left = host.sockets("run");
        if left.is_empty() && host.processes("volt keep").is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    host.clean();
}

#[test]
fn services_that_root_starts_are_users_of_their_own_and_netmgr_alone_has_a_capability() {
    let test = "services_that_root_starts_are_users_of_their_own_and_netmgr_alone_has_a_capability";
    let Some(host) = Host::new(test) else { return };
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    let mut users = Vec::new();
    for (service, capabilities) in [("kernel-store", 0), ("netmgr", NET_ADMIN), ("ipamd", 0)] {
        let process = format!("/proc/{}", host.processes(service)[0]);
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(set(name), capabilities, "{service} {name}");
        }
        assert_eq!((set("CapInh:"), set("CapAmb:")), (0, 0), "{service}");
        let user = uid(std::path::Path::new(&process));
        assert!((host.user..host.user + 16).contains(&user), "{service} is user {user}");
        users.push(user);
        let seen: Vec<_> = fs::read_dir(format!("{process}/root")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!seen.iter().any(|name| name == "etc"), "{service} sees {seen:?}");
    }
    users.sort_unstable();
    users.dedup();
    assert_eq!(users.len(), 3);
    // What they keep is theirs from now on, also where they are started again.
    for service in ["volt keep", "netmgr", "ipamd", "kernel-store"] {
        kill(host.processes(service)[0], libc::SIGKILL);
    }
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
}
