//! Networks of virtual functions (SR-IOV): whose each is, what its card has it be, and that it is given back. Runs the program as root in the namespace
//! that it finds itself in, on a card that is there for tests alone (`card`). Elsewhere it says so and does nothing.

mod card;
mod common;
mod lan;

use std::{fs, process::Command};

use card::*;
use common::*;
use ipc::{Code, Fault};
use lan::{Ear, Station, mac, request};
use schema::network_capnp::{NetworkKind, port};
use serde_json::Value;
use testrig::container::send_frame;

/// What somebody does.
type Act<'a> = &'a dyn Fn();

/// Parent, number, PCI address, MAC address, VLAN.
type Said = (String, u32, String, Vec<u8>, u16);

async fn function_of(client: &Client, port: &port::Client) -> Result<Said, Fault> {
    let function = port.virtual_function_request().send().pipeline.get_virtual_function();
    let answer = client.connection.call("look at it", DEADLINE, function.info_request().send()).await?;
    let info = answer.get()?.get_info()?;
    let text = |text: capnp::text::Reader<'_>| text.to_string().unwrap();
    let (parent, address) = (text(info.get_parent()?), text(info.get_address()?));
    Ok((parent, info.get_number(), address, info.get_mac()?.to_vec(), info.get_vlan()))
}

#[test]
fn function_is_set_for_its_guest_and_the_next_guest_has_the_next_one() {
    on_a_card(|card| {
        let before = card.state();
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = in_vlan(&client, card).await;
            let (port, one) = station(&client, &lan, 5).await;
            let (other_port, _other) = station(&client, &lan, 6).await;
            for (number, station, port) in [(0, 5, &port), (1, 6, &other_port)] {
                let said = function_of(&client, port).await.unwrap();
                let address = fs::canonicalize(card.folder().join(format!("virtfn{number}"))).unwrap();
                let address = address.file_name().unwrap().to_str().unwrap().to_owned();
                assert_eq!(said, (card.name.clone(), number, address, mac(station).to_vec(), 7));
                let set = card.set(number as usize);
                assert_eq!(text(&set, "address"), format!("02:00:00:00:00:0{station}"), "{set}");
                assert_eq!((&set["spoofchk"], &set["trust"]), (&Value::from(true), &Value::from(false)), "{set}");
                assert_eq!(set["vlan_list"][0]["vlan"], 7, "{set}");
                let link = interface(&card.function(number as usize)).unwrap();
                assert!(has_flag(&link, "UP") && addresses(&link).is_empty() && link["promiscuity"] == 0, "{link}");
                let macvtap = interface(&format!("mvt-{station}")).unwrap();
                assert_eq!(text(&macvtap, "link"), text(&link, "ifname"));
                assert_eq!(text(&macvtap["linkinfo"]["info_data"], "mode"), "passthru");
            }
            let refused = Station::on(&client, &lan, 7).await.err().unwrap();
            let remedy = format!("/sys/class/net/{}/device/sriov_numvfs", card.name);
            assert!(refused.code == Code::Exhausted && refused.to_string().contains(&remedy), "{refused}");
            assert!(interface("mvt-7").is_none());
            // The card puts the tag on that the neighbour's interface is of, and takes it off.
            let ear = Ear::at(&card.neighbour, "nb7");
            one.sends(&request(5, 11));
            assert_eq!(ear.hears_until(11), [11]);
            card.neighbour.within(|| send_frame(&card.peer, &request(9, 12)));
            card.neighbour.within(|| send_frame("nb7", &request(9, 13)));
            // (QEMU's card gives a function its own broadcasts back.)
            let heard = one.hears_until(13);
            assert!(!heard.contains(&12), "what has no tag is not for it: {heard:?}");
            for port in [&port, &other_port] {
                client.release(port).await.unwrap();
                assert_eq!(function_of(&client, port).await.unwrap_err().code, Code::Revoked);
            }
            assert_eq!(card.state(), before);
        });
    });
}

/// As if by a guest that has the function itself, past all rules.
#[test]
fn function_is_given_back_as_it_was_whoever_has_ended() {
    on_a_card(|card| {
        // As somebody may have left them.
        ip(&format!("link set {} vf 0 mac 02:00:00:00:00:77 vlan 9 qos 3 max_tx_rate 200", card.name));
        ip(&format!("link set {} vf 0 spoofchk off trust on", card.name));
        ip(&format!("link set {} mtu 1400 address 02:00:00:00:00:77", card.function(0)));
        let before = card.state();
        let mut netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let lan = in_vlan(&client, card).await;
            // Who gives it back, or has gone without a word.
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            assert_ne!(card.state(), before);
            client.release(&port).await.unwrap();
            assert_eq!(card.state(), before);
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            drop(port);
            settle("it is given back", || card.state() == before).await;
            // One whose macvtap somebody takes away.
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            ip("link delete mvt-5");
            client.lost(&port).await.unwrap();
            settle("it is given back", || card.state() == before).await;
            let _held = [Station::on(&client, &lan, 5).await.unwrap(), Station::on(&client, &lan, 6).await.unwrap()];
            netmgr.kill();
        });
        // While there is no netmgr.
        ip("link delete mvt-5");
        let mut netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let state = card.state();
            assert_eq!(state[0], before[0], "what nobody has any more is given back");
            assert_ne!(state[1], before[1], "and what a VM may have is not");
            let lan = client.network("lan").await.unwrap();
            assert_eq!(client.ports(&lan, "").await.unwrap().len(), 1);
            let info = client.connection.call("look", DEADLINE, lan.info_request().send()).await.unwrap();
            let config = info.get().unwrap().get_info().unwrap().get_config().unwrap();
            assert_eq!((config.get_kind().unwrap(), config.get_vlan()), (NetworkKind::Sriov, 7));
            // Its workload has one again, and then none.
            let lan = in_vlan(&client, card).await;
            let (port, _station) = Station::on(&client, &lan, 6).await.unwrap();
            client.release(&port).await.unwrap();
            assert_eq!(card.state(), before);
            client.remove("lan").await.unwrap();
            netmgr.kill();
        });
        // As if it was killed when it had one, and nothing on it.
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = in_vlan(&client, card).await;
            let held = Station::on(&client, &lan, 5).await.unwrap();
            drop(held);
            settle("it is given back", || card.state() == before).await;
        });
    });
}

#[test]
fn function_that_somebody_has_changed_is_as_it_was_again_and_one_that_is_gone_is_lost() {
    on_a_card(|card| {
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = in_vlan(&client, card).await;
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            let wanted = (card.set(0), text(&interface(&card.function(0)).unwrap(), "ifalias"));
            for harm in [
                format!("{} vf 0 spoofchk off", card.name),
                format!("{} vf 0 vlan 9", card.name),
                format!("{} vf 0 trust on", card.name),
                format!("{} vf 0 mac 02:00:00:00:00:66", card.name),
                format!("{} down", card.function(0)),
                format!("{} arp on", card.function(0)),
                format!("{} alias mine", card.function(0)),
            ] {
                ip(&format!("link set {harm}"));
                let is = || {
                    let link = interface(&card.function(0)).unwrap();
                    (card.set(0), text(&link, "ifalias")) == wanted
                        && ["UP", "NOARP"].iter().all(|flag| has_flag(&link, flag))
                };
                settle(&harm, is).await;
            }
            client.port(&port).await.unwrap();
            fs::write(card.folder().join("sriov_numvfs"), "0").unwrap();
            assert!(client.lost(&port).await.unwrap().contains("mvt-5"));
            let none = Station::on(&client, &lan, 6).await.err().unwrap();
            assert!(none.code == Code::Unavailable && none.to_string().contains("sriov_numvfs"), "{none}");
        });
    });
}

#[test]
fn function_that_somebody_uses_is_left_alone_and_two_netmgrs_have_one_each() {
    on_a_card(|card| {
        let (first, second) = (card.function(0), card.function(1));
        let elsewhere = Container::new();
        let uses: [[Act<'_>; 2]; 5] = [
            [&|| link(&format!("{first} up")), &|| link(&format!("{first} down"))],
            [&|| _ = ip(&format!("addr add 10.9.0.1/24 dev {first}")), &|| _ = ip(&format!("addr flush dev {first}"))],
            [&|| link(&format!("{first} alias mine")), &|| {
                // Whose value is empty, which `ip` above has no word for.
                assert!(Command::new("ip").args(["link", "set", &first, "alias", ""]).status().unwrap().success());
            }],
            [&|| _ = ip(&format!("link add link {first} name v0 type macvlan")), &|| _ = ip("link delete v0")],
            [
                &|| {
                    ip("link add br0 type bridge");
                    link(&format!("{first} master br0"));
                },
                &|| _ = ip("link delete br0"),
            ],
        ];
        let [one, other] =
            ["one", "other"].map(|id| Netmgr::start_with(|command| _ = command.args(["--instance", id])));
        run(async {
            let (one, other) = (one.connect().await, other.connect().await);
            let lan = in_vlan(&one, card).await;
            for [use_it, stop] in uses {
                use_it();
                let before = card.state();
                let (port, _station) = Station::on(&one, &lan, 5).await.unwrap();
                assert_eq!(function_of(&one, &port).await.unwrap().1, 1);
                assert_eq!(Station::on(&one, &lan, 6).await.err().unwrap().code, Code::Exhausted);
                one.release(&port).await.unwrap();
                assert_eq!(card.state(), before);
                stop();
            }
            let lan_of_other = in_vlan(&other, card).await;
            let (_port, _station) = Station::on(&one, &lan, 5).await.unwrap();
            let (port, _other) = Station::on(&other, &lan_of_other, 6).await.unwrap();
            assert_eq!(function_of(&other, &port).await.unwrap().1, 1);
            other.release(&port).await.unwrap();
            // In another network namespace; and while its card is down none is of use.
            ip(&format!("link set {second} netns {}", elsewhere.path()));
            assert_eq!(Station::on(&other, &lan_of_other, 6).await.err().unwrap().code, Code::Exhausted);
            ip(&format!("link set {} down", card.name));
            let down = Station::on(&other, &lan_of_other, 6).await.err().unwrap();
            assert!(down.to_string().contains(&format!("ip link set {} up", card.name)), "{down}");
            // No network of macvtaps is on one that is taken.
            let mut asked = other.host.define_network_request();
            let mut config = asked.get().init_config();
            config.set_name("macvtaps");
            config.set_kind(NetworkKind::Macvtap);
            config.set_parent(&first);
            let refused = other.connection.call("define", DEADLINE, asked.send()).await.err().unwrap();
            assert!(refused.to_string().contains("Volt's own"), "{refused}");
        });
    });
}

#[test]
fn function_that_its_card_has_disabled_is_left_alone() {
    on_a_card(|card| {
        let disable = Command::new("ip").args(["link", "set", &card.name, "vf", "0", "state", "disable"]).output();
        if !disable.unwrap().status.success() {
            return testkit::skip!("the card's driver disables no function (Linux's igb)");
        }
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = in_vlan(&client, card).await;
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            assert_eq!(function_of(&client, &port).await.unwrap().1, 1);
        });
    });
}

#[test]
fn function_sends_no_more_than_its_port_s_rate_as_far_as_its_card_knows_and_is_trusted_where_that_is_asked() {
    on_a_card(|card| {
        let before = card.state();
        let netmgr = Netmgr::start();
        session(&netmgr, async |client| {
            let lan = define(&client, card, "lan", |mut config| config.set_trust(true)).await.unwrap();
            let (port, _station) = Station::on(&client, &lan, 5).await.unwrap();
            let set = card.set(0);
            assert_eq!((&set["spoofchk"], &set["trust"]), (&Value::from(true), &Value::from(true)), "{set}");
            // Of what is no whole Mbit/s, the next one.
            for (rate, most) in [(12_500_000, 100), (12_500_001, 101), (0, 0)] {
                let mut request = port.set_rate_request();
                request.get().init_rate().set_from_guest(rate);
                client.connection.call("set a rate", DEADLINE, request.send()).await.unwrap();
                assert_eq!(card.set(0)["rate"]["max_tx"].as_u64().unwrap_or_default(), most, "{}", card.set(0));
            }
            client.release(&port).await.unwrap();
            assert_eq!(card.state(), before);
        });
    });
}
