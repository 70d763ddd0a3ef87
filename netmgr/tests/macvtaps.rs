//! Networks of macvtaps: guests beside the host on the network of one of its interfaces. Runs the program as root, each test in a network namespace of its
//! own, with /sys of that; the parent is one end of a pair, whose other end is the neighbour's, in another namespace. The guests are their devices' ends, and
//! what they send is ARP (RFC 826) for addresses that nobody has: the address tells one from the other.

mod common;
mod lan;

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
};

use common::*;
use ipc::Code;
use lan::*;
use schema::network_capnp::{MIN_RATE, MacvtapMode, NetworkKind, network, network_config};
use testrig::container::{Guest, send_frame};

/// What is asked for in a network's definition.
type Change<'a> = &'a dyn Fn(network_config::Builder<'_>);

/// What TUNGETIFF says: the interface's name, and its flags.
fn interface_of(device: &OwnedFd) -> (String, i16) {
    // SAFETY: all-zero bytes are a valid ifreq, which the request fills in and which lives through the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        assert_eq!(libc::ioctl(device.as_raw_fd(), libc::TUNGETIFF, &raw mut request), 0);
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).collect();
        (String::from_utf8(name).unwrap(), request.ifr_ifru.ifru_flags)
    }
}

#[test]
fn guest_is_a_neighbour_s_neighbour_and_its_device_is_a_tap_s_however_others_count_their_interfaces() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            // Somebody has a macvtap of the next index in another namespace, so that the node in /dev that is named for it is his.
            ip("link add filler0 type veth peer name filler1");
            let index = |name: &str| interface(name).unwrap()["ifindex"].as_u64().unwrap();
            let next = index("filler0").max(index("filler1")) + 1;
            let foreign = Container::new();
            foreign.ip("link add p0 type veth peer name p1");
            foreign.ip(&format!("link add link p0 name theirs index {next} type macvtap mode bridge"));
            let (port, station) = Station::on(&client, &lan, 5).await.unwrap();
            let facts = client.port(&port).await.unwrap();
            assert_eq!((facts.interface.as_str(), u64::from(facts.index), facts.mtu), ("mvt-5", next, 1500));
            let wanted = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
            assert_eq!(interface_of(&station.0), ("mvt-5".into(), wanted));
            let link = interface("mvt-5").unwrap();
            assert_eq!((text(&link, "address"), text(&link, "link")), ("02:00:00:00:00:05".into(), "up0".into()));
            assert_eq!(text(&link["linkinfo"]["info_data"], "mode"), "bridge");
            assert!(has_flag(&link, "ALLMULTI") && has_flag(&link, "NOARP") && has_flag(&link, "UP"));
            assert!(addresses(&link).is_empty(), "{link}");
            // A multicast that nobody has asked for, to a static IPv6 address's group: it has to come.
            let group = [&[0x33, 0x33, 0xff, 0, 0, 5][..], &request(7, 9)[6..]].concat();
            neighbour.within(|| send_frame("nb0", &group));
            station.hears_until(9);
            let guest = Guest::behind(station.0, "02:00:00:00:00:05", "10.7.0.5");
            guest.inside.pings([10, 7, 0, 2]);
            neighbour.pings([10, 7, 0, 5]);
            drop(guest);
            client.release(&port).await.unwrap();
            assert!(interface("mvt-5").is_none());
        });
    });
}

#[test]
fn each_mode_lets_guests_reach_whom_it_says() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let modes = [
                (MacvtapMode::Bridge, vec![11, 12]),
                (MacvtapMode::PrivateMode, vec![12]),
                (MacvtapMode::Vepa, vec![12]),
            ];
            for (mode, hears) in modes {
                let lan = lan(&client, mode).await;
                let (a, one) = Station::on(&client, &lan, 5).await.unwrap();
                let (b, other) = Station::on(&client, &lan, 6).await.unwrap();
                let ear = Ear::at(&neighbour, "nb0");
                one.sends(&request(5, 11));
                assert_eq!(ear.hears_until(11), [11], "{mode:?}: the neighbour");
                neighbour.within(|| send_frame("nb0", &request(7, 12)));
                assert_eq!(other.hears_until(12), hears, "{mode:?}");
                // What comes back from beyond, as of a switch that sends it back, those get who do not hear it otherwise, and may.
                neighbour.within(|| {
                    send_frame("nb0", &request(5, 13));
                    send_frame("nb0", &request(7, 14));
                });
                let back = if mode == MacvtapMode::Vepa { vec![13, 14] } else { vec![14] };
                assert_eq!(other.hears_until(14), back, "{mode:?}: what is sent back");
                for port in [a, b] {
                    client.release(&port).await.unwrap();
                }
            }
            let lan = lan(&client, MacvtapMode::Passthru).await;
            let (port, one) = Station::on(&client, &lan, 5).await.unwrap();
            let refused = Station::on(&client, &lan, 6).await.err().unwrap();
            assert_eq!(refused.code, Code::Conflict, "{refused}");
            assert_eq!(text(&interface("up0").unwrap(), "address"), "02:00:00:00:00:05");
            let ear = Ear::at(&neighbour, "nb0");
            one.sends(&request(5, 11));
            assert_eq!(ear.hears_until(11), [11]);
            client.release(&port).await.unwrap();
            assert_eq!(text(&interface("up0").unwrap(), "address"), "02:00:00:00:07:01", "the parent's own again");
        });
    });
}

#[test]
fn guest_sends_nothing_but_what_is_its_own_whatever_others_do_to_the_rules() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (_port, station) = Station::on(&client, &lan, 5).await.unwrap();
            let (_other, other) = Station::on(&client, &lan, 6).await.unwrap();
            let ear = Ear::at(&neighbour, "nb0");
            let forged = |what: u8| {
                let own = request(5, what);
                let mut of_another = own.clone();
                of_another[28..32].copy_from_slice(&[10, 7, 0, 6]);
                let mut to_the_bridge = own.clone();
                to_the_bridge[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0xe]);
                let tagged = [&own[..12], &[0x81, 0, 0, 7], &own[12..]].concat();
                // IPv4 of the neighbour's, with nothing in it.
                let ipv4 = [&own[..12], &[8, 0, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 7, 0, 2, 10, 7, 0, what]]
                    .concat();
                // A router advertisement.
                let ra = [
                    &[0x33, 0x33, 0, 0, 0, 1],
                    &mac(5)[..],
                    &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80],
                    &[0; 6],
                    &[0, 0, 0, 0xff, 0xfe, 0, 0, 5, 0xff, 2],
                    &[0; 13],
                    &[1, 134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0],
                    &[10, 7, 0, what],
                ]
                .concat();
                [request(6, what), of_another, to_the_bridge, tagged, ipv4, ra]
            };
            let holds = |what: u8| {
                forged(what).iter().for_each(|frame| station.sends(frame));
                station.sends(&request(5, what + 1));
                assert_eq!(ear.hears_until(what + 1), [what + 1]);
                assert_eq!(other.hears_until(what + 1), [what + 1]);
            };
            holds(10);
            // Somebody takes the rules away, all of them or a part: they are there again.
            let table = "netdev volt-vmm-mvt-5";
            let rules = || {
                Command::new("nft").args(["-s", "list", "table", "netdev", "volt-vmm-mvt-5"]).output().unwrap().stdout
            };
            let before = rules();
            assert!(!before.is_empty());
            for (what, harm) in [
                (20, format!("delete table {table}")),
                (30, format!("flush chain {table} guest")),
                (40, format!("flush set {table} macs")),
            ] {
                nft(&harm);
                settle("the rules are there again", || rules() == before).await;
                holds(what);
            }
        });
    });
}

/// As from a guest without a policy on a bridge.
#[test]
fn metadata_of_clouds_are_out_of_a_guest_s_reach() {
    on_a_lan(|neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (_port, station) = Station::on(&client, &lan, 5).await.unwrap();
            let ear = Ear::at(&neighbour, "nb0");
            // A datagram by way of the neighbour.
            let datagram = |to: [u8; 4], what: u8| {
                let ends =
                    [&[2, 0, 0, 0, 7, 2], &mac(5)[..], &[8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 7, 0, 5]];
                [&ends.concat()[..], &to, &[0x10, 0, 0, 80, 0, 12, 0, 0, 10, 7, 0, what]].concat()
            };
            station.sends(&datagram([169, 254, 169, 254], 10));
            station.sends(&datagram([169, 254, 169, 253], 11));
            station.sends(&datagram([198, 51, 100, 7], 12));
            assert_eq!(ear.hears_until(12), [11, 12]);
        });
    });
}

/// What a port carries at most, and what was dropped of it: as forged, and beyond that rate, from its guest and to it; and what it has carried.
type Carried = ((u64, u64), u64, (u64, u64), (u64, u64));

async fn carried(client: &Client, network: &network::Client) -> Carried {
    let answer = client.connection.call("list", DEADLINE, network.ports_request().send()).await.unwrap();
    let port = answer.get().unwrap().get_ports().unwrap().get(0);
    let (rate, stats) = (port.get_rate().unwrap(), port.get_stats().unwrap());
    let over = (stats.get_over_from_packets(), stats.get_over_to_packets());
    let went = (stats.get_from_packets(), stats.get_to_packets());
    ((rate.get_from_guest(), rate.get_to_guest()), stats.get_forged_packets(), over, went)
}

#[test]
fn macvtap_carries_no_more_than_its_rate_each_way_and_the_next_netmgr_knows_that_and_what_was_counted() {
    on_a_lan(|neighbour| {
        let mut netmgr = Netmgr::start();
        let (_station, counted) = run(async {
            let client = netmgr.connect().await;
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (port, station) = Station::on(&client, &lan, 5).await.unwrap();
            station.sends(&request(6, 9));
            let before = carried(&client, &lan).await;
            assert_eq!((before.0, before.1, before.2), ((0, 0), 1, (0, 0)));
            station.sends(&request(5, 9));
            assert_eq!(carried(&client, &lan).await.3.0, before.3.0 + 1);
            let mut request = port.set_rate_request();
            let mut rate = request.get().init_rate();
            rate.set_from_guest(MIN_RATE);
            rate.set_to_guest(MIN_RATE + 1);
            client.connection.call("set a rate", DEADLINE, request.send()).await.unwrap();
            // 128 KiB and what goes in a second; then some of it is too much.
            let long = |from| [&self::request(from, 9)[..], &[0; 1400]].concat();
            while carried(&client, &lan).await.2.0 == 0 {
                (0..100).for_each(|_| station.sends(&long(5)));
            }
            let far = [&mac(5)[..], &long(7)[6..]].concat();
            while carried(&client, &lan).await.2.1 == 0 {
                neighbour.within(|| (0..100).for_each(|_| send_frame("nb0", &far)));
            }
            let counted = carried(&client, &lan).await;
            assert_eq!((counted.0, counted.1), ((MIN_RATE, MIN_RATE + 1), 1));
            let own = client.connection.call("look", DEADLINE, port.stats_request().send()).await.unwrap();
            let own = own.get().unwrap().get_stats().unwrap();
            assert_eq!((own.get_over_from_packets(), own.get_over_to_packets()), counted.2);
            netmgr.kill();
            (station, counted)
        });
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = client.network("lan").await.unwrap();
            let now = carried(&client, &lan).await;
            assert!(now.0 == counted.0 && now.1 == 1 && now.2.0 == counted.2.0 && now.2.1 >= counted.2.1, "{now:?}");
            let table = "netdev volt-vmm-mvt-5";
            nft(&format!("flush set {table} rates_from"));
            settle("it is there again", || nft(&format!("list set {table} rates_from")).contains("limit")).await;
        });
    });
}

#[test]
fn macvtap_that_somebody_has_changed_is_as_it_was_again() {
    on_a_lan(|_neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            let is = |link: serde_json::Value| {
                has_flag(&link, "ALLMULTI")
                    && has_flag(&link, "NOARP")
                    && has_flag(&link, "UP")
                    && text(&link, "address") == "02:00:00:00:00:05"
                    && text(&link["linkinfo"]["info_data"], "mode") == "bridge"
                    && text(&link, "ifalias").contains("vm-5")
                    && link["mtu"] == 1500
            };
            // One at a time, each of what the kernel tells in a way of its own; then the rest.
            for harm in [
                "mvt-5 type macvtap mode private",
                "mvt-5 allmulticast off arp on address 02:00:00:00:00:66 mtu 1400 down",
            ] {
                ip(&format!("link set {harm}"));
                settle(harm, || interface("mvt-5").is_some_and(is)).await;
            }
            ip("link set mvt-5 down");
            ip("link set mvt-5 name eth7");
            settle("it has its name again", || interface("mvt-5").is_some_and(is)).await;
            client.port(&port).await.unwrap();
            // Gone is gone, with its parent too.
            ip("link delete up0");
            assert!(client.lost(&port).await.unwrap().contains("mvt-5"));
            let refused = Station::on(&client, &lan, 6).await.err().unwrap();
            assert!(refused.code == Code::Unavailable && refused.to_string().contains("up0"), "{refused}");
            let tables = nft("list tables");
            assert!(!tables.contains("mvt-5"), "{tables}");
        });
    });
}

#[test]
fn macvtap_outlives_netmgr_with_its_guest_and_ends_where_its_workload_has_another_or_by_hand() {
    on_a_lan(|neighbour| {
        let mut netmgr = Netmgr::start();
        let station = run(async {
            let client = netmgr.connect().await;
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let held = [Station::on(&client, &lan, 5).await.unwrap(), Station::on(&client, &lan, 6).await.unwrap()];
            netmgr.kill();
            held.into_iter().next().unwrap().1
        });
        // As if by a netmgr that was killed in the middle of it.
        ip("link delete mvt-6");
        assert!(nft("list tables").contains("mvt-6"));
        let ear = Ear::at(&neighbour, "nb0");
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            station.sends(&request(6, 11));
            station.sends(&request(5, 12));
            assert_eq!(ear.hears_until(12), [12], "and its guest sends what it might before");
            assert!(!nft("list tables").contains("mvt-6"));
            let found = client.network("lan").await.unwrap();
            let ports = client.ports(&found, "").await.unwrap();
            assert_eq!(ports.iter().map(|port| port.workload.as_str()).collect::<Vec<_>>(), ["vm-5"]);
            let refused = client.remove("lan").await.unwrap_err();
            assert!(
                refused.code == Code::WrongState && refused.to_string().contains("ip link delete mvt-5"),
                "{refused}"
            );
            let lan = lan(&client, MacvtapMode::Bridge).await;
            let (port, again) = Station::on(&client, &lan, 5).await.unwrap();
            // What the earlier one's holder sends comes to nobody.
            station.sends(&request(5, 14));
            again.sends(&request(5, 13));
            assert_eq!(ear.hears_until(13), [13]);
            client.release(&port).await.unwrap();
            client.remove("lan").await.unwrap();
            assert!(interface("mvt-5").is_none() && !nft("list tables").contains("volt-vmm"));
            assert!(client.networks().await.unwrap().is_empty());
        });
    });
}

#[test]
fn what_a_network_of_virtual_functions_cannot_be_is_refused_by_name_and_a_parent_without_any_says_what_to_do() {
    on_a_lan(|_neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let define = async |change: Change<'_>| {
                let sriov = |mut config: network_config::Builder<'_>| {
                    config.set_kind(NetworkKind::Sriov);
                    change(config);
                };
                lan::define(&client, "lan", MacvtapMode::Bridge, sriov).await
            };
            for (change, code, said) in [
                (
                    &(|mut c: network_config::Builder<'_>| c.set_parent("")) as Change<'_>,
                    Code::InvalidArgument,
                    "parent",
                ),
                (&|mut c| c.set_parent("none0"), Code::Unavailable, "none0"),
                (&|mut c| c.set_nat(true), Code::InvalidArgument, "nat"),
                (&|mut c| c.set_ipv6("auto"), Code::InvalidArgument, "IPv6"),
                (&|mut c| c.set_isolate(true), Code::InvalidArgument, "isolate"),
                (&|mut c| c.set_mtu(1501), Code::InvalidArgument, "ip link set up0 mtu 1501"),
                (&|mut c| c.set_vlan(4095), Code::InvalidArgument, "VLAN"),
            ] {
                let refused = define(change).await.err().unwrap();
                assert!(refused.code == code && refused.to_string().contains(said), "{said}: {refused}");
            }
            let trusted = async |kind| {
                let change = |mut config: network_config::Builder<'_>| {
                    config.set_kind(kind);
                    config.set_trust(true);
                };
                lan::define(&client, "lan", MacvtapMode::Bridge, change).await.err().unwrap()
            };
            for kind in [NetworkKind::Bridged, NetworkKind::HostOnly, NetworkKind::Macvtap, NetworkKind::Isolated] {
                let refused = trusted(kind).await;
                assert!(refused.code == Code::InvalidArgument && refused.to_string().contains("trust"), "{refused}");
            }
            assert!(client.networks().await.unwrap().is_empty());
            let lan = define(&|mut c| c.set_vlan(7)).await.unwrap();
            let answer = client.connection.call("look", DEADLINE, lan.info_request().send()).await.unwrap();
            let config = answer.get().unwrap().get_info().unwrap().get_config().unwrap();
            assert_eq!((config.get_kind().unwrap(), config.get_vlan()), (NetworkKind::Sriov, 7));
            assert!(!config.get_trust() && config.get_parent().unwrap() == "up0");
            let before = interfaces();
            let refused = Station::on(&client, &lan, 5).await.err().unwrap();
            let remedy = "/sys/class/net/up0/device/sriov_numvfs";
            assert!(refused.code == Code::Unavailable && refused.to_string().contains(remedy), "{refused}");
            assert_eq!(interfaces(), before);
            client.remove("lan").await.unwrap();
        });
    });
}

#[test]
fn what_a_network_of_macvtaps_cannot_be_is_refused_by_name() {
    on_a_lan(|_neighbour| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let bridge = MacvtapMode::Bridge;
            client.define_default().await;
            let refused = async |change: Change<'_>| define(&client, "lan", bridge, change).await.err().unwrap();
            for (change, code, said) in [
                (
                    &(|mut c: network_config::Builder<'_>| c.set_parent("")) as Change<'_>,
                    Code::InvalidArgument,
                    "parent",
                ),
                (&|mut c| c.set_parent("no such"), Code::InvalidArgument, "parent"),
                (&|mut c| c.set_parent("none0"), Code::Unavailable, "none0"),
                (&|mut c| c.set_parent("volt0"), Code::InvalidArgument, "Volt's own"),
                (&|mut c| c.set_nat(true), Code::InvalidArgument, "nat"),
                (&|mut c| c.set_ipv6("auto"), Code::InvalidArgument, "somebody else"),
                (&|mut c| c.set_isolate(true), Code::InvalidArgument, "private"),
                (&|mut c| c.set_mtu(1501), Code::InvalidArgument, "ip link set up0 mtu 1501"),
                (&|mut c| c.set_vlan(7), Code::InvalidArgument, "VLAN"),
                (&|mut c| c.set_name("volt0"), Code::WrongState, "another kind"),
                (&|mut c| c.set_kind(NetworkKind::Bridged), Code::InvalidArgument, "parent"),
            ] {
                let refused = refused(change).await;
                assert!(refused.code == code && refused.to_string().contains(said), "{said}: {refused}");
            }
            assert_eq!(client.networks().await.unwrap(), ["volt0"]);
            let lan = define(&client, "lan", bridge, |mut config| config.set_mtu(1400)).await.unwrap();
            let factory = client.factory(&lan, 4).await.unwrap();
            let veth = client.veth(&factory, "container-a", &Container::new(), |_| ()).await.err().unwrap();
            let [kind, remedy] = ["lan, a network of type macvtap", "of type bridged, host-only or isolated"];
            let said = veth.to_string();
            assert!(veth.code == Code::InvalidArgument && said.contains(kind) && said.contains(remedy), "{veth}");
            let of_gateway = client.tap_from(&factory, "vm-g", &[], &["10.7.0.254"]).await.err().unwrap();
            assert!(of_gateway.to_string().contains("gateway"), "{of_gateway}");
            // The parent's own, which the kernel refuses where it is brought up.
            let taken = client.tap_from(&factory, "vm-p", &[2, 0, 0, 0, 7, 1], &[]).await.err().unwrap();
            assert!(taken.code == Code::AlreadyExists && interface("mvt-p").is_none(), "{taken}");
            let port = client.tap_from(&factory, "vm-m", &[], &[]).await.unwrap();
            assert_eq!(interface("mvt-m").unwrap()["mtu"], 1400);
            let listens = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let token = client.connection.deposit(listens.as_fd()).await.unwrap();
            let mut request = lan.publish_request();
            request.get().set_workload("vm-m");
            request.get().set_guest_port(80);
            request.get().init_sockets(1).get(0).set_bytes(token.as_bytes());
            let published = client.connection.call("publish", DEADLINE, request.send()).await.err().unwrap();
            let (said, remedy) = (published.to_string(), "under their own addresses");
            assert!(
                published.code == Code::InvalidArgument && said.contains(kind) && said.contains(remedy),
                "{published}"
            );
            let moved = define(&client, "lan", MacvtapMode::Vepa, |_| ()).await.err().unwrap();
            assert_eq!(moved.code, Code::WrongState, "{moved}");
            client.release(&port).await.unwrap();
            // Whose parent a bridge has.
            client.remove("lan").await.unwrap();
            ip("link add br0 type bridge");
            ip("link set up0 master br0");
            let lan = define(&client, "lan", bridge, |_| ()).await.unwrap();
            let busy = Station::on(&client, &lan, 5).await.err().unwrap();
            assert!(busy.code == Code::Conflict && busy.to_string().contains("parent"), "{busy}");
            assert_eq!(interfaces().iter().filter(|name| name.starts_with("mvt")).count(), 0);
        });
    });
}
