//! The addresses that a port's guest may send from: which may be given, whose they are then, and that a later netmgr knows them.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use common::*;
use ipc::Code;
use schema::{addresses_capnp::pool::reserve_params, network_capnp::port_factory};

#[test]
fn addresses_are_told_in_order_and_are_in_the_interface_s_mark() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 2).await.unwrap();
            let given = ["fd00::10", "10.42.0.10", "2001:db8:0::1", "10.42.0.9"];
            let port = client.tap_from(&factory, "vm-web", &[], &given).await.unwrap();
            let info = client.port(&port).await.unwrap();
            assert_eq!(info.addresses, ["10.42.0.9", "10.42.0.10", "2001:db8::1", "fd00::10"]);
            assert_eq!(client.ports(&network, "").await.unwrap(), [info]);
            let alias = text(&interface("tap-web").unwrap(), "ifalias");
            assert!(alias.contains(" volt0 1500 - 43"), "{alias}");
        });
    });
}

/// What an older client sends of `createTap`: a struct of two pointers, the workload's name and the MAC address.
#[test]
fn client_that_knows_of_no_addresses_gets_a_port_without() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let create = capnp::capability::Client::new(factory.client.hook.add_ref());
            // Any struct of that shape.
            let mut request = create.new_call::<reserve_params::Owned, port_factory::create_tap_results::Owned>(
                <port_factory::Client as capnp::traits::HasTypeId>::TYPE_ID,
                0,
                None,
            );
            request.get().set_workload("vm-old");
            let answer = client.connection.call("make a port", DEADLINE, request.send()).await.unwrap();
            let port = answer.get().unwrap().get_port().unwrap();
            let info = client.port(&port).await.unwrap();
            assert_eq!((info.workload.as_str(), info.addresses.len()), ("vm-old", 0));
        });
    });
}

#[test]
fn unusable_address_is_refused_by_name_and_nothing_is_made() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            for (bad, why) in [
                ("10.42.0.1", "the network's gateway"),
                ("10.42.0.0", "10.42.0.0/24"),
                ("10.42.0.255", "10.42.0.0/24"),
                ("10.43.0.9", "10.42.0.0/24"),
                ("127.0.0.1", "loopback"),
                ("10.42.0.9/24", "neither"),
                ("fe80::1", "link-local"),
                ("ff02::1", "2000::/3"),
                ("::1", "2000::/3"),
                ("::", "no IPv6 subnet"),
                ("fd00::", "not the first of its subnet"),
                ("web", "neither"),
            ] {
                let fault = client.tap_from(&factory, "vm-web", &[], &["10.42.0.7", bad]).await.err().unwrap();
                assert_eq!(fault.code, Code::InvalidArgument, "{fault}");
                assert!(fault.why.contains(why) && fault.why.contains(bad), "{fault}");
            }
            let fault = client.tap_from(&factory, "vm-web", &[], &["10.42.0.7", "10.42.0.7"]).await.err().unwrap();
            assert!(fault.code == Code::InvalidArgument && fault.why.contains("given twice"), "{fault}");
            assert_eq!(interfaces(), ["volt0"]);
            client.tap_from(&factory, "vm-web", &[], &["10.42.0.7"]).await.unwrap();
        });
    });
}

/// The longest names that there are, so that the kernel is given the longest alias.
#[test]
fn as_many_addresses_as_the_schema_says_fit_beside_the_longest_names_and_no_more() {
    in_own_network(|| {
        let owner = "0123456789abcdef0123456789abcdef";
        let netmgr = Netmgr::start_with(|command| _ = command.args(["--instance", owner]));
        run(async {
            let client = netmgr.connect().await;
            let network = client.define("exactly15bytes_", "10.42.0.1", 8, 65_521).await.unwrap();
            let factory = client.factory(&network, 1).await.unwrap();
            let longest = "x".repeat(63);
            let four = |count: u32| (1..=count).map(|n| format!("10.9.9.{n}")).collect::<Vec<_>>();
            let six = |count: u32| (1..=count).map(|n| format!("fd00::{n:x}")).collect::<Vec<_>>();
            let apart = ["2001:db8::1", "3fff::1", "fc00::1", "fd00::1"].map(str::to_owned).to_vec();
            let most = [[four(16), six(16)].concat(), [&apart[..], &four(5)].concat()];
            for addresses in &most {
                let given: Vec<&str> = addresses.iter().map(String::as_str).collect();
                let port = client.tap_from(&factory, &longest, &[], &given).await.unwrap();
                let info = client.port(&port).await.unwrap();
                assert_eq!(info.addresses.len(), given.len());
                let alias = text(&interface(&info.interface).unwrap(), "ifalias");
                assert!(alias.len() <= 254, "{alias}");
                client.release(&port).await.unwrap();
            }
            for addresses in [four(17), six(17), [&apart[..], &four(6)].concat()] {
                let given: Vec<&str> = addresses.iter().map(String::as_str).collect();
                let fault = client.tap_from(&factory, &longest, &[], &given).await.err().unwrap();
                assert_eq!(fault.code, Code::InvalidArgument, "{fault}");
                assert!(fault.why.contains("16 addresses of a family") || fault.why.contains("room for 72"), "{fault}");
            }
        });
    });
}

#[test]
fn address_is_one_port_s_of_a_network_until_that_is_released() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 3).await.unwrap();
            let first = client.tap_from(&factory, "vm-a", &[], &["10.42.0.7", "fd00::7"]).await.unwrap();
            for taken in ["10.42.0.7", "fd00::7"] {
                let fault = client.tap_from(&factory, "vm-b", &[], &["10.42.0.8", taken]).await.err().unwrap();
                assert_eq!(fault.code, Code::AlreadyExists, "{fault}");
                assert!(fault.why.contains(&format!("{taken} is the address of vm-a on network volt0")), "{fault}");
            }
            // On another network it is another address.
            let network = client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            let other = client.factory(&network, 1).await.unwrap();
            let _other = client.tap_from(&other, "vm-b", &[], &["fd00::7"]).await.unwrap();
            // The gateway comes to a guest's address no more than a guest to the gateway's.
            let fault = client.define("volt0", "10.42.0.7", 24, 0).await.err().unwrap();
            assert!(fault.code == Code::AlreadyExists && fault.why.contains("vm-a"), "{fault}");
            assert_eq!(ipv4(&interface("volt0").unwrap()), ["10.42.0.1/24"]);
            // One that is given up by its end is in nobody's way, however late it goes.
            drop(first);
            client.tap_from(&factory, "vm-b", &[], &["10.42.0.7"]).await.unwrap();
        });
    });
}

#[test]
fn network_without_a_gateway_takes_the_addresses_of_any_subnet() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define("lan0", "", 0, 0).await.unwrap(), 1).await.unwrap();
            client.tap_from(&factory, "vm-a", &[], &["192.168.7.1", "10.42.0.7"]).await.unwrap();
        });
    });
}

#[test]
fn later_netmgr_knows_whose_address_it_is_and_one_of_a_mark_without_any_is_nobody_s() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        let (taps, [info, none]) = run(async {
            let client = earlier.connect().await;
            let factory = client.factory(&client.define_default().await, 2).await.unwrap();
            let port = client.tap_from(&factory, "vm-web", &[], &["10.42.0.7", "fd00::7"]).await.unwrap();
            let none = client.tap(&factory, "vm-none").await.unwrap();
            let taps = (client.fd(&port).await.unwrap(), client.fd(&none).await.unwrap());
            let infos = [client.port(&port).await.unwrap(), client.port(&none).await.unwrap()];
            earlier.kill();
            (taps, infos)
        });
        let mark = text(&interface("tap-none").unwrap(), "ifalias");
        assert!(mark.ends_with(" volt0 1500 -"), "as an earlier release writes it: {mark}");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            assert_eq!(client.ports(&network, "").await.unwrap(), [none, info.clone()]);
            let factory = client.factory(&network, 2).await.unwrap();
            let fault = client.tap_from(&factory, "vm-b", &[], &["fd00::7"]).await.err().unwrap();
            assert!(fault.code == Code::AlreadyExists && fault.why.contains("vm-web"), "{fault}");
            // Until the process has ended that has its TAP open.
            close(taps.0, info.index).await;
            client.tap_from(&factory, "vm-b", &[], &["10.42.0.7", "fd00::7"]).await.unwrap();
        });
    });
}
