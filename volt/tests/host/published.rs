//! Ports of the host that lead to a guest: by a VM's flags and file, live, and as long as the VM is there.

use std::net::{TcpListener, UdpSocket};

use crate::{
    host::{Host, Running, until},
    kernel::{SPIN, print},
    networks::{LAB, define, ip},
};

/// What `volt port list` says that leads to a workload.
fn published(host: &Host, workload: &str) -> Option<String> {
    let listed = host.run(&mut host.volt(&["port", "list"])).ok().out;
    let row = listed.lines().find(|line| line.split_whitespace().nth(1) == Some(workload))?;
    Some(row.rsplit("  ").next()?.trim().to_owned())
}

/// Waits until anybody may have that port.
fn is_free(at: &str) {
    until(at, || TcpListener::bind(at).map(drop).map_err(|error| error.to_string()));
}

#[test]
fn ports_are_held_and_lead_to_a_guest_from_its_start_and_live_until_its_end() {
    let Some(host) = Host::new() else { return };
    ip("link set lo up");
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let mut web = host.plain("web", &spin);
    web.args(["--net", "volt0", "-p", "8080-8081:80-81", "--publish", "127.0.0.1:5353:53/udp"]);
    let web = Running::start(&mut web);
    web.complains("web is reached by this host's 8080-8081:80-81");
    web.says("up");
    let of_start = "0.0.0.0:8080-8081:80-81, 127.0.0.1:5353:53/udp";
    assert_eq!(published(&host, "vm-web").as_deref(), Some(of_start));
    assert!(TcpListener::bind("0.0.0.0:8081").is_err() && UdpSocket::bind("127.0.0.1:5353").is_err());

    let port = |words: &[&str]| host.run(&mut host.volt(&[&["port"], words].concat()));
    port(&["publish", "volt0", "vm-web", "9090:90", "10.42.0.1:9091:91/udp"]).ok();
    let live = format!("{of_start}, 0.0.0.0:9090:90, 10.42.0.1:9091:91/udp");
    assert_eq!(published(&host, "vm-web"), Some(live));
    // What somebody has, and what leads somewhere already; nothing of the call is done.
    let own = TcpListener::bind("127.0.0.1:9095").unwrap();
    let words = ["alreadyExists", "0.0.0.0:9095", "ss -lntup", "volt port list"];
    port(&["publish", "volt0", "vm-web", "9094:1", "9095:1"]).refused(&words);
    port(&["publish", "volt0", "vm-web", "127.0.0.1:9090:1"]).refused(&["alreadyExists", "127.0.0.1:9090"]);
    drop(own);
    is_free("0.0.0.0:9094");
    port(&["publish", "volt0", "vm-none", "9094:1"]).refused(&["notFound", "vm-none", "volt port list"]);
    port(&["publish", "volt7", "vm-web", "9094:1"]).refused(&["notFound", "volt7", "volt network list"]);
    port(&["publish", "volt0", "vm-web", "[fd00::1]:9094"]).refused(&["--publish", "[::]:7000-7010:7000-7010"]);
    // Of two that lead there, the second of which cannot: it has no address of IPv6.
    std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0").unwrap();
    port(&["publish", "volt0", "vm-web", "9096:1", "[::]:9097:1"]).refused(&["notFound", "vm-web", "[::]:9097"]);
    assert!(!published(&host, "vm-web").unwrap().contains("9096"));
    port(&["unpublish", "volt0", "vm-web", "9094"]).refused(&["notFound", "9094", "volt port list"]);
    port(&["unpublish", "volt0", "vm-web", "9090", "10.42.0.1:9091/udp"]).ok();
    assert_eq!(published(&host, "vm-web").as_deref(), Some(of_start));
    is_free("0.0.0.0:9090");

    // Its holder has what it began with, whatever becomes of netmgr.
    host.end(["netmgr"], libc::SIGKILL);
    define(&host, LAB).ok();
    assert_eq!(published(&host, "vm-web").as_deref(), Some(of_start));
    assert!(TcpListener::bind("0.0.0.0:8080").is_err());
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    web.end().ok();
    is_free("0.0.0.0:8080");
    // The next one has it by its file.
    let file = format!(
        "name='db'\nkernel='{spin}'\n[[net]]\nnetwork='lab0'\npublish=['127.0.0.1:8080:5432', '8443:443/udp']\n"
    );
    let db = Running::start(&mut host.volt(&["run", "--config", &host.file("db.toml", file.as_bytes())]));
    db.says("up");
    assert_eq!(published(&host, "vm-db").as_deref(), Some("127.0.0.1:8080:5432, 0.0.0.0:8443:443/udp"));
    let again = host.run(host.plain("more", &spin).args(["--net", "lab0", "-p", "8080:1"]));
    again.refused(&["alreadyExists", "0.0.0.0:8080"]);
    host.run(host.plain("more", &spin).args(["-p", "8081:1"])).refused(&["--publish", "--net volt0"]);
    host.run(&mut host.volt(&["stop", "db", "--grace", "0"])).ok();
    db.end().ok();
    is_free("127.0.0.1:8080");
    host.clean();
}
