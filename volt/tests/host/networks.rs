//! Networks: defined and removed by two services, changed by others on the host, and shared with another installation.

use std::{fs, io::Write, process::Command};

use ipc::Connection;
use schema::{addresses_capnp::ipam, host_capnp::host};
use serde_json::json;
use testrig::container::Container;

use crate::{
    cni::{Engine, refused, with},
    host::{Host, PATIENCE, Running, kill, outliving, until},
    kernel::{POWEROFF, SPIN, print},
};

pub const LAB: &str = r#"{"network":"lab0","subnet":"10.9.0.0/24","gateway":"10.9.0.1"}"#;

/// Runs `ip` in the network namespace of this test.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The IPv4 addresses of an interface; empty if there is none of that name.
pub fn addresses(interface: &str) -> String {
    let output = Command::new("ip").args(["-4", "-br", "addr", "show", "dev", interface]).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")
}

pub fn exists(interface: &str) -> bool {
    Command::new("ip").args(["link", "show", "dev", interface]).output().unwrap().status.success()
}

/// Defines what `json` says.
pub fn define(host: &Host, json: &str) -> crate::host::Ended {
    host.run(&mut host.volt(&["network", "define", &host.file("network.json", json.as_bytes())]))
}

pub fn remove(host: &Host, name: &str) -> crate::host::Ended {
    host.run(&mut host.volt(&["network", "remove", name]))
}

pub fn is_listed(host: &Host, name: &str) -> bool {
    host.run(&mut host.volt(&["network", "list"])).ok().out.lines().any(|line| line.starts_with(name))
}

#[test]
fn definition_that_either_service_refuses_leaves_nothing_in_the_other() {
    let Some(host) = Host::new() else { return };
    // What netmgr refuses: a foreign interface of the name, and a held subnet.
    ip("link add lab0 type veth peer up1");
    define(&host, LAB).refused(&["network.json", "lab0", "Volt did not make"]);
    assert!(!is_listed(&host, "lab0"));
    define(&host, &LAB.replace("lab0", "lab1")).ok();
    remove(&host, "lab1").ok();
    ip("link delete lab0");
    ip("link add up0 type veth peer up1");
    ip("addr add 10.9.0.77/24 dev up0");
    define(&host, LAB).refused(&["10.9.0.77/24", "up0"]);
    assert!(!is_listed(&host, "lab0") && !exists("lab0"));
    ip("link delete up0");
    // What both refuse, and what ipamd does: a name, a subnet of another network, a pool that does not fit.
    for (json, word) in [
        (LAB.replace("lab0", "all"), "all"),
        (LAB.replace("10.9.0", "10.42.0"), "volt0"),
        (LAB.replace('}', r#","pool":{"start":"10.8.0.1","end":"10.8.0.2"}}"#), "10.8.0.1"),
    ] {
        host.run(&mut host.full("web", &host.kernel("off", &[POWEROFF, SPIN]))).ok();
        define(&host, &json).refused(&["network.json", word]);
        assert!(!exists("lab0") && !is_listed(&host, "lab0") && !is_listed(&host, "all"), "{json}");
    }
    define(&host, LAB).ok();
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
}

#[test]
fn network_that_a_vm_uses_keeps_its_definition_and_is_removed_after_it() {
    let Some(host) = Host::new() else { return };
    define(&host, LAB).ok();
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let vm = Running::start(host.plain("web", &spin).args(["--net", "lab0"]));
    vm.says("up");
    // Its address would fall outside.
    define(&host, &LAB.replace("10.9.0", "10.8.0")).refused(&["10.9.0.2", "vm-web"]);
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
    remove(&host, "lab0").refused(&["lab0 has 1 port."]);
    assert!(is_listed(&host, "lab0"));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    remove(&host, "lab0").ok();
    assert!(!exists("lab0") && !is_listed(&host, "lab0"));
    remove(&host, "lab0").refused(&["notFound", "lab0", "volt network list"]);
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    host.run(host.plain("web", &off).args(["--net", "lab0"])).refused(&["lab0", "volt network define"]);
    // The built-in one comes back when somebody wants it.
    host.run(&mut host.full("web", &off)).ok();
    remove(&host, "volt0").ok();
    assert!(!exists("volt0"));
    host.run(&mut host.full("web", &off)).ok();
    assert_eq!(addresses("volt0"), "10.42.0.1/24");
    host.clean();
}

/// Its backend, which has no rights, takes a macvtap's device as it takes a TAP, and its descriptors, sandbox and filter let it.
#[test]
fn vm_on_a_macvtap_has_its_card_past_the_host_and_leaves_nothing() {
    if !fs::read_to_string("/proc/devices").is_ok_and(|devices| devices.contains(" macvtap\n")) {
        return testkit::skip!("the kernel has no macvtap (modprobe macvtap)");
    }
    let Some(host) = Host::new() else { return };
    testkit::namespace::mounts().unwrap();
    // That of this network namespace.
    assert!(Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status().unwrap().success());
    ip("link add up0 type veth peer up1");
    ip("link set up0 up");
    ip("link set up1 up");
    let office = r#"{"network":"office0","type":"macvtap","parent":"up0","mode":"private","subnet":"10.9.0.0/24",
        "gateway":"10.9.0.1","pool":{"start":"10.9.0.200","end":"10.9.0.219"},
        "policy":{"allow":["10.9.0.1 udp 53"]}}"#;
    define(&host, &office.replace("up0", "up7")).refused(&["network.json", "up7", "ip link"]);
    assert!(!is_listed(&host, "office0"));
    define(&host, office).ok();
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let vm = Running::start(host.plain("web", &spin).args(["--net", "office0"]));
    vm.says("up");
    let link = ip("-d link show dev mvt-web");
    assert!(link.contains("macvtap mode private") && link.contains("@up0"), "{link}");
    let ports = host.run(&mut host.volt(&["port", "list"])).ok().out;
    assert!(ports.lines().any(|row| row.contains("office0") && row.contains("10.9.0.200")), "{ports}");
    let shown = host.run(&mut host.volt(&["network", "show", "office0"])).ok().out;
    assert!(shown.contains("macvtap"), "{shown}");
    let policy = |arguments: &[&str]| {
        host.run(&mut host.volt(&[&["port", "policy", "office0", "vm-web"], arguments].concat())).ok().out
    };
    assert_eq!(policy(&[]), "10.9.0.1 udp 53\n");
    policy(&["--allow", "any tcp 443"]);
    assert_eq!(policy(&[]), "any tcp 443\n");
    let of_type = "office0, a network of type macvtap";
    let publish = ["port", "publish", "office0", "vm-web", "8080:80"];
    host.run(&mut host.volt(&publish)).refused(&[of_type, "Reach its guests under their own addresses there"]);
    let engine = Engine { host: &host, config: with(json!({ "network": "office0" })) };
    refused(&engine.run("ADD", "aaaa", &Container::new().path()), 7, of_type);
    remove(&host, "office0").refused(&["office0 has 1 port."]);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    assert!(!exists("mvt-web"));
    let exported = host.run(&mut host.volt(&["network", "export", "office0"])).ok().out;
    remove(&host, "office0").ok();
    define(&host, &exported).ok();
    remove(&host, "office0").ok();
    host.clean();
}

/// Neither was asked whether the other can: a disk is full, and an address is kept for a while, whatever a definition says.
#[test]
fn what_the_second_service_cannot_do_is_undone_in_the_first() {
    let Some(host) = Host::new() else { return };
    let state = host.small_state();
    define(&host, LAB).ok();
    let mut filler = fs::File::create(state.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    define(&host, &LAB.replace("lab0", "lab1").replace("10.9.0", "10.7.0")).refused(&["exhausted", "is full"]);
    assert!(!exists("lab1") && !is_listed(&host, "lab1"));
    define(&host, &LAB.replace("10.9.0", "10.8.0")).refused(&["exhausted", "is full"]);
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
    fs::remove_file(state.join("filler")).unwrap();
    drop(filler);

    let vm = Running::start(host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])).args(["--net", "lab0"]));
    vm.says("up");
    kill(vm.pid(), libc::SIGKILL);
    drop(vm);
    until("its port is gone", || if exists("tap-web") { Err("it is there".into()) } else { Ok(()) });
    // Each service sees for itself that the VM is gone.
    until("its address is in its grace", || {
        let removed = remove(&host, "lab0");
        removed.refused(&["10.9.0.2 is ", "vm-web"]);
        if removed.err.contains("kept for a while") { Ok(()) } else { Err(removed.err) }
    });
    remove(&host, "lab0").refused(&["10.9.0.2 is kept for a while for vm-web", "30 s"]);
    assert!(is_listed(&host, "lab0"));
    assert_eq!(addresses("lab0"), "10.9.0.1/24");
    host.clean();
}

/// What a `volt network` that was killed between its two steps leaves, in each order.
#[test]
fn half_a_network_is_brought_in_order_by_the_next_definition_removal_or_run() {
    let Some(host) = Host::new() else {
        return;
    };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let socket = |service: &str| host.path(&format!("run/{service}.sock"));
    let halves = [0, 1].map(|half| {
        let sockets = (socket("netmgr"), socket("ipamd"));
        move || {
            ipc::run(async {
                if half == 0 {
                    let link = Connection::connect(&sockets.0).await.unwrap();
                    let mut request = link.bootstrap::<host::Client>().define_network_request();
                    let mut config = request.get().init_config();
                    config.set_name("lab0");
                    config.set_gateway("10.7.0.1");
                    config.set_prefix_length(24);
                    link.call("define a network", PATIENCE, request.send()).await.unwrap();
                } else {
                    let link = Connection::connect(&sockets.1).await.unwrap();
                    let mut request = link.bootstrap::<ipam::Client>().define_pool_request();
                    request.get().set_config(LAB);
                    link.call("define a pool", PATIENCE, request.send()).await.unwrap();
                }
            })
            .unwrap();
        }
    });
    for (half, make) in halves.iter().enumerate() {
        // Whatever runs, both services do.
        host.run(&mut host.full("web", &off)).ok();
        make();
        remove(&host, "lab0").ok();
        assert!(!exists("lab0") && !is_listed(&host, "lab0"), "{half}");
        make();
        define(&host, LAB).ok();
        assert_eq!(addresses("lab0"), "10.9.0.1/24", "{half}");
        remove(&host, "lab0").ok();
        make();
        let run = host.run(host.plain("web", &off).args(["--net", "lab0"]));
        if half == 1 {
            run.ok();
            assert_eq!(addresses("lab0"), "10.9.0.1/24");
        } else {
            run.refused(&["volt network define"]);
        }
        remove(&host, "lab0").ok();
    }
}

#[test]
fn volt0_that_others_have_changed_is_as_it_should_be_for_the_next_vm_and_for_the_one_that_runs() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    let vm = Running::start(&mut host.full("web", &spin));
    vm.says("up");
    let plain = |name: &str| {
        let mut command = host.plain(name, &off);
        command.args(["--net", "volt0"]);
        command
    };
    let bridge = || addresses("volt0") == "10.42.0.1/24" && ip("link show dev volt0").contains(",UP");
    for end_netmgr in [false, true] {
        for harm in ["link delete volt0", "link set volt0 down", "addr flush dev volt0", "link set tap-web nomaster"] {
            if end_netmgr {
                // The VM's card stays: its backend has the TAP.
                host.end(["netmgr"], libc::SIGKILL);
            }
            ip(harm);
            host.run(&mut plain("next")).ok();
            assert!(bridge(), "{harm}: {}", ip("addr"));
            // The card of the one that runs is not waited for.
            until("its card is on the bridge", || match ip("-br link show master volt0") {
                on if on.contains("tap-web") => Ok(()),
                on => Err(on),
            });
        }
    }
    host.run(&mut plain("web")).refused(&["web"]);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    until("its card is gone", || if exists("tap-web") { Err("it is there".into()) } else { Ok(()) });
}

/// Workloads with a port on `volt0`, and what each may send from, as netmgr says.
fn ports(host: &Host) -> Vec<(String, Vec<String>)> {
    let socket = host.path("run/netmgr.sock");
    let look = async {
        let link = Connection::connect(&socket).await.unwrap();
        let mut request = link.bootstrap::<host::Client>().network_request();
        request.get().set_network("volt0");
        let ports = request.send().pipeline.get_network().ports_request();
        let answer = link.call("look at a network", PATIENCE, ports.send()).await.unwrap();
        let ports = answer.get().unwrap().get_ports().unwrap();
        let text = |text: capnp::text::Reader<'_>| text.to_string().unwrap();
        let ports = ports.iter().map(|port| {
            let addresses = port.get_addresses().unwrap().iter().map(|address| text(address.unwrap()));
            (text(port.get_workload().unwrap()), addresses.collect())
        });
        ports.collect()
    };
    ipc::run(look).unwrap()
}

#[test]
fn card_may_send_from_the_address_that_its_vm_has_a_lease_of_whatever_netmgr_ends() {
    let Some(host) = Host::new() else { return };
    let (spin, off) = (host.kernel("spin", &[&print("up"), SPIN]), host.kernel("off", &[POWEROFF, SPIN]));
    let vm = Running::start(&mut host.full("web", &spin));
    vm.complains("web has 10.42.0.2 on volt0");
    vm.says("up");
    let expected = [("vm-web".to_owned(), vec!["10.42.0.2".to_owned()])];
    assert_eq!(ports(&host), expected);
    host.end(["netmgr"], libc::SIGKILL);
    host.run(host.plain("next", &off).args(["--net", "volt0"])).ok();
    assert_eq!(ports(&host), expected);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    host.clean();
}

/// A `netmgr` knows of a network by its bridge, and of a guest by its TAP.
#[test]
fn bridge_that_goes_while_there_is_no_netmgr_is_there_again_with_the_first_question() {
    let Some(host) = Host::new() else { return };
    define(&host, LAB).ok();
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let vm = Running::start(host.plain("web", &spin).args(["--net", "lab0", "--publish", "8080:80"]));
    vm.says("up");
    let volt = |arguments: &[&str]| host.run(&mut host.volt(arguments)).ok().out;
    volt(&["port", "policy", "lab0", "web", "--allow", "any tcp 443"]);
    let listed = volt(&["port", "list"]);
    assert!(listed.contains("tap-web") && listed.contains("8080:80"), "{listed}");
    for question in [&["port", "list"][..], &["port", "policy", "lab0", "web"], &["network", "show", "lab0"]] {
        host.end(["netmgr"], libc::SIGKILL);
        ip("link delete lab0");
        volt(question);
        assert!(ip("link show dev tap-web").contains("master lab0"), "{question:?}");
        assert_eq!(addresses("lab0"), "10.9.0.1/24");
        assert_eq!(
            (volt(&["port", "list"]), volt(&["port", "policy", "lab0", "web"])),
            (listed.clone(), "any tcp 443\n".into())
        );
    }
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    remove(&host, "lab0").ok();
    host.clean();
}

#[test]
fn deleted_tap_of_a_running_vm_is_said_in_one_line() {
    let Some(host) = Host::new() else { return };
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    ip("link delete tap-web");
    vm.complains("web has lost its card on volt0: something else on this host has taken its interface, tap-web, away");
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    let ended = vm.end().ok();
    assert_eq!(ended.err.matches("lost").count(), 1, "{}", ended.err);
    host.clean();
}

#[test]
fn two_installations_on_one_network_namespace_do_not_share_volt0() {
    let Some(host) = Host::new() else { return };
    let off = host.kernel("off", &[POWEROFF, SPIN]);
    let vm = Running::start(&mut host.full("web", &host.kernel("spin", &[&print("up"), SPIN])));
    vm.says("up");
    let other = |mut command: Command| {
        command.env("VOLT_RUNTIME_DIR", host.path("other-run")).env("VOLT_STATE_DIR", host.path("other-state"));
        host.run(&mut command)
    };
    // Without the first one's disk.
    let carded = |network: &str| {
        let mut command = host.plain("web", &off);
        command.args(["--net", network]);
        command
    };
    other(carded("volt0")).refused(&["volt0 belongs to another installation", "VOLT_STATE_DIR"]);
    // It has a pool of that name, and no say over the bridge.
    other(host.volt(&["network", "remove", "volt0"])).ok();
    assert_eq!(addresses("volt0"), "10.42.0.1/24");
    // A remedy: a network of its own. The workload may have the same name.
    other(host.volt(&["network", "define", &host.file("network.json", LAB.as_bytes())])).ok();
    other(carded("lab0")).ok();
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
    let end_services = || host.end(outliving(), libc::SIGKILL);
    // The same installation, started anew, knows its own.
    end_services();
    host.run(&mut host.full("web", &off)).ok();
    // And the other one may have it, once its owner, who would make it again, is gone for good.
    end_services();
    ip("link delete volt0");
    other(host.full("web", &off)).ok();
}

/// The rows of a table, each in words.
fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn mtu_of_a_network_is_its_bridge_s_and_its_cards_and_bad_keys_change_nothing() {
    let Some(host) = Host::new() else { return };
    let with = |keys: &str| LAB.replacen('{', &format!("{{{keys},"), 1);
    define(&host, &with(r#""type":"bridged","mtu":9000"#)).ok();
    let vm = Running::start(host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])).args(["--net", "lab0"]));
    vm.says("up");
    let mtu = |interface: &str| ip(&format!("-o link show dev {interface}")).contains(" mtu 9000 ");
    assert!(mtu("lab0") && mtu("tap-web"), "{}", ip("link"));
    for (keys, words) in [
        (r#""mtu":1279"#, ["mtu = 1279", "1280 to 65521"]),
        (r#""mtu":65522"#, ["mtu = 65522", "1280 to 65521"]),
        (r#""mtu":"9000""#, ["mtu = a string", "1280 to 65521"]),
        (r#""type":"sriov""#, ["parent = absent", "the key is required"]),
        (r#""type":"sriov","parent":"eth0","trust":"no""#, ["trust = a string", "true or false"]),
        (r#""trust":true"#, ["trust = a boolean", "of type \"sriov\""]),
        (r#""type":"routed""#, ["type", "no such kind"]),
        (r#""nat":"yes""#, ["nat = a string", "true or false"]),
        (r#""type":"host-only","nat":false"#, ["nat = false", "beyond the host"]),
        (r#""vlan":7"#, ["parent = absent", "a VLAN is one of an interface"]),
        (r#""vlans":7"#, ["vlans", "no such key"]),
    ] {
        define(&host, &with(keys)).refused(&["network.json", words[0], words[1]]);
        assert!(mtu("lab0") && mtu("tap-web"));
    }
    // Without the key it is what the bridge has.
    define(&host, LAB).ok();
    assert!(mtu("lab0"));
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
}

/// As it follows from the installation, as the definition says, and none: each of them is the bridge's, and told to the guest.
#[test]
fn guest_on_a_network_with_ipv6_has_an_address_of_that_too_and_is_told_so() {
    let Some(host) = Host::new() else { return };
    if !fs::exists("/proc/sys/net/ipv6").unwrap() {
        return testkit::skip!("the kernel has no IPv6");
    }
    let with = |keys: &str| LAB.replacen('{', &format!("{{{keys},"), 1);
    for bad in [r#""gateway6":"fd00::1""#, r#""subnet6":"fd00::/63""#, r#""ipv6":"yes""#] {
        define(&host, &with(bad)).refused(&["network.json", bad.split('"').nth(1).unwrap()]);
        assert!(!exists("lab0"));
    }
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    for (keys, expected) in [
        (r#""ipv6":true"#, None),
        (r#""subnet6":"fd00:9::/64","gateway6":"fd00:9::fe""#, Some("fd00:9::fe/64")),
        (r#""ipv6":false"#, Some("-")),
    ] {
        define(&host, &with(keys)).ok();
        let shown = host.run(&mut host.volt(&["network", "show", "lab0"])).ok().out;
        let gateway = rows(&shown)[1][4].to_owned();
        assert!(expected.is_none_or(|expected| expected == gateway), "{gateway}");
        let vm = Running::start(host.plain("web", &spin).args(["--net", "lab0"]));
        vm.says("up");
        let of_bridge = ip("-6 -br addr show dev lab0");
        let told = host.cmdline_of_the_core();
        host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
        let said = vm.end().ok().err;
        let has = said.split_once("web has ").unwrap().1.split_once(" on lab0").unwrap().0.to_owned();
        let Some((subnet, own)) = gateway.strip_suffix("/64").map(|gateway| {
            assert!(of_bridge.contains(&format!(" {gateway}/64 ")), "{of_bridge}");
            (gateway.rsplit_once("::").unwrap().0, gateway)
        }) else {
            assert!(!has.contains(':') && !told.contains("volt.ipv6") && !of_bridge.contains(':'), "{has} {told}");
            continue;
        };
        let (_, address) = has.split_once(" and ").unwrap();
        assert!(address.starts_with(&format!("{subnet}:")) && expected.is_some() || address.starts_with("fd"), "{has}");
        let words = format!("255.255.255.0:web::off volt.ipv6={address}/64,{own},");
        assert!(told.contains("ip=10.9.0.") && told.ends_with(&words), "{told}");
    }
    host.clean();
}

#[test]
fn network_is_shown_and_exported_as_what_defines_it_again() {
    let Some(host) = Host::new() else { return };
    let volt = |words: &[&str]| host.run(&mut host.volt(words));
    // Nothing is made of a question about the built-in one.
    assert!(volt(&["network", "export", "volt0"]).ok().out.contains(r#""subnet":"10.42.0.0/24""#));
    let shown = volt(&["network", "show", "volt0"]).ok().out;
    let head = ["NETWORK", "TYPE", "SUBNET", "GATEWAY", "GATEWAY6", "POOL", "FREE", "MTU", "PORTS"];
    let row = ["volt0", "bridged", "10.42.0.0/24", "10.42.0.1", "-", "10.42.0.2-10.42.0.254", "253", "-", "0"];
    assert_eq!(rows(&shown), [head, row]);
    assert!(!exists("volt0"));

    let text = r#"{"network":"lab0","type":"bridged","subnet":"10.9.0.0/24","gateway":"10.9.0.254","mtu":1400,
        "pool":{"start":"10.9.0.7","end":"10.9.0.9"},"reservations":{"vm-web":"10.9.0.8","vm-db":"10.9.0.99"}}"#;
    define(&host, text).ok();
    let exported = volt(&["network", "export", "lab0"]).ok().out;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let mut given = json(text);
    given.as_object_mut().unwrap().remove("type");
    assert_eq!(json(&exported), given);
    let shown = volt(&["network", "show", "lab0"]).ok().out;
    assert_eq!(
        rows(&shown)[1],
        ["lab0", "bridged", "10.9.0.0/24", "10.9.0.254", "-", "10.9.0.7-10.9.0.9", "2", "1400", "0"]
    );
    for (keys, kind, word) in [
        (r#""nat":true"#, "bridged,nat", " nat"),
        (r#""type":"host-only""#, "host-only", " host-only"),
        (r#""isolate":true"#, "bridged,isolate", " isolate"),
        (r#""type":"host-only","isolate":true"#, "host-only,isolate", " host-only isolate"),
    ] {
        let text = exported.replacen('{', &format!("{{{keys},"), 1);
        define(&host, &text).ok();
        assert_eq!(rows(&volt(&["network", "show", "lab0"]).ok().out)[1][1], kind);
        assert_eq!(json(&volt(&["network", "export", "lab0"]).ok().out), json(&text));
        let alias = ip("-d link show dev lab0");
        assert!(alias.contains(word), "{alias}");
    }
    define(&host, &exported).ok();
    remove(&host, "lab0").ok();
    for question in ["show", "export"] {
        volt(&["network", question, "lab0"]).refused(&["notFound", "lab0", "volt network list"]);
    }
    define(&host, &exported).ok();
    assert_eq!(volt(&["network", "export", "lab0"]).ok().out, exported);
    assert_eq!(volt(&["network", "show", "lab0"]).ok().out, shown);
    // The built-in one as well.
    let exported = volt(&["network", "export", "volt0"]).ok().out;
    define(&host, &exported).ok();
    assert_eq!(volt(&["network", "export", "volt0"]).ok().out, exported);
}

#[test]
fn policy_and_rate_in_a_vm_s_file_are_its_card_s_and_a_policy_is_changed_while_it_runs() {
    let Some(host) = Host::new() else { return };
    let file = host.file(
        "web.toml",
        b"[[net]]\nnetwork = 'volt0'\nrate = { from-guest = '10Mbit' }\n[policy]\nallow = ['any tcp 443', 'host udp 53']\n",
    );
    let vm = Running::start(host.plain("web", &host.kernel("spin", &[&print("up"), SPIN])).args(["--config", &file]));
    vm.says("up");
    let policy = |arguments: &[&str]| {
        host.run(&mut host.volt(&[&["port", "policy", "volt0", "vm-web"], arguments].concat())).ok().out
    };
    assert_eq!(policy(&[]), "any tcp 443\nhost udp 53\n");
    // By the VM's own name too.
    let of = |name: &str| host.run(&mut host.volt(&["port", "policy", "volt0", name]));
    assert_eq!(of("web").ok().out, policy(&[]));
    of("db").refused(&["notFound", "db has no port on network volt0"]);
    policy(&["--allow", "vm-db tcp 5432"]);
    assert_eq!(policy(&[]), "vm-db tcp 5432\n");
    let stats = || host.run(&mut host.volt(&["port", "stats"])).ok().out;
    let head: Vec<String> = stats().lines().next().unwrap().split("  ").map(|word| word.trim().to_owned()).collect();
    let head: Vec<&str> = head.iter().map(String::as_str).filter(|word| !word.is_empty()).collect();
    let columns = [
        "NETWORK",
        "WORKLOAD",
        "SENT",
        "RECEIVED",
        "ALLOWED",
        "DENIED",
        "FORGED",
        "RATE",
        "OVER SENT",
        "OVER RECEIVED",
    ];
    assert_eq!(head, columns);
    let row = |stats: &str| {
        let row: Vec<String> = stats.lines().nth(1).unwrap().split_whitespace().map(str::to_owned).collect();
        (row[4].clone(), row[5].clone(), row[7].clone())
    };
    assert_eq!(row(&stats()), ("0/0".into(), "0/0".into(), "10000kbit/-".into()));
    policy(&["--remove"]);
    assert_eq!(row(&stats()), ("-".into(), "-".into(), "10000kbit/-".into()));
    let rate =
        |arguments: &[&str]| host.run(&mut host.volt(&[&["port", "rate", "volt0", "vm-web"], arguments].concat()));
    for (arguments, expected) in [
        (&["--from-guest", "20Mbit", "--to-guest", "8kbit"][..], "20000kbit/8kbit"),
        (&["--to-guest", "1Gbit"], "-/1000000kbit"),
        (&["--remove"], "-/-"),
    ] {
        rate(arguments).ok();
        assert_eq!(row(&stats()).2, expected);
    }
    rate(&["--to-guest", "7kbit"]).refused(&["7kbit", "8kbit", "80Gbit"]);
    assert_eq!(rate(&[]).status.code(), Some(2));
    host.run(&mut host.volt(&["port", "rate", "volt0", "vm-db", "--remove"])).refused(&["notFound", "vm-db"]);
    host.run(&mut host.volt(&["stop", "web", "--grace", "0"])).ok();
    vm.end().ok();
}

#[test]
fn ports_of_all_networks_are_listed_with_what_their_guests_may_send_from() {
    let Some(host) = Host::new() else { return };
    let list = || host.run(&mut host.volt(&["port", "list"])).ok().out;
    let head = ["NETWORK", "WORKLOAD", "INTERFACE", "MAC", "ADDRESSES", "PUBLISHED"];
    assert_eq!(rows(&list()), [head]);
    define(&host, LAB).ok();
    let spin = host.kernel("spin", &[&print("up"), SPIN]);
    let vms = [("a-longer-name", "lab0"), ("web", "volt0")]
        .map(|(name, network)| Running::start(host.plain(name, &spin).args(["--net", network])));
    vms.iter().for_each(|vm| vm.says("up"));
    let mac =
        |tap: &str| ip(&format!("-d -o link show dev {tap}")).split_once("alias volt-vmm port ").unwrap().1.to_owned();
    let listed = list();
    let listed = rows(&listed);
    assert_eq!(listed[0], head);
    for (row, [network, workload, full, address]) in listed[1..].iter().zip([
        ["lab0", "vm-a-longer-name", "tap-a-longer-name", "10.9.0.2"],
        ["volt0", "vm-web", "tap-web", "10.42.0.2"],
    ]) {
        assert_eq!([row[0], row[1], row[4], row[5]], [network, workload, address, "-"]);
        assert!(exists(row[2]) && mac(full).starts_with(&format!("{workload} {} {network} ", row[3])), "{row:?}");
    }
    assert_eq!(listed.len(), 3);
    for name in ["a-longer-name", "web"] {
        host.run(&mut host.volt(&["stop", name, "--grace", "0"])).ok();
    }
    vms.into_iter().for_each(|vm| _ = vm.end().ok());
    assert_eq!(rows(&list()), [head]);
}
