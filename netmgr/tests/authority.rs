//! Who holds something narrow of a real `netmgr` has that and no more, however it asks; and who may connect.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use std::{
    fs,
    os::{fd::AsRawFd, unix::fs::PermissionsExt},
    path::Path,
};

use capnp::traits::HasTypeId;
use common::*;
use ipc::{Code, Connection};
use schema::{
    host_capnp::{host, tenant},
    network_capnp::{network, policy, port, port_factory, port_watcher, virtual_function},
};
use testrig::{
    handed::{hand_over, know_only},
    storm,
};

#[test]
fn what_is_narrow_leads_to_nothing_wider() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            let network = owner.define_default().await;
            let tenant = owner.tenant("acme", 4).await.unwrap();
            let factory = owner.factory(&network, 1).await.unwrap();
            let port = owner.tap(&factory, "vm-web").await.unwrap();
            let made = owner.connection.call("make a policy", DEADLINE, network.policy_request().send()).await.unwrap();
            let policy = made.get().unwrap().get_policy().unwrap();
            let watched = owner.connection.call("watch", DEADLINE, network.watch_request().send()).await.unwrap();
            let watcher = watched.get().unwrap().get_watcher().unwrap();
            let asked = port.virtual_function_request();
            let had = owner.connection.call("ask for its virtual function", DEADLINE, asked.send()).await.unwrap();
            let function = had.get().unwrap().get_virtual_function().unwrap();
            let narrow = [
                (&function.client, virtual_function::Client::TYPE_ID),
                (&watcher.client, port_watcher::Client::TYPE_ID),
                (&policy.client, policy::Client::TYPE_ID),
                (&port.client, port::Client::TYPE_ID),
                (&factory.client, port_factory::Client::TYPE_ID),
                (&network.client, network::Client::TYPE_ID),
                (&tenant.client, tenant::Client::TYPE_ID),
            ];
            know_only(host::Client::TYPE_ID, &narrow).await;
            assert_eq!(interfaces(), ["volt0", "tap-web"]);
            let holder = Client::from(hand_over(&port.client));
            assert_eq!(holder.port(&holder.connection.bootstrap()).await.unwrap().workload, "vm-web");
            let holder = Client::from(hand_over(&factory.client));
            assert_eq!(code(holder.tap(&holder.connection.bootstrap(), "vm-b").await), Some(Code::Exhausted));
            owner.fd(&port).await.unwrap();
            // Of a TAP's it says nothing; and it ends with the port.
            let info = || owner.connection.call("look at it", DEADLINE, function.info_request().send());
            assert_eq!(code(info().await.map(drop)), Some(Code::WrongState));
            owner.release(&port).await.unwrap();
            assert_eq!(code(info().await.map(drop)), Some(Code::Revoked));
        });
    });
}

#[test]
fn a_quota_is_the_same_for_all_who_hold_the_factory_however_often_they_ask() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            let network = owner.define_default().await;
            let factory = owner.factory(&network, 2).await.unwrap();
            let holders = [(); 3].map(|()| Client::from(hand_over(&factory.client)));
            let ask = async |holder: &Client, workload: &str| {
                // Each asks its link for the capability anew.
                holder.tap(&holder.connection.bootstrap(), workload).await
            };
            let first = ask(&holders[0], "vm-a").await.unwrap();
            let second = ask(&holders[1], "vm-b").await.unwrap();
            for holder in &holders {
                assert_eq!(code(ask(holder, "vm-c").await), Some(Code::Exhausted));
            }
            let again = Client::from(hand_over(&factory.client));
            assert_eq!(code(ask(&again, "vm-c").await), Some(Code::Exhausted));
            // The factory's end gives nothing back that is held.
            drop(factory);
            assert_eq!(code(ask(&again, "vm-c").await), Some(Code::Exhausted));
            holders[0].release(&first).await.unwrap();
            let third = ask(&again, "vm-c").await.unwrap();
            assert_eq!(code(ask(&again, "vm-d").await), Some(Code::Exhausted));
            drop((second, third));
        });
    });
}

#[test]
fn a_tenants_quota_is_one_over_all_its_factories_and_networks() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            owner.define_default().await;
            owner.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            let tenant = owner.tenant("acme", 2).await.unwrap();
            let holder = Client::from(hand_over(&tenant.client));
            let factory =
                async |network: &str| holder.tenant_factory(&holder.connection.bootstrap(), network).await.unwrap();
            let _first = holder.tap(&factory("volt0").await, "vm-a").await.unwrap();
            let second = holder.tap(&factory("volt1").await, "vm-b").await.unwrap();
            for network in ["volt0", "volt1", "volt0"] {
                assert_eq!(code(holder.tap(&factory(network).await, "vm-c").await), Some(Code::Exhausted));
            }
            // Another tenant of that name cannot be made beside it.
            assert_eq!(code(owner.tenant("acme", 16).await), Some(Code::AlreadyExists));
            holder.release(&second).await.unwrap();
            holder.tap(&factory("volt0").await, "vm-c").await.unwrap();
            assert_eq!(
                code(holder.tenant_factory(&holder.connection.bootstrap(), "volt9").await),
                Some(Code::NotFound)
            );
        });
    });
}

#[test]
fn a_factory_ends_with_its_tenant_and_with_its_network_and_does_not_pass_to_the_next_of_that_name() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            let old = owner.define_default().await;
            let tenant = owner.tenant("acme", 4).await.unwrap();
            let of_tenant = owner.tenant_factory(&tenant, "volt0").await.unwrap();
            let port = owner.tap(&of_tenant, "vm-a").await.unwrap();
            drop(tenant);
            // Its last reference has gone once the name is free again.
            let again = loop {
                match owner.tenant("acme", 4).await {
                    Ok(tenant) => break tenant,
                    Err(fault) => assert_eq!(fault.code, Code::AlreadyExists),
                }
            };
            assert_eq!(code(owner.tap(&of_tenant, "vm-b").await), Some(Code::Revoked));
            assert_eq!(code(owner.port(&port).await), Some(Code::Revoked));
            assert_eq!(code(owner.fd(&port).await), Some(Code::Revoked));

            let of_network = owner.factory(&old, 4).await.unwrap();
            owner.remove("volt0").await.unwrap();
            let new = owner.define_default().await;
            assert_eq!(code(owner.tap(&of_network, "vm-a").await), Some(Code::Revoked));
            assert_eq!(code(owner.info(&old).await), Some(Code::Revoked));
            let factory = owner.tenant_factory(&again, "volt0").await.unwrap();
            owner.tap(&factory, "vm-a").await.unwrap();
            drop(new);
        });
    });
}

#[test]
fn a_port_that_was_released_is_nobodys_and_does_no_harm_to_the_next_of_that_workload() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            let network = owner.define_default().await;
            let factory = owner.factory(&network, 4).await.unwrap();
            let old = owner.tap(&factory, "vm-web").await.unwrap();
            let holder = Client::from(hand_over(&old.client));
            let handed: port::Client = holder.connection.bootstrap();
            holder.port(&handed).await.unwrap();
            owner.release(&old).await.unwrap();
            let new = owner.tap(&factory, "vm-web").await.unwrap();
            for _ in 0..3 {
                assert_eq!(code(holder.port(&handed).await), Some(Code::Revoked));
                assert_eq!(code(holder.release(&handed).await), Some(Code::Revoked));
            }
            drop((handed, holder, old));
            assert_eq!(owner.info(&network).await.unwrap().ports.len(), 1);
            assert_eq!(owner.port(&new).await.unwrap().workload, "vm-web");
            owner.fd(&new).await.unwrap();
        });
    });
}

#[test]
fn a_taps_token_is_good_once_and_its_neighbours_are_not() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let owner = netmgr.connect().await;
            let network = owner.define_default().await;
            let factory = owner.factory(&network, 1).await.unwrap();
            let port = owner.tap(&factory, "vm-web").await.unwrap();
            let answer = owner.connection.call("get the TAP", DEADLINE, port.tap_request().send()).await.unwrap();
            let token = answer.get().unwrap().get_tap().unwrap().get_bytes().unwrap().to_vec();
            let other = netmgr.connect().await;
            for bit in 0..128 {
                let mut guess = token.clone();
                guess[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(code(other.connection.claim(&guess).await), Some(Code::BadToken));
            }
            owner.connection.claim(&token).await.unwrap();
            for connection in [&owner.connection, &other.connection] {
                assert_eq!(code(connection.claim(&token).await), Some(Code::BadToken));
            }
        });
    });
}

#[test]
fn tap_comes_with_its_port_for_who_asks_for_it_and_without_room_for_it_there_is_no_port() {
    let most = schema::fd_lane_capnp::MAX_TOKENS_PER_PROCESS as usize;
    in_own_network(move || {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, most as u32 + 3).await.unwrap();
            let make = async |workload: &str, hand_out: bool| {
                let mut request = factory.create_tap_request();
                request.get().set_workload(workload);
                request.get().set_hand_out(hand_out);
                let answer = client.connection.call("make a port", DEADLINE, request.send()).await?;
                let answer = answer.get()?;
                let tap = if answer.has_tap() { Some(answer.get_tap()?.get_bytes()?.to_vec()) } else { None };
                Ok::<_, ipc::Fault>((answer.get_port()?, tap))
            };
            let (silent, none) = make("vm-silent", false).await.unwrap();
            assert_eq!(none, None);
            let (port, token) = make("vm-web", true).await.unwrap();
            let tap = client.connection.claim(&token.unwrap()).await.unwrap();
            let same = client.fd(&port).await.unwrap();
            for tap in [tap, same] {
                let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", tap.as_raw_fd())).unwrap();
                assert!(about.lines().any(|line| line == "iff:\ttap-web"), "{about}");
            }
            let mut waiting = Vec::new();
            for n in 0..most {
                waiting.push(make(&format!("vm-{n}"), true).await.unwrap());
            }
            assert_eq!(code(make("vm-more", true).await), Some(Code::Overloaded));
            client.connection.claim(waiting.last().unwrap().1.as_ref().unwrap()).await.unwrap();
            make("vm-more", true).await.unwrap();
            drop(silent);
        });
    });
}

#[test]
fn an_owner_is_served_beside_root_and_its_neighbours_are_not() {
    const OWNER: u32 = 4721;
    in_own_network(|| {
        let netmgr = Netmgr::start_with(|command| _ = command.args(["--owner", &OWNER.to_string()]));
        fs::set_permissions(netmgr.socket.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        let define = |user: u32| {
            let socket = netmgr.socket.clone();
            let asked = testkit::user::as_user(user, move || {
                run(async {
                    let client = Client::from(Connection::connect(&socket).await?);
                    client.define("volt0", "10.42.0.1", 24, 0).await.map(drop)
                })
            });
            code(asked.join().unwrap())
        };
        assert_eq!(define(OWNER + 1), Some(Code::PermissionDenied));
        let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        open(&netmgr.socket);
        open(&schema::paths::lane(&netmgr.socket));
        for stranger in [OWNER - 1, OWNER + 1, 65_534] {
            assert!(define(stranger).is_some(), "{stranger}");
        }
        assert!(interfaces().is_empty());
        assert_eq!(define(OWNER), None);
        assert_eq!(define(0), None);
    });
}

#[test]
fn it_survives_calls_of_anything_with_any_arguments_and_keeps_what_others_hold() {
    in_own_network(|| {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let mut netmgr = Netmgr::start_with(|command| _ = command.stderr(fs::File::create(&said).unwrap()));
        run(async {
            let owner = netmgr.connect().await;
            let network = owner.define("volt7", "10.47.0.1", 24, 0).await.unwrap();
            let port = owner.tap(&owner.factory(&network, 1).await.unwrap(), "vm-mine").await.unwrap();
            storm::storm(&netmgr.socket, host::Client::TYPE_ID, 1000, &[]);
            // The kernel numbers interfaces in the order of their making.
            let next = owner.define("volt8", "10.48.0.1", 24, 0).await.unwrap();
            let (last, next) = (owner.port(&port).await.unwrap().index, owner.info(&next).await.unwrap().index);
            assert!(next > last + 1, "none of it made sense");
            assert_eq!(owner.port(&port).await.unwrap().workload, "vm-mine");
            owner.fd(&port).await.unwrap();
        });
        assert_eq!(netmgr.process.try_wait().unwrap(), None);
        let said = fs::read_to_string(said).unwrap();
        assert!(!said.contains("panicked"), "{said}");
    });
}
