//! Isolated networks: each in a namespace that the state directory holds, handed to netmgr again whenever that has been started anew, and gone with the network.

use std::{fs, path::PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::json;
use testkit::namespace;
use testrig::container::Container;

use crate::{
    cni::{Engine, ports},
    host::{Host, Running, kill},
    kernel::{POWEROFF, SPIN, print},
    networks::{define, exists, is_listed, remove},
};

const ISO: &str = r#"{"network":"iso0","type":"isolated","subnet":"10.77.0.0/24","ipv6":true}"#;

/// A host whose mounts are this test's own.
fn host() -> Option<Host> {
    let host = Host::new()?;
    namespace::mounts().unwrap();
    Some(host)
}

fn pin(host: &Host) -> PathBuf {
    host.path("state/netns/iso0")
}

fn is_mounted(host: &Host) -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.contains(&format!(" {} ", pin(host).display()))
}

fn nothing_is_left(host: &Host) {
    assert!(!is_mounted(host) && !pin(host).exists() && !is_listed(host, "iso0") && !exists("iso0"));
}

#[test]
fn vm_on_an_isolated_network_keeps_its_port_whatever_becomes_of_netmgr_and_the_network_goes_after_it() {
    let Some(host) = host() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    define(&host, ISO).ok();
    assert!(is_mounted(&host) && is_listed(&host, "iso0") && !exists("iso0"));
    let shown = host.run(&mut host.volt(&["network", "show", "iso0"])).ok().out;
    let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((&row[..2], &row[3..5], row[8]), (&["iso0", "isolated"][..], &["-", "-"][..], "0"), "{shown}");
    assert!(row[2].starts_with("10.77.0.0/24,fd") && row[2].ends_with("::/64"), "{shown}");
    let exported = host.run(&mut host.volt(&["network", "export", "iso0"])).ok().out;
    assert!(exported.contains(r#""type":"isolated""#) && !exported.contains("gateway"), "{exported}");
    define(&host, &exported).ok();

    let vm = Running::start(host.plain("web", &spin).args(["--net", "iso0"]));
    vm.says("up");
    // Who is there besides is told no way out.
    let told = host.cmdline_of_the_core();
    assert!(told.contains("ip=10.77.0.2:::255.255.255.0:web::off volt.ipv6=fd"), "{told}");
    assert!(told.contains("/64,,"), "{told}");
    assert_eq!(ports(&host), ["vm-web"]);
    assert!(!exists("tap-web"));
    remove(&host, "iso0").refused(&["iso0 has 1 port."]);
    define(&host, &ISO.replace("isolated", "bridged")).refused(&[
        "iso0",
        "of another kind",
        "volt network remove iso0",
    ]);

    // Whatever is asked for first has the next netmgr know of it.
    host.end(["netmgr"], libc::SIGKILL);
    assert_eq!(ports(&host), ["vm-web"]);
    host.end(["netmgr"], libc::SIGKILL);
    remove(&host, "iso0").refused(&["iso0 has 1 port."]);
    host.end(["netmgr"], libc::SIGKILL);
    host.run(host.plain("other", &off).args(["--net", "iso0"])).ok();
    host.end(["netmgr"], libc::SIGKILL);
    host.run(&mut host.volt(&["port", "policy", "iso0", "vm-web", "--deny-all"])).ok();
    assert!(is_mounted(&host));
    host.run(&mut host.volt(&["port", "publish", "iso0", "vm-web", "8080:80"]))
        .refused(&["iso0, a network of type isolated", "a first card on a network of another type"]);

    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    // With a netmgr that knows nothing of it, as the next two.
    host.end(["netmgr"], libc::SIGKILL);
    define(&host, &ISO.replace("isolated", "bridged")).refused(&[
        "iso0",
        "of another kind",
        "volt network remove iso0",
    ]);
    assert!(!exists("iso0"));
    host.end(["netmgr"], libc::SIGKILL);
    crate::host::until("its port has gone", || match remove(&host, "iso0") {
        ended if ended.status.success() => Ok(()),
        ended => Err(ended.err),
    });
    nothing_is_left(&host);
    remove(&host, "iso0").refused(&["notFound", "iso0"]);
    host.clean();
}

#[test]
fn what_is_refused_or_ended_halfway_leaves_no_namespace_or_one_that_the_next_command_uses_or_takes_away() {
    let Some(host) = host() else { return };
    // By ipamd, and by netmgr.
    for (more, why) in [
        (r#","gateway":"10.77.0.1"}"#, "gateway"),
        (r#","subnet6":"fd00::/64","gateway6":"fd00::1"}"#, "gateway6"),
        (r#","nat":true}"#, "nat"),
        (r#","parent":"eth0","vlan":7}"#, "vlan"),
        (r#","mtu":7}"#, "mtu"),
    ] {
        define(&host, &ISO.replace(r#","ipv6":true}"#, more)).refused(&["network.json", why]);
        nothing_is_left(&host);
    }
    define(&host, &ISO.replace("isolated", "bridged")).ok();
    define(&host, ISO).refused(&["iso0", "of another kind", "volt network remove iso0"]);
    assert!(!pin(&host).exists() && exists("iso0"));
    remove(&host, "iso0").ok();
    // A definition that is killed, and its own command with it or not.
    let file = host.file("network.json", ISO.as_bytes());
    for round in 0..4 {
        let mut defines = Running::start(&mut host.volt(&["network", "define", &file]));
        std::thread::sleep(std::time::Duration::from_millis(10 * round * round));
        kill(defines.pid(), libc::SIGKILL);
        defines.exits();
        if round % 2 == 0 {
            crate::host::until("it is removed, or was never there", || match remove(&host, "iso0") {
                ended if ended.status.success() || ended.err.contains("notFound") => Ok(()),
                ended => Err(ended.err),
            });
        }
    }
    define(&host, ISO).ok();
    assert!(is_mounted(&host));
    // After a reboot: what is mounted has gone, and the file is there.
    host.end(["netmgr"], libc::SIGKILL);
    unmount(pin(&host), UnmountFlags::DETACH).unwrap();
    assert!(!is_mounted(&host));
    assert_eq!(ports(&host), [""; 0]);
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.plain("web", &off).args(["--net", "iso0"])).ok();
    assert!(is_mounted(&host));
    crate::host::until("its address is free", || match remove(&host, "iso0") {
        ended if ended.status.success() => Ok(()),
        ended => Err(ended.err),
    });
    nothing_is_left(&host);
    // What says that it is isolated is lost.
    define(&host, ISO).ok();
    unmount(pin(&host), UnmountFlags::DETACH).unwrap();
    fs::remove_file(pin(&host)).unwrap();
    host.run(host.plain("web", &off).args(["--net", "iso0"])).refused(&["iso0", "namespace", "volt network define"]);
    define(&host, ISO).ok();
    remove(&host, "iso0").ok();
    // One that was noted alone, and what is none of ours.
    fs::write(pin(&host), "").unwrap();
    fs::write(host.path("state/kept"), "").unwrap();
    remove(&host, "../kept").refused(&["../kept"]);
    remove(&host, "iso0").ok();
    nothing_is_left(&host);
    assert!(host.path("state/kept").exists());
    host.clean();
}

#[test]
fn namespace_that_cannot_be_let_go_of_is_said_and_goes_with_the_next_removal() {
    let Some(host) = host() else { return };
    define(&host, ISO).ok();
    // Who lets it go has no right to what is another user's, though root's.
    let folder = pin(&host).parent().unwrap().to_owned();
    std::os::unix::fs::chown(&folder, Some(65_534), None).unwrap();
    let pinned = pin(&host).display().to_string();
    remove(&host, "iso0").refused(&[
        "let go of the network namespace",
        "Permission denied",
        &format!("umount {pinned}"),
    ]);
    assert!(is_mounted(&host) && !is_listed(&host, "iso0"));
    std::os::unix::fs::chown(&folder, Some(0), None).unwrap();
    remove(&host, "iso0").ok();
    nothing_is_left(&host);
    host.clean();
}

/// Where both are at it, the network is there with its namespace, or neither is.
#[test]
fn network_that_is_defined_and_removed_at_once_is_whole_or_gone() {
    let Some(host) = host() else { return };
    let file = host.file("network.json", ISO.as_bytes());
    for _ in 0..20 {
        let defines = Running::start(&mut host.volt(&["network", "define", &file]));
        let removes = Running::start(&mut host.volt(&["network", "remove", "iso0"]));
        removes.end();
        defines.end().ok();
        assert_eq!((is_mounted(&host), pin(&host).exists()), (is_listed(&host, "iso0"), is_listed(&host, "iso0")));
    }
    define(&host, ISO).ok();
    remove(&host, "iso0").ok();
    nothing_is_left(&host);
    host.clean();
}

#[test]
fn container_is_attached_to_an_isolated_network_and_removed_after_netmgr_was_started_anew() {
    let Some(host) = host() else { return };
    define(&host, ISO).ok();
    let mut config = json!({ "cniVersion": "1.1.0", "name": "pods", "type": "volt-cni", "network": "iso0" });
    let engine = Engine { host: &host, config: config.clone() };
    let (a, b) = (Container::new(), Container::new());
    let result = engine.add("aaaa", &a);
    assert!(result["ips"][1]["address"].as_str().unwrap().ends_with("/64"), "{result}");
    assert_eq!(result["ips"][1]["gateway"], json!(null));
    assert_eq!((&result["ips"][0]["gateway"], &result["routes"]), (&json!(null), &json!([])));
    engine.add("bbbb", &b);
    a.pings([10, 77, 0, 3]);
    assert!(!a.ip("route").contains("default") && a.ip("addr show eth0").contains("10.77.0.2/24"));
    config["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
    let with_route = Engine { host: &host, config };
    let c = Container::new();
    assert!(with_route.run("ADD", "cccc", &c.path()).out.contains("no gateway"));
    host.end(["netmgr"], libc::SIGKILL);
    engine.del("aaaa");
    host.end(["netmgr"], libc::SIGKILL);
    engine.gc(&[]);
    assert_eq!(ports(&host), [""; 0]);
    remove(&host, "iso0").ok();
    nothing_is_left(&host);
}
