//! Services, and supervisors, whose places are all taken: whoever comes is told so at once, by whom and what to do, and nothing is changed.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::Path,
    process::Command,
};

use ipc::Limits;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    host::{Ended, Host, Running, services, until},
    kernel::{POWEROFF, SPIN, print},
    plain::{as_user, node},
};

/// Those who hold places: connections that say nothing, made by as many processes as it takes.
struct Crowd(Vec<OwnedFd>);

impl Crowd {
    /// Nobody yet. This process keeps the sockets, and needs room for them.
    fn new() -> Crowd {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        Crowd(Vec::new())
    }

    /// So many more, of one process. Its user is root, or another.
    fn process(&mut self, path: &Path, kind: SocketType, user: Option<u32>, count: usize) {
        let address = SocketAddrUnix::new(path).unwrap();
        let sockets: Vec<_> =
            (0..count).map(|_| socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()).collect();
        // Who connects is whom the kernel calls the peer from then on, wherever the socket goes.
        // SAFETY: the child makes system calls alone, allocates nothing and returns nowhere.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let become_user = |user| {
                // SAFETY: system calls on numbers.
                unsafe { libc::setgroups(0, std::ptr::null()) == 0 && libc::setresuid(user, user, user) == 0 }
            };
            let done = user.is_none_or(become_user)
                && sockets.iter().all(|socket| rustix::net::connect(socket, &address).is_ok());
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!done)) };
        }
        let mut status = 0;
        // SAFETY: the status outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        self.0.extend(sockets);
    }

    /// Takes all places of a vat, but for those that are `taken`: as many as one process may have, and then those that are for who has none.
    fn fill(&mut self, path: &Path, kind: SocketType, limits: &Limits, taken: usize) {
        let mut open = limits.connections - limits.connections_reserved - taken;
        while open > 0 {
            let count = open.min(limits.connections_per_process);
            self.process(path, kind, None, count);
            open -= count;
        }
        (0..limits.connections_reserved).for_each(|_| self.process(path, kind, None, 1));
    }

    /// None of them was refused.
    fn all_hold(&self) {
        let refused = self.0.iter().filter(|socket| {
            let mut polled = [PollFd::new(socket, PollFlags::IN)];
            rustix::event::poll(&mut polled, Some(&Timespec::default())) != Ok(0)
        });
        assert_eq!(refused.count(), 0);
    }
}

/// The limits that a service of that name has here.
fn limits(host: &Host, service: &str) -> Limits {
    let pid = host.processes(service)[0];
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    Limits::default().within(line.split_whitespace().nth(1).unwrap().parse().unwrap())
}

/// It was refused for want of a place, was told who has them and what to do, and nothing else was said.
fn refused(ended: &Ended, who: &str) {
    ended.refused(&["exhausted", who, "Close"]);
    assert!(ended.out.is_empty() && !ended.err.contains("services.log"), "{ended:?}");
}

/// A service sees one by one that those who held its places are gone; until it has seen enough of them, the one refusal that may come is for want of a place.
fn works_once_they_left(host: &Host, command: &dyn Fn() -> Command) -> Ended {
    let mut last = None;
    until("there is a place", || {
        let ended = host.run(&mut command());
        if !ended.status.success() {
            ended.refused(&["exhausted", "Close"]);
            return Err(ended.err);
        }
        last = Some(ended);
        Ok(())
    });
    last.unwrap()
}

#[test]
fn commands_of_a_service_whose_places_are_all_taken_say_so_at_once_and_work_once_one_is_free() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[&print("up"), POWEROFF, SPIN]);
    host.run(&mut host.full("web", &off)).ok();
    let network = host.file("network.json", br#"{"network":"other","subnet":"10.43.0.0/24"}"#);
    let (run, list) = (|| host.full("web", &off), || host.volt(&["network", "list"]));
    let define = || host.volt(&["network", "define", &network]);
    let kernels = || host.volt(&["kernel", "list"]);
    // Who needs which.
    let commands: [(_, Vec<&dyn Fn() -> Command>); 3] = [
        ("ipamd", vec![&run, &list, &define]),
        ("netmgr", vec![&run, &define]),
        ("kernel-store", vec![&run, &kernels]),
    ];
    for (service, commands) in commands {
        let path = host.path(&format!("run/{service}.sock"));
        let limits = limits(&host, service);
        let mut crowd = Crowd::new();
        crowd.fill(&path, SocketType::STREAM, &limits, 0);
        let who = format!("there are {} connections, of which process", limits.connections);
        for command in &commands {
            refused(&host.run(&mut command()), &who);
            host.clean();
        }
        crowd.all_hold();
        // No new one was started beside it.
        assert_eq!(host.processes(service).len(), 1);
        drop(crowd);
        // Nothing was changed.
        assert!(!works_once_they_left(&host, &list).out.contains("other"));
        assert_eq!(host.free("volt0"), 253);
        for command in commands {
            works_once_they_left(&host, command);
        }
        host.run(&mut host.volt(&["network", "remove", "other"]));
        host.clean();
    }
}

#[test]
fn commands_that_pass_a_descriptor_to_a_service_whose_lanes_are_all_taken_say_so_at_once() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[&print("up"), POWEROFF, SPIN]);
    host.run(&mut host.full("web", &off)).ok();
    for service in services() {
        let mut crowd = Crowd::new();
        let path = schema::paths::lane(&host.path(&format!("run/{service}.sock")));
        crowd.fill(&path, SocketType::SEQPACKET, &limits(&host, service), 0);
        host.run(&mut host.full("web", &off)).refused(&["exhausted", "as many lanes as it may", "Close connections"]);
        host.clean();
        crowd.all_hold();
        drop(crowd);
        works_once_they_left(&host, &|| host.full("web", &off));
        host.clean();
    }
    assert_eq!(host.free("volt0"), 253);
}

#[test]
fn supervisor_whose_places_are_all_taken_is_listed_with_the_reason_and_its_vm_runs_on() {
    let Some(host) = Host::new() else { return };
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let vms = ["web", "other"].map(|name| Running::start(&mut host.plain(name, &spin)));
    vms.iter().for_each(|vm| vm.says("up"));
    let mut crowd = Crowd::new();
    let limits = Limits::default().within(1024);
    crowd.fill(&host.path("run/vms/web.sock"), SocketType::STREAM, &limits, 0);
    let listed = host.run(&mut host.volt(&["list"]));
    assert_eq!(listed.status.code(), Some(3), "{listed:?}");
    let rows: Vec<Vec<_>> = listed.out.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["other", "running", "1", "64M"], ["web", "unreachable", "-", "-"]]);
    let who = format!("there are {} connections, of which process", limits.connections);
    for word in ["web is unreachable", "exhausted", &who, "Close"] {
        assert!(listed.err.contains(word), "{listed:?}");
    }
    refused(&host.run(&mut host.volt(&["stop", "web", "--grace", "0"])), &who);
    // The name is taken, and said to be.
    host.run(&mut host.plain("web", &spin)).refused(&["alreadyExists", "web"]);
    crowd.all_hold();
    drop(crowd);
    host.runs("web");
    for (name, vm) in ["web", "other"].iter().zip(vms) {
        host.run(&mut host.volt(&["stop", name, "--grace", "0"])).ok();
        vm.end().ok();
    }
    host.clean();
}

#[test]
fn a_plain_user_who_has_all_places_of_a_user_is_told_so_and_root_gets_one() {
    let Some(host) = Host::new() else { return };
    let user = host.user + 20;
    let programs = Path::new(env!("CARGO_BIN_EXE_volt"));
    if let Some(closed) = programs.ancestors().find(|path| fs::metadata(path).unwrap().permissions().mode() & 1 == 0) {
        return testkit::skip!("a plain user cannot reach the programs through {}", closed.display());
    }
    fs::set_permissions(host.path("."), fs::Permissions::from_mode(0o711)).unwrap();
    for dir in ["run", "state"] {
        fs::create_dir(host.path(dir)).unwrap();
        chown(host.path(dir), Some(user), Some(user)).unwrap();
    }
    let kvm = node(host.path("kvm"), "/dev/kvm");
    let off = host.kernel("off", &[&print("up"), POWEROFF, SPIN]);
    fs::set_permissions(&off, fs::Permissions::from_mode(0o644)).unwrap();
    let as_them = |mut command: Command| {
        as_user(&mut command, user, &kvm);
        host.run(&mut command)
    };
    as_them(host.plain("web", &off)).ok();
    let limits = limits(&host, "kernel-store");
    let path = host.path("run/kernel-store.sock");
    let mut crowd = Crowd::new();
    let mut open = limits.connections_per_user;
    while open > 0 {
        let count = open.min(limits.connections_per_process);
        crowd.process(&path, SocketType::STREAM, Some(user), count);
        open -= count;
    }
    let who = format!("user {user} has {} connections, of which process", limits.connections_per_user);
    for command in [host.plain("web", &off), host.volt(&["kernel", "list"])] {
        let ended = as_them(command);
        ended.refused(&["exhausted", &who, "Close some of them"]);
        assert!(ended.out.is_empty(), "{ended:?}");
    }
    crowd.process(&path, SocketType::STREAM, None, 1);
    crowd.all_hold();
    drop(crowd);
    let (list, run) = (|| host.volt(&["kernel", "list"]), || host.plain("web", &off));
    for command in [&list as &dyn Fn() -> Command, &run] {
        works_once_they_left(&host, &|| {
            let mut command = command();
            as_user(&mut command, user, &kvm);
            command
        });
    }
    host.clean();
}
