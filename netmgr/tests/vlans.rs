//! Networks that are VLANs: real hosts beyond the parent, which speak with guests by way of it. Runs the program as root, each test in network
//! namespaces of its own; where the kernel has no VLANs, says so, and what a definition then comes to.

mod common;
mod places;

use std::process::Command;

use common::*;
use ipc::Code;
use places::*;
use schema::network_capnp::network;
use testkit::skip;

/// Runs a test where the kernel has VLANs.
fn with_vlans(test: impl FnOnce() + Send + 'static) {
    in_own_network(|| {
        ip("link add probe type veth peer name probe2");
        let made = Command::new("ip").args("link add link probe name probe.7 type vlan id 7".split(' ')).output();
        ip("link delete probe");
        if made.unwrap().status.success() {
            test();
        } else {
            skip!("the kernel has no VLANs (modprobe 8021q)");
        }
    });
}

async fn define_vlan(client: &Client, parent: &str, vlan: u16, mtu: u32) -> Result<network::Client, ipc::Fault> {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name("lan0");
    config.set_gateway("10.50.0.1");
    config.set_prefix_length(24);
    config.set_parent(parent);
    config.set_vlan(vlan);
    config.set_mtu(mtu);
    config.set_ipv6("fd00:50::1/64");
    Ok(client.connection.call("define a network", DEADLINE, request.send()).await?.get()?.get_network()?)
}

/// What a definition was refused with.
fn refused(outcome: Result<network::Client, ipc::Fault>, code: Code) -> String {
    let fault = outcome.map(drop).unwrap_err();
    assert_eq!(fault.code, code, "{fault}");
    fault.to_string()
}

/// Who is on the other side of `up0`: in VLAN 7, and in VLAN 8.
fn far() -> [Place; 2] {
    let (seven, eight) = (Place::lan(&[], &[]), Place::new());
    for (vlan, place, address) in [(7, &seven, "10.50.0.9"), (8, &eight, "10.50.0.8")] {
        seven.ip(&format!("link add link eth0 name eth0.{vlan} type vlan id {vlan}"));
        if vlan == 8 {
            seven.hands("eth0.8", place);
        }
        place.ip(&format!("link set eth0.{vlan} up"));
        place.ip(&format!("addr add {address}/24 dev eth0.{vlan}"));
        place.ip(&format!("addr add fd00:50::{vlan}/64 dev eth0.{vlan} nodad"));
    }
    [seven, eight]
}

/// What there should be beside the bridge.
fn whole(vlan: u64) -> Result<(), String> {
    let Some(uplink) = interface("up-lan0") else { return Err("there is no up-lan0".into()) };
    let (info, as_port) = (&uplink["linkinfo"]["info_data"], &uplink["linkinfo"]["info_slave_data"]);
    let right = (text(&uplink, "link"), text(&uplink, "master")) == ("up0".into(), "lan0".into())
        && (info["id"] == vlan && text(info, "protocol") == "802.1Q")
        && text(&uplink, "ifalias") == "volt-vmm uplink lan0 -"
        && has_flag(&uplink, "UP")
        && uplink["mtu"] == 1500
        && (as_port["learning"] == true && as_port["flood"] == true)
        && addresses(&uplink).is_empty();
    if right { Ok(()) } else { Err(format!("{uplink:#}")) }
}

/// Waits until each of these is answered by whom it asks: who did not find somebody before asks again after a second.
async fn answered(asked: &[(&Place, &str)]) {
    for (who, whom) in asked {
        settle(whom, || who.pings(whom)).await;
    }
}

async fn is_whole(vlan: u64) {
    settle("the uplink is whole", || whole(vlan).is_ok()).await;
}

#[test]
fn kernel_without_vlans_and_a_parent_that_is_none_are_named_and_leave_nothing() {
    in_own_network(|| {
        ip("link add up0 type veth peer name up1");
        ip("link set up0 mtu 1400");
        let has_vlans =
            Command::new("ip").args("link add link up0 name v7 type vlan id 7".split(' ')).output().unwrap();
        let has_vlans = has_vlans.status.success();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            if has_vlans {
                let taken = refused(define_vlan(&client, "up0", 7, 0).await, Code::Conflict);
                assert!(taken.contains("VLAN 7 of up0 is taken") && taken.contains("ip link delete v7"), "{taken}");
                let none = refused(define_vlan(&client, "lo", 7, 0).await, Code::InvalidArgument);
                assert!(none.contains("such an interface has no VLANs"), "{none}");
            } else {
                let lacks = refused(define_vlan(&client, "up0", 7, 0).await, Code::Unavailable);
                assert!(lacks.contains("no VLANs") && lacks.contains("modprobe 8021q"), "{lacks}");
            }
            let none = refused(define_vlan(&client, "eth7", 7, 0).await, Code::Unavailable);
            assert!(none.contains("there is no interface eth7"), "{none}");
            let large = refused(define_vlan(&client, "up0", 8, 1401).await, Code::InvalidArgument);
            assert!(large.contains("1401") && large.contains("up0"), "{large}");
            client.define_default().await;
            let own = refused(define_vlan(&client, "volt0", 7, 0).await, Code::InvalidArgument);
            assert!(own.contains("Volt's own"), "{own}");
            for (parent, vlan) in [("", 7), ("up0", 0), ("up0", 4095), ("u 0", 7)] {
                refused(define_vlan(&client, parent, vlan, 0).await, Code::InvalidArgument);
            }
            client.remove("volt0").await.unwrap();
            assert!(
                interfaces().iter().all(|name| ["up0", "up1", "v7"].contains(&name.as_str())),
                "{:?}",
                interfaces()
            );
            assert_eq!(client.networks().await.unwrap(), [""; 0]);
        });
    });
}

#[test]
fn guests_are_in_their_vlan_and_in_no_other_whatever_becomes_of_netmgr() {
    with_vlans(|| {
        let [far, other] = far();
        let mut netmgr = Netmgr::start();
        let guests = run(async {
            let client = netmgr.connect().await;
            define_vlan(&client, "up0", 7, 0).await.unwrap();
            whole(7).unwrap();
            let both = ["10.50.0.2/24", "fd00:50::2/64"];
            let web = Guest::new(&client, "lan0", "vm-web", &both, &[]).await;
            let db = Guest::new(&client, "lan0", "vm-db", &["10.50.0.3/24", "fd00:50::3/64"], &[]).await;
            far.serves(80);
            web.serves(80);
            for guest in [&web, &db] {
                assert_eq!(guest.seen_as("10.50.0.9:80").split('.').count(), 4);
            }
            assert_eq!(far.seen_as("10.50.0.2:80"), "10.50.0.9");
            assert_eq!(far.seen_as("[fd00:50::2]:80"), "fd00:50::7");
            // The host is in it, as who has the gateway's address, and who is in another VLAN is not.
            answered(&[(&far, "10.50.0.1"), (&web, "10.50.0.9"), (&web, "10.50.0.3")]).await;
            assert!(!web.pings("10.50.0.8") && !other.pings("10.50.0.2") && !other.pings("10.50.0.1"));
            // With the tag on the parent, and none on the way in.
            let tagged = far.ip("-s -j link show eth0.7");
            let received: serde_json::Value = serde_json::from_str(&tagged).unwrap();
            assert!(received[0]["stats64"]["rx"]["packets"].as_u64().unwrap() > 0, "{tagged}");
            // Who is there takes no guest's address, nor the host's.
            far.ip("link set eth0.7 down");
            far.ip("addr flush dev eth0.7");
            far.ip("addr add 10.50.0.3/24 dev eth0.7");
            far.ip("link set eth0.7 up");
            assert!(!far.pings("10.50.0.1") && !far.pings("10.50.0.2"));
            answered(&[(&web, "10.50.0.3")]).await;
            far.ip("addr flush dev eth0.7");
            far.ip("addr add 10.50.0.9/24 dev eth0.7");
            answered(&[(&far, "10.50.0.2")]).await;
            // The network is another VLAN, and then this one again.
            define_vlan(&client, "up0", 8, 0).await.unwrap();
            whole(8).unwrap();
            answered(&[(&web, "10.50.0.8"), (&other, "10.50.0.1")]).await;
            assert!(!far.pings("10.50.0.2"));
            define_vlan(&client, "up0", 7, 0).await.unwrap();
            whole(7).unwrap();
            answered(&[(&web, "10.50.0.9")]).await;
            (web, db)
        });
        netmgr.kill();
        assert!(guests.0.pings("10.50.0.9"));
        ip("link set up-lan0 nomaster");
        ip("link set up-lan0 down");
        let netmgr = Netmgr::start();
        whole(7).unwrap();
        run(async {
            let client = netmgr.connect().await;
            let network = client.network("lan0").await.unwrap();
            answered(&[(&guests.0, "10.50.0.9")]).await;
            // What others do to it is undone.
            for harm in [
                "link delete up-lan0",
                "link set up-lan0 nomaster",
                "link set up-lan0 mtu 1400",
                "link set up-lan0 type bridge_slave learning off flood off",
            ] {
                ip(harm);
                is_whole(7).await;
            }
            ip("link set up0 down");
            ip("link set up0 up");
            is_whole(7).await;
            answered(&[(&guests.0, "10.50.0.9")]).await;
            // The parent goes, and comes back.
            far.ip("link delete eth0");
            settle("it has gone", || interface("up-lan0").is_none()).await;
            answered(&[(&guests.0, "10.50.0.3")]).await;
            ip("link add up0 type veth peer name up1");
            is_whole(7).await;
            // Removed while a netmgr looks, it leaves nothing.
            drop(guests);
            drop(network);
            settle("no ports", || !interfaces().iter().any(|name| name.starts_with("tap-"))).await;
            client.remove("lan0").await.unwrap();
            assert!(interfaces().iter().all(|name| name.starts_with("up") && name != "up-lan0"), "{:?}", interfaces());
        });
    });
}
