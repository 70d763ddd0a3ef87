//! Networks: bridges that are made, adopted, mended, removed, and what is not netmgr's left as it is.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use common::*;
use ipc::Code;
use testkit::skip;

#[test]
fn default_network_becomes_a_bridge_with_address_mark_mtu_and_no_stp() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let bridge = interface("volt0").unwrap();
            assert_eq!(ipv4(&bridge), ["10.42.0.1/24"]);
            assert_eq!(text(&bridge["linkinfo"], "info_kind"), "bridge");
            assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 0);
            assert_eq!(text(&bridge, "ifalias"), "volt-vmm network volt0 10.42.0.1/24 1500 -");
            assert_eq!(bridge["mtu"], 1500);
            assert!(has_flag(&bridge, "UP"));
            let info = client.info(&network).await.unwrap();
            // The host's IPv6 stays out: a guest's router advertisement would be a way to the host.
            assert_eq!(ipv6_disabled("volt0"), "1");
            assert_eq!(addresses(&bridge), ["10.42.0.1/24"]);
            assert_eq!(
                (info.name.as_str(), info.gateway.as_str(), info.prefix, info.mtu),
                ("volt0", "10.42.0.1", 24, 1500)
            );
            assert_eq!(bridge["ifindex"], info.index);
            assert!(info.ports.is_empty());
        });
    });
}

fn ipv6_disabled(name: &str) -> String {
    // Of the thread's network namespace.
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"));
    value.map_or_else(|_| "1".into(), |value| value.trim().into())
}

#[test]
fn defining_a_network_twice_changes_nothing_and_another_configuration_is_taken_on() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let state = || {
                let mut bridge = interface("volt0").unwrap();
                // A clock of the kernel's.
                bridge["linkinfo"]["info_data"]["gc_timer"] = 0.into();
                bridge
            };
            let before = state();
            let network = client.define_default().await;
            assert_eq!(state(), before);
            client.define("volt0", "10.43.0.1", 16, 9000).await.unwrap();
            let bridge = interface("volt0").unwrap();
            assert_eq!(ipv4(&bridge), ["10.43.0.1/16"]);
            assert_eq!(bridge["mtu"], 9000);
            // The capability is on the network, not on a configuration of it.
            assert_eq!(client.info(&network).await.unwrap().mtu, 9000);
            client.define("volt0", "", 0, 1280).await.unwrap();
            assert_eq!(ipv4(&interface("volt0").unwrap()), [""; 0]);
        });
    });
}

#[test]
fn bridge_of_an_earlier_netmgr_is_recognised_and_mended() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        run(async { earlier.connect().await.define_default().await });
        earlier.kill();
        let index = interface("volt0").unwrap()["ifindex"].clone();
        ip("link set volt0 down mtu 1400 type bridge stp_state 1");
        ip("addr add 10.42.0.77/24 dev volt0");
        ip("addr add 10.99.0.1/24 dev volt0");
        ip("link set volt0 address 02:11:22:33:44:55");

        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(client.info(&network).await.unwrap().gateway, "10.42.0.1");
            client.define_default().await;
            let bridge = interface("volt0").unwrap();
            assert_eq!(bridge["ifindex"], index);
            assert_eq!(ipv4(&bridge), ["10.42.0.1/24"]);
            assert_eq!((&bridge["mtu"], &bridge["linkinfo"]["info_data"]["stp_state"]), (&1500.into(), &0.into()));
            assert!(has_flag(&bridge, "UP"));
            assert_ne!(text(&bridge, "address"), "02:11:22:33:44:55");
        });
    });
}

#[test]
fn bridge_whose_maker_was_killed_before_it_was_marked_is_adopted() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        run(async { earlier.connect().await.define_default().await });
        earlier.kill();
        // What there is between the kernel's two steps.
        ip("addr flush dev volt0");
        assert!(
            std::process::Command::new("ip")
                .args(["link", "set", "volt0", "down", "alias", ""])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(text(&interface("volt0").unwrap(), "ifalias"), "");

        let netmgr = Netmgr::start();
        run(async { netmgr.connect().await.define_default().await });
        let bridge = interface("volt0").unwrap();
        assert_eq!(text(&bridge, "ifalias"), "volt-vmm network volt0 10.42.0.1/24 1500 -");
        assert_eq!(ipv4(&bridge), ["10.42.0.1/24"]);
    });
}

#[test]
fn foreign_interface_of_the_name_is_a_conflict_and_stays_as_it_is() {
    for kind in ["bridge", "veth"] {
        in_own_network(move || {
            ip(&format!("link add volt0 type {kind}"));
            ip("addr add 192.0.2.1/24 dev volt0");
            let state = || (ip("link show volt0"), ip("-4 -o addr"), interfaces());
            let before = state();
            let netmgr = Netmgr::start();
            run(async {
                let client = netmgr.connect().await;
                let fault = client.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap();
                assert_eq!(fault.code, Code::Conflict);
                assert!(fault.to_string().contains("ip link delete volt0"), "{fault}");
                assert_eq!(client.network("volt0").await.err().unwrap().code, Code::NotFound);
                assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::NotFound);
            });
            assert_eq!(state(), before);
        });
    }
}

#[test]
fn foreign_interface_with_the_name_as_alternative_name_is_a_conflict() {
    in_own_network(|| {
        ip("link add br0 type bridge");
        ip("link property add dev br0 altname volt0");
        let netmgr = Netmgr::start();
        let fault = run(async { netmgr.connect().await.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap() });
        assert_eq!(fault.code, Code::Conflict);
        assert_eq!(interfaces(), ["br0"]);
    });
}

#[test]
fn subnet_that_a_foreign_interface_or_route_holds_is_a_conflict_and_leaves_nothing() {
    let holders: [(&[&str], &str); 6] = [
        (&["addr add 10.42.0.9/24 dev up0"], "10.42.0.9/24, which an address of interface up0 holds"),
        (&["addr add 10.42.0.200/32 dev up0"], "10.42.0.200/32, which an address of interface up0 holds"),
        (&["addr add 10.1.2.3/8 dev up0"], "10.1.2.3/8, which an address of interface up0 holds"),
        (
            &["addr add 192.0.2.1/24 dev up0", "route add 10.42.0.0/24 via 192.0.2.2"],
            "10.42.0.0/24, which a route of interface up0 holds",
        ),
        (&["route add blackhole 10.42.0.128/25"], "10.42.0.128/25, which a route to nowhere"),
        (
            &["addr add 192.0.2.1/24 dev up0", "route add 10.42.0.7 nexthop via 192.0.2.2 nexthop via 192.0.2.3"],
            "10.42.0.7/32, which a route through several interfaces holds",
        ),
    ];
    for (holder, found) in holders {
        in_own_network(move || {
            ip("link add up0 type veth peer up1");
            ip("link set up0 up");
            ip("link set up1 up");
            holder.iter().for_each(|command| _ = ip(command));
            let before = (interfaces(), ip("-4 -o addr"), ip("route"));
            let netmgr = Netmgr::start();
            let fault = run(async { netmgr.connect().await.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap() });
            assert_eq!(fault.code, Code::Conflict, "{holder:?}: {fault}");
            assert!(fault.why.contains("10.42.0.1/24") && fault.why.contains(found), "{fault}");
            assert_eq!((interfaces(), ip("-4 -o addr"), ip("route")), before, "{holder:?}");
        });
    }
}

#[test]
fn routes_that_are_wider_than_the_subnet_are_no_conflict() {
    in_own_network(|| {
        ip("link add up0 type veth peer up1");
        ip("link set up0 up");
        ip("addr add 192.0.2.1/24 dev up0");
        for route in [
            "default via 192.0.2.2",
            "10.0.0.0/8 via 192.0.2.2",
            // What VPN clients make, to come before the default route.
            "0.0.0.0/1 dev up0",
            "128.0.0.0/1 dev up0",
            "10.0.0.0/9 dev up0",
            "blackhole 10.0.0.0/10",
            "unreachable 10.42.0.0/16",
            "10.42.0.0/23 dev up0",
        ] {
            ip(&format!("route add {route}"));
        }
        let netmgr = Netmgr::start();
        run(async { netmgr.connect().await.define_default().await });
        assert!(ip("route").contains("10.42.0.0/24 dev volt0"));
    });
}

#[test]
fn subnets_of_two_networks_of_ours_must_not_overlap() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            let fault = client.define("volt1", "10.42.0.129", 25, 0).await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict);
            assert!(fault.why.contains("an address of interface volt0"), "{fault}");
            client.define("volt1", "10.42.1.1", 24, 0).await.unwrap();
            assert_eq!(interfaces(), ["volt0", "volt1"]);
        });
    });
}

#[test]
fn removed_network_is_off_the_host_and_its_capabilities_are_revoked() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let fault = client.remove("volt0").await.err().unwrap();
            assert_eq!(fault.code, Code::WrongState);
            client.release(&port).await.unwrap();
            client.remove("volt0").await.unwrap();
            assert!(interfaces().is_empty());
            assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::NotFound);
            // A network of the same name that is defined later is another one.
            client.define_default().await;
            assert_eq!(client.info(&network).await.err().unwrap().code, Code::Revoked);
            assert_eq!(client.tap(&factory, "vm-web").await.err().unwrap().code, Code::Revoked);
        });
    });
}

#[test]
fn network_with_a_foreign_port_is_not_removed() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            ip("link add up0 type veth peer up1");
            ip("link set up0 master volt0");
            assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::WrongState);
            assert!(interface("volt0").is_some());
        });
    });
}

fn of_instance(id: &'static str) -> Netmgr {
    Netmgr::start_with(move |command| _ = command.args(["--instance", id]))
}

#[test]
fn network_of_another_installation_is_refused_by_name_and_left_alone_and_the_remedies_work() {
    in_own_network(|| {
        let (one, other) = (of_instance("one1"), of_instance("other2"));
        run(async {
            let (one, other) = (one.connect().await, other.connect().await);
            let factory = one.factory(&one.define_default().await, 1).await.unwrap();
            let _port = one.tap(&factory, "vm-web").await.unwrap();
            let mark = text(&interface("volt0").unwrap(), "ifalias");
            assert_eq!(mark, "volt-vmm network volt0 10.42.0.1/24 1500 one1");
            assert_eq!(other.network("volt0").await.err().unwrap().code, Code::NotFound);
            let fault = other.define("volt0", "10.42.0.1", 24, 1400).await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict);
            assert!(fault.why.contains("volt0 belongs to another") && fault.why.contains("one1"), "{fault}");
            assert!(fault.remedy.contains("ip link delete volt0"), "{fault}");
            assert_eq!(other.remove("volt0").await.err().unwrap().code, Code::NotFound);
            assert_eq!(other.define("mine0", "10.42.0.1", 24, 0).await.err().unwrap().code, Code::Conflict);
            let bridge = interface("volt0").unwrap();
            assert_eq!((text(&bridge, "ifalias"), &bridge["mtu"]), (mark, &1500.into()));
            // A network of its own, with the same workload.
            let network = other.define("mine0", "10.43.0.1", 24, 0).await.unwrap();
            let factory = other.factory(&network, 1).await.unwrap();
            let port = other.tap(&factory, "vm-web").await.unwrap();
            let second = other.port(&port).await.unwrap().interface;
            assert_eq!(text(&interface(&second).unwrap(), "master"), "mine0");
            assert_eq!(text(&interface("tap-web").unwrap(), "master"), "volt0");
            other.release(&port).await.unwrap();
        });
        drop(one);
        run(async {
            let other = other.connect().await;
            assert_eq!(other.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap().code, Code::Conflict);
            std::process::Command::new("ip").args(["link", "delete", "volt0"]).status().unwrap();
            other.define_default().await;
        });
    });
}

#[test]
fn network_of_a_release_that_noted_no_owner_is_adopted_with_its_ports_by_who_defines_it() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        let (tap, before) = run(async {
            let client = earlier.connect().await;
            let factory =
                client.factory(&client.define("volt0", "10.42.0.1", 24, 1400).await.unwrap(), 1).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let had = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
            earlier.kill();
            had
        });
        let set = |interface: &str, alias: &str| {
            let mut command = std::process::Command::new("ip");
            assert!(command.args(["link", "set", interface, "alias", alias]).status().unwrap().success());
        };
        let alias = |name: &str| text(&interface(name).unwrap(), "ifalias");
        let mark = alias("tap-web");
        set("volt0", "volt-vmm network");
        set("tap-web", mark.strip_suffix(" volt0 1400 -").unwrap());
        let (one, other) = (of_instance("one1"), of_instance("other2"));
        run(async {
            let (one, other) = (one.connect().await, other.connect().await);
            // Not by who only looks.
            assert_eq!(one.network("volt0").await.err().unwrap().code, Code::NotFound);
            assert_eq!(alias("volt0"), "volt-vmm network");
            let network = one.define_default().await;
            assert_eq!(alias("volt0"), "volt-vmm network volt0 10.42.0.1/24 1400 one1");
            assert_eq!(alias("tap-web"), mark.replace(" -", " one1"));
            assert_eq!(one.info(&network).await.unwrap().ports, [before.brief()]);
            let factory = one.factory(&network, 1).await.unwrap();
            assert_eq!(one.tap(&factory, "vm-web").await.err().unwrap().code, Code::AlreadyExists);
            // Once.
            let fault = other.define("volt0", "10.42.0.1", 24, 0).await.err().unwrap();
            assert_eq!(fault.code, Code::Conflict);
            close(tap, before.index).await;
            one.tap(&factory, "vm-web").await.unwrap();
        });
    });
}

#[test]
fn unusable_configuration_is_refused_by_name_and_changes_nothing() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            for (name, gateway, prefix, mtu, word) in [
                ("", "10.42.0.1", 24, 0, "network name"),
                ("sixteen-bytes-xx", "10.42.0.1", 24, 0, "network name"),
                ("../volt0", "10.42.0.1", 24, 0, "network name"),
                ("volt0", "10.42.0.300", 24, 0, "gateway"),
                ("volt0", "10.42.0.0", 24, 0, "gateway"),
                ("volt0", "10.42.0.1", 31, 0, "prefix length"),
                ("volt0", "10.42.0.1", 24, 1279, "MTU"),
            ] {
                let fault = client.define(name, gateway, prefix, mtu).await.err().unwrap();
                assert_eq!(fault.code, Code::InvalidArgument);
                assert!(fault.to_string().contains(word), "{fault}");
            }
            assert!(interfaces().is_empty());
        });
    });
}

#[test]
fn networks_are_listed_by_name_until_they_are_removed() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            assert_eq!(client.networks().await.unwrap(), [""; 0]);
            client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            client.define_default().await;
            assert_eq!(client.networks().await.unwrap(), ["volt0", "volt1"]);
            client.remove("volt0").await.unwrap();
            assert_eq!(client.networks().await.unwrap(), ["volt1"]);
        });
    });
}

/// Interfaces of others that are called as netmgr's are, or are marked nearly so: it is by its own mark that it knows what is its own.
#[test]
fn interfaces_that_only_look_like_netmgr_s_are_left_as_they_are_whatever_it_takes_away() {
    in_own_network(|| {
        let mut netmgr = Netmgr::start();
        let _tap = tap("tap-web");
        for command in [
            "link add volt1 type bridge stp_state 1",
            "link set volt1 alias other-vmm",
            "link add veth-db-h type veth peer name veth-db-c",
            "link add up-volt0 type veth peer name up-other",
            "link set tap-web master volt1",
            "link set veth-db-h master volt1",
            // Of another installation; of what netmgr would have marked otherwise; in a group of somebody's.
            "link set veth-db-c alias volt-vmm",
            "link add tap-two type bridge",
            "link set tap-two group 77",
            "link set up-other alias volt-vmm-network",
            "addr add 192.0.2.1/24 dev up-volt0",
            "link set volt1 up",
            "link set up-volt0 up",
        ] {
            ip(command);
        }
        let marked = "volt-vmm port vm-nine 02:00:00:00:00:09 volt0 1500 other";
        let status =
            std::process::Command::new("ip").args(["link", "set", "tap-two", "alias", marked]).status().unwrap();
        assert!(status.success());
        // What some kernels lack.
        for command in ["link add up-lan0 type vxlan id 7 dstport 4789", "link add mvt-web link up-other type macvtap"]
        {
            if !std::process::Command::new("ip").args(command.split(' ')).status().unwrap().success() {
                skip!("this kernel refuses: ip {command}");
            }
        }
        let facts = || {
            let all: Vec<serde_json::Value> = serde_json::from_str(&ip("-j -d addr show")).unwrap();
            let own = |link: &&serde_json::Value| link["ifname"] != "volt0" && link["master"] != "volt0";
            let of = |link: &serde_json::Value| {
                let fields = ["ifindex", "ifname", "ifalias", "address", "mtu", "master", "flags", "group", "altnames"];
                (fields.map(|field| link[field].clone()), link["linkinfo"]["info_slave_data"]["learning"].clone())
            };
            all.iter().filter(own).map(of).collect::<Vec<_>>()
        };
        let before = facts();
        assert!(before.len() >= 7);
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 3).await.unwrap();
            // That name is taken; where another installation's port has the first one, there is a second.
            let refused = client.tap(&factory, "vm-web").await.err().unwrap();
            assert_eq!(refused.code, Code::Conflict, "{refused}");
            let two = client.tap(&factory, "vm-two").await.unwrap();
            assert_ne!(client.port(&two).await.unwrap().interface, "tap-two");
            let port = client.tap(&factory, "vm-db").await.unwrap();
            client.release(&port).await.unwrap();
            let _killed = client.tap(&factory, "vm-db").await.unwrap();
            netmgr.kill();
        });
        eventually("its ports have gone", || ip("-o link show master volt0").is_empty());
        let netmgr = Netmgr::start();
        assert_eq!(facts(), before);
        run(async {
            let client = netmgr.connect().await;
            client.remove("volt0").await.unwrap();
        });
        assert_eq!(facts(), before);
    });
}
