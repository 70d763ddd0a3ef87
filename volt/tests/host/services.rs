//! Services that are missing, that end at the wrong moment, or that cannot start.

use std::{
    fs,
    os::{fd::AsFd, unix::net::UnixListener},
    time::Duration,
};

use schema::{
    kernel_store_capnp::kernel_store,
    programs::{self, Starter, User},
};

use crate::{
    host::{Host, Running, kill, outliving, uid, until},
    kernel::{POWEROFF, SPIN, print},
};

/// A capability's place in a set (capabilities(7)).
fn place(capability: &str) -> u64 {
    match capability {
        "CAP_NET_ADMIN" => 1 << 12,
        other => panic!("Where is {other} in a set?"),
    }
}

#[test]
fn many_runs_at_once_start_each_service_once() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("off", &[&print("Volt"), POWEROFF, SPIN]);
    let vms: Vec<_> =
        (0..6).map(|n| Running::start(host.plain(&format!("web-{n}"), &kernel).args(["--net", "volt0"]))).collect();
    for vm in vms {
        assert_eq!(vm.end().ok().out, "Volt");
    }
    for service in outliving() {
        assert_eq!(host.processes(service).len(), 1, "{service}");
    }
    host.clean();
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn of_many_runs_with_one_name_one_runs() {
    let Some(host) = Host::new() else { return };
    let kernel = host.kernel("spin", &[SPIN]);
    let mut vms: Vec<_> = (0..6).map(|_| Running::start(&mut host.plain("web", &kernel))).collect();
    host.runs("web");
    // Each of the others asks while it runs, however long they take to come to that.
    until("the others have ended", || match vms.iter_mut().filter_map(|vm| vm.child.try_wait().unwrap()).count() {
        5 => Ok(()),
        ended => Err(ended.to_string()),
    });
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    let ended: Vec<_> = vms.into_iter().map(Running::end).collect();
    assert_eq!(ended.iter().filter(|ended| ended.status.success()).count(), 1, "{ended:?}");
    ended.iter().filter(|ended| !ended.status.success()).for_each(|ended| ended.refused(&["alreadyExists", "web"]));
    host.clean();
}

#[test]
fn service_that_ends_just_as_it_is_connected_to_is_started_anew() {
    let Some(host) = Host::new() else { return };
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
    let Some(host) = Host::new() else { return };
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    let store = host.processes("kernel-store")[0];
    kill(store, libc::SIGSTOP);
    host.run(&mut host.volt(&["kernel", "list"])).refused(&["reach kernel-store", "kernel-store.sock"]);
    kill(store, libc::SIGCONT);
    host.run(&mut host.volt(&["kernel", "list"])).ok();
}

#[test]
fn service_that_cannot_start_leaves_no_socket_and_its_log_is_named() {
    let Some(host) = Host::new() else { return };
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
    let Some(host) = Host::new() else { return };
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    // The idle time is half a minute.
    until("services and sockets are gone", || {
        let left = host.sockets("run");
        if left.is_empty() && host.processes("volt keep").is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    host.clean();
}

#[test]
fn sockets_of_who_has_ended_go_under_the_lock_or_with_the_next_run_where_it_cannot_be_had_in_time() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    // They wait for it five seconds.
    for in_time in [true, false] {
        let vm = Running::start(&mut host.full("web", &spin));
        vm.says("up");
        let locks = ["run", "run/vms"].map(|folder| fs::File::open(host.path(folder)).unwrap());
        for lock in &locks {
            rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        }
        kill(host.processes("ipamd")[0], libc::SIGKILL);
        vm.signal(libc::SIGKILL);
        let left = || {
            let sockets = ["run", "run/vms"].map(|folder| host.sockets(folder)).concat();
            sockets.into_iter().filter(|name| ["ipamd.", "web."].iter().any(|of| name.starts_with(of))).count()
        };
        if in_time {
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(left(), 4);
            drop(locks);
            vm.end();
            until("the sockets are gone", || if left() == 0 { Ok(()) } else { Err(left().to_string()) });
        } else {
            until("the keeper and the janitor have given up", || {
                let log = fs::read_to_string(host.path("state/services.log")).unwrap();
                let waiting = host.processes("volt");
                if log.contains("held the lock for 5 s") && waiting.is_empty() { Ok(()) } else { Err(log) }
            });
            assert_eq!(left(), 4);
            drop(locks);
            vm.end();
            host.run(&mut host.full("other", &off)).ok();
        }
        host.clean();
    }
}

/// Connections to a socket that nobody accepts from, until its queue is full.
fn fill(path: &std::path::Path) -> Vec<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let mut queue = Vec::new();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&socket, &SocketAddrUnix::new(path).unwrap()) {
            Ok(()) => queue.push(socket),
            Err(rustix::io::Errno::AGAIN) => return queue,
            Err(e) => panic!("{}: {e}", path.display()),
        }
    }
}

#[test]
fn supervisor_that_is_stopped_with_a_full_queue_keeps_nobody_from_starting() {
    let Some(host) = Host::new() else {
        return;
    };
    let vm = Running::start(&mut host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    vm.signal(libc::SIGSTOP);
    let queue = fill(&host.path("run/vms/web.sock"));
    assert!(queue.len() > 100, "{}", queue.len());
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(&mut host.plain("other", &off)).ok();
    // The one that is stopped lives.
    host.run(&mut host.plain("web", &off)).refused(&["alreadyExists", "web"]);
    assert_eq!(host.sockets("run/vms").len(), 2);
    drop(queue);
    vm.signal(libc::SIGCONT);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
}

#[test]
fn service_that_is_stopped_with_a_full_queue_keeps_its_own_clients_waiting_and_no_others() {
    let Some(host) = Host::new() else { return };
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    let store = host.processes("kernel-store")[0];
    kill(store, libc::SIGSTOP);
    let queue = fill(&host.path("run/kernel-store.sock"));
    let waiting = Running::start(&mut host.volt(&["kernel", "list"]));
    // It waits ten seconds, and whoever needs the lock five: ipamd has to be started for this.
    std::thread::sleep(Duration::from_millis(200));
    host.run(&mut host.volt(&["network", "list"])).ok();
    waiting.end().refused(&["reach kernel-store", "kernel-store.sock"]);
    drop(queue);
    kill(store, libc::SIGCONT);
    host.run(&mut host.volt(&["kernel", "list"])).ok();
}

#[test]
fn keeper_that_is_stopped_keeps_no_service_from_being_started_again() {
    let Some(host) = Host::new() else { return };
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    let keeper = host.processes("volt keep")[0];
    kill(keeper, libc::SIGSTOP);
    host.end(["kernel-store"], libc::SIGKILL);
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    // It has only its own to clear away, which the second one's have replaced.
    kill(keeper, libc::SIGCONT);
    until("the first keeper has ended", || match host.processes("volt keep").len() {
        1 => Ok(()),
        keepers => Err(keepers.to_string()),
    });
    assert_eq!(host.sockets("run").len(), 2);
    host.run(&mut host.volt(&["kernel", "list"])).ok();
    assert_eq!(host.processes("volt keep").len(), 1);
}

#[test]
fn holder_of_the_lock_that_stands_still_is_named_with_what_to_do() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(&mut host.volt(&["list"])).ok();
    for folder in ["run", "run/vms"] {
        let lock = fs::File::open(host.path(folder)).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let own = std::process::id();
        host.run(&mut host.plain("web", &off)).refused(&[
            &format!("lock {}", host.path(folder).display()),
            &format!("({own})"),
            &format!("kill -CONT {own}"),
        ]);
    }
    host.run(&mut host.plain("web", &off)).ok();
    host.clean();
}

#[test]
fn janitor_and_launcher_that_are_stopped_keep_nobody_from_starting() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    host.run(&mut host.plain("first", &off)).ok();
    let vm = Running::start(&mut host.plain("web", &spin));
    vm.says("up");
    let janitors: Vec<_> = host.processes("volt").into_iter().filter(|pid| *pid != vm.pid()).collect();
    janitors.iter().for_each(|pid| kill(*pid, libc::SIGSTOP));
    host.run(&mut host.plain("other", &off)).ok();
    janitors.iter().for_each(|pid| kill(*pid, libc::SIGCONT));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
}

/// A kernel store of somebody else's, with as many kernels as one may list.
struct Crowded;

impl kernel_store::Server for Crowded {
    async fn list(
        self: std::rc::Rc<Self>,
        _: kernel_store::ListParams,
        mut results: kernel_store::ListResults,
    ) -> Result<(), capnp::Error> {
        let mut kernels = results.get().init_kernels(1024);
        for n in 0..1024 {
            let mut kernel = kernels.reborrow().get(n);
            kernel.set_digest(format!("{n:064x}"));
            kernel.set_alias(format!("{n}\x1b[2J{}", "a".repeat(48)));
            kernel.set_version("6.\x07");
        }
        Ok(())
    }
}

#[test]
fn longest_list_is_printed_whole_and_a_service_s_text_cannot_command_the_terminal() {
    let Some(host) = Host::new() else { return };
    host.run(&mut host.volt(&["list"])).ok();
    let endpoint = ipc::Endpoint::bind(&host.path("run/kernel-store.sock"), 0o600).unwrap();
    std::thread::spawn(move || {
        let clients = ipc::Clients::root_and([]);
        let bootstrap = |_| Ok(capnp_rpc::new_client::<kernel_store::Client, _>(Crowded).client);
        ipc::run(ipc::serve(endpoint, clients, ipc::Lane::new(), ipc::Limits::default(), None, bootstrap))
    });
    let listed = host.run(&mut host.volt(&["kernel", "list"])).ok().out;
    assert_eq!(listed.lines().count(), 1 + 1024);
    assert!(listed.lines().last().unwrap().contains("1023?[2Jaaa") && !listed.contains(['\x1b', '\x07']));
}

#[test]
fn services_that_root_starts_are_users_of_their_own_and_netmgr_alone_has_a_capability() {
    let Some(host) = Host::new() else { return };
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
    let mut users = Vec::new();
    for process in programs::started_by(Starter::Keeper) {
        let (service, User::Service(place_of_user)) = (process.program, process.user) else { panic!("{process:?}") };
        let capabilities: u64 = process.capabilities.iter().map(|name| place(name)).sum();
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
        assert_eq!(user, host.user + place_of_user, "{service}");
        users.push(user);
        let seen: Vec<_> = fs::read_dir(format!("{process}/root")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!seen.iter().any(|name| name == "etc"), "{service} sees {seen:?}");
    }
    users.sort_unstable();
    users.dedup();
    assert_eq!(users.len(), 3);
    // What they keep is theirs from now on, also where they are started again.
    host.end(outliving(), libc::SIGKILL);
    host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
}
