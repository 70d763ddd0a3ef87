//! Ports: TAPs that are made, used, counted and taken away, by whatever way their holder goes.
//! Runs the program as root, each test in a network namespace of its own.

mod common;

use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use common::*;
use ipc::Code;
use rustix::net::{self, AddressFamily, RecvFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink};
use schema::network_capnp::{MAX_LISTED_PORTS, MAX_PORTS};

/// ioctl requests that tell what a TAP is.
fn tap_flags(fd: &impl AsRawFd) -> (i16, i32) {
    let mut header = 0;
    // SAFETY: all-zero bytes are a valid ifreq; both requests write into what outlives the call.
    let flags = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request), 0);
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut header), 0);
        request.ifr_ifru.ifru_flags
    };
    (flags, header)
}

#[test]
fn port_is_a_marked_tap_on_the_bridge_that_is_up_and_has_no_address() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define("volt0", "10.42.0.1", 24, 1400).await.unwrap();
            let factory = client.factory(&network, 1).await.unwrap();
            let port = client.tap_with(&factory, "vm-web", &[0x52, 0x54, 0, 1, 2, 3]).await.unwrap();
            let tap = interface("tap-web").unwrap();
            assert_eq!(text(&tap, "master"), "volt0");
            assert_eq!(text(&tap, "ifalias"), "volt-vmm port vm-web 52:54:00:01:02:03 volt0 1400 -");
            assert_eq!(text(&tap, "address"), "fe:54:00:01:02:03");
            assert_eq!((&tap["mtu"], has_flag(&tap, "UP")), (&1400.into(), true));
            let tun = &tap["linkinfo"]["info_data"];
            assert_eq!(
                (text(tun, "type").as_str(), &tun["vnet_hdr"], &tun["persist"]),
                ("tap", &true.into(), &false.into()),
                "{tun}"
            );
            assert!(tun.get("user").is_none() && tun.get("group").is_none(), "{tun}");
            // Neither IPv4, nor a link-local IPv6 address that would talk to the guest.
            assert_eq!(addresses(&tap), [""; 0]);
            assert_eq!(interface("volt0").unwrap()["mtu"], 1400, "the bridge keeps its MTU");

            let info = client.port(&port).await.unwrap();
            assert_eq!(
                (info.workload.as_str(), info.interface.as_str(), info.network.as_str()),
                ("vm-web", "tap-web", "volt0")
            );
            assert_eq!((info.mac.as_slice(), info.mtu), (&[0x52, 0x54, 0, 1, 2, 3][..], 1400));
            assert_eq!(tap["ifindex"], info.index);
            assert_eq!(client.info(&network).await.unwrap().ports, [info.brief()]);
        });
    });
}

#[test]
fn derived_mac_is_the_same_each_time() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let mut macs = Vec::new();
            for _ in 0..2 {
                let port = client.tap(&factory, "vm-web").await.unwrap();
                macs.push(client.port(&port).await.unwrap().mac);
                client.release(&port).await.unwrap();
            }
            assert_eq!(macs[0], macs[1]);
            assert_eq!((macs[0].len(), macs[0][0]), (6, 0x02));
        });
    });
}

#[test]
fn tap_carries_frames_behind_a_12_byte_header_to_the_gateway() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let guest = [0x02, 0, 0, 0, 0, 9];
            let port = client.tap_from(&factory, "vm-web", &guest, &["10.42.0.9"]).await.unwrap();
            let tap = client.fd(&port).await.unwrap();
            let (flags, header) = tap_flags(&tap);
            assert_eq!(
                i32::from(flags) & 0xffff & (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_PERSIST),
                libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR
            );
            assert_eq!(header, 12);
            // ARP (RFC 826): who has 10.42.0.1? Tell 10.42.0.9.
            let mut frame = vec![0; 12];
            frame.extend([0xff; 6]);
            frame.extend(guest);
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend(guest);
            frame.extend([10, 42, 0, 9, 0, 0, 0, 0, 0, 0, 10, 42, 0, 1]);
            forwards("tap-web").await;
            rustix::io::write(&tap, &frame).unwrap();
            eventually("the gateway answers", || {
                let mut buffer = [0; 2048];
                match rustix::io::read(&tap, &mut buffer[..]) {
                    Ok(length) => {
                        length >= 54 && buffer[12..18] == guest && buffer[24..34] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 2]
                    }
                    Err(error) => {
                        assert_eq!(error, rustix::io::Errno::AGAIN, "the descriptor does not block");
                        false
                    }
                }
            });
            // The same open file each time.
            let again = client.fd(&port).await.unwrap();
            assert_eq!(tap_flags(&again), (flags, header));
        });
    });
}

#[test]
fn long_workload_name_gets_a_shortened_interface_with_the_full_alternative_name() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 2).await.unwrap();
            let longest = format!("vm-{}", "x".repeat(60));
            for workload in ["vm-twelve-bytes", &longest] {
                let port = client.tap(&factory, workload).await.unwrap();
                let name = client.port(&port).await.unwrap().interface;
                assert_eq!(name.len(), 15);
                let full = workload.replacen("vm-", "tap-", 1);
                assert_eq!(text(&interface(&full).unwrap(), "ifname"), name, "found by its alternative name");
                client.release(&port).await.unwrap();
                settle("neither is there", || (interface(&name), interface(&full)) == (None, None)).await;
            }
        });
    });
}

/// The failure that is injected comes after the TAP has been made: a foreign interface has taken the alternative name.
#[test]
fn port_that_fails_half_way_leaves_no_interface_and_takes_no_quota() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 1).await.unwrap();
            ip("link add up0 type veth peer up1");
            ip("link property add dev up0 altname tap-twelve-bytes");
            let before = interfaces();
            for _ in 0..3 {
                let fault = client.tap(&factory, "vm-twelve-bytes").await.err().unwrap();
                assert_eq!(fault.code, Code::Conflict, "{fault}");
                assert_eq!(interfaces(), before);
            }
            assert!(client.info(&network).await.unwrap().ports.is_empty());
            assert_eq!(text(&interface("tap-twelve-bytes").unwrap(), "ifname"), "up0", "the foreign one is as it was");
            ip("link property del dev up0 altname tap-twelve-bytes");
            client.tap(&factory, "vm-twelve-bytes").await.unwrap();
        });
    });
}

#[test]
fn foreign_interface_of_the_taps_name_is_a_conflict_even_if_it_is_a_tap() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            // A persistent TAP is one that TUNSETIFF would attach to.
            for make in ["tuntap add tap-web mode tap vnet_hdr", "link add tap-web type veth peer up1"] {
                ip(make);
                let before = interface("tap-web");
                let fault = client.tap(&factory, "vm-web").await.err().unwrap();
                assert_eq!(fault.code, Code::Conflict, "{fault}");
                assert_eq!(interface("tap-web"), before);
                ip("link delete tap-web");
            }
            client.tap(&factory, "vm-web").await.unwrap();
        });
    });
}

#[test]
fn released_port_is_cut_off_and_then_gone_though_its_tap_is_open_elsewhere_and_later_calls_are_revoked() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let tap = client.fd(&port).await.unwrap();
            let frame = [&[0; 12][..], &[0xff; 6], &[2, 0, 0, 0, 0, 9], &[8, 6], &[0; 46]].concat();
            rustix::io::write(&tap, &frame).unwrap();
            client.release(&port).await.unwrap();
            assert!(interface("tap-web").is_none_or(|tap| !has_flag(&tap, "UP")));
            let refused = rustix::io::write(&tap, &frame).err().unwrap();
            assert!([rustix::io::Errno::IO, rustix::io::Errno::BADFD].contains(&refused), "{refused}");
            settle("it is gone", || interfaces() == ["volt0"]).await;
            assert_eq!(rustix::io::read(&tap, &mut [0; 2048]).err().unwrap(), rustix::io::Errno::BADFD);
            for fault in [
                client.port(&port).await.err().unwrap(),
                client.fd(&port).await.err().unwrap(),
                client.release(&port).await.err().unwrap(),
            ] {
                assert_eq!(fault.code, Code::Revoked);
            }
            // Its name and its place in the quota are free, and the old capability has nothing to do with the new port.
            let new = client.tap(&factory, "vm-web").await.unwrap();
            drop(port);
            client.port(&new).await.unwrap();
            assert_eq!(interfaces(), ["volt0", "tap-web"]);
        });
    });
}

#[test]
fn dropped_port_and_ended_connection_take_the_interface_off_the_host() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 2).await.unwrap();
            let dropped = client.tap(&factory, "vm-a").await.unwrap();
            let _kept = client.tap(&factory, "vm-b").await.unwrap();
            drop(dropped);
            settle("interfaces", || interfaces() == ["volt0", "tap-b"]).await;
            // The factory's end changes nothing.
            drop(factory);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(interfaces(), ["volt0", "tap-b"]);
            drop(client);
            drop(_kept);
            settle("interfaces", || interfaces() == ["volt0"]).await;
        });
    });
}

/// A socket that hears of all that the kernel does to interfaces in this network.
fn listen() -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap();
    net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).unwrap();
    net::bind(&socket, &SocketAddrNetlink::new(0, libc::RTMGRP_LINK as u32)).unwrap();
    socket
}

/// What such a socket has heard, in the kernel's order: kinds of messages, and the messages. (Not what a bridge says of its ports.)
fn heard(socket: &OwnedFd) -> Vec<(u16, Vec<u8>)> {
    let mut heard = Vec::new();
    let mut message = vec![0; 1 << 16];
    while let Ok((length, _)) = net::recv(socket, &mut message[..], RecvFlags::empty()) {
        if i32::from(message[16]) == libc::AF_UNSPEC {
            heard.push((u16::from_ne_bytes([message[4], message[5]]), message[..length].to_vec()));
        }
    }
    heard
}

/// One by one the kernel takes 20 ms for each.
#[test]
fn port_of_another_is_made_before_those_of_who_has_gone_are_taken_away_and_nobody_elses_goes_with_them() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        ip("link add up0 type veth peer up1");
        run(async {
            let (gone, other) = (netmgr.connect().await, netmgr.connect().await);
            let network = other.define_default().await;
            let factory = other.factory(&network, 2).await.unwrap();
            let _kept = other.tap(&factory, "vm-kept").await.unwrap();
            let network = gone.network("volt0").await.unwrap();
            let many = gone.factory(&network, 500).await.unwrap();
            let mut ports = Vec::new();
            for n in 0..500 {
                ports.push(gone.tap(&many, &format!("vm-{n}")).await.unwrap());
            }
            let socket = listen();
            // It learns of both at once, however late it, or this test, is run.
            let pid = rustix::process::Pid::from_child(&netmgr.process);
            rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
            drop((ports, many, network, gone));
            let making = other.tap(&factory, "vm-other");
            let go = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
            };
            let (made, ()) = tokio::join!(making, go);
            let _other = made.unwrap();
            settle("all go", || interfaces().len() == 5).await;
            let mut left = interfaces();
            left.sort();
            assert_eq!(left, ["tap-kept", "tap-other", "up0", "up1", "volt0"]);
            let heard = heard(&socket);
            let names = |message: &[u8]| message.windows(10).any(|name| name == b"tap-other\0");
            let made = heard.iter().position(|(_, message)| names(message)).unwrap();
            let after = heard[made..].iter().filter(|(kind, _)| *kind == libc::RTM_DELLINK).count();
            assert!((250..=500).contains(&after), "{after} of 500 were taken away after it was made");
        });
    });
}

#[test]
fn ports_that_are_released_at_once_are_cut_off_when_each_is_answered_and_their_workloads_may_have_others() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 60).await.unwrap();
            let names: Vec<String> = (0..60).map(|n| format!("vm-{n}")).collect();
            for _ in 0..3 {
                let mut ports = Vec::new();
                for name in &names {
                    ports.push(client.tap(&factory, name).await.unwrap());
                }
                // Half by their release, half by their end: the quota and the names are needed again at once.
                let released: Vec<_> = ports.iter().take(30).map(|port| client.release(port)).collect();
                for released in futures::future::join_all(released).await {
                    released.unwrap();
                }
                let is_up = |name: &String| interface(name).is_some_and(|port| has_flag(&port, "UP"));
                assert_eq!(interfaces().iter().filter(|name| is_up(name)).count(), 31);
                drop(ports);
            }
            settle("all are gone", || interfaces() == ["volt0"]).await;
        });
    });
}

#[test]
fn holder_that_is_killed_leaves_no_interface() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async { netmgr.connect().await.define_default().await });
        // A process of its own holds the port: this test, run once more.
        let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hold_a_port_until_killed", "--nocapture"])
            .env("NETMGR_TEST_HOLD", &netmgr.socket)
            .spawn()
            .unwrap();
        eventually("the port is there", || interface("tap-held").is_some());
        holder.kill().unwrap();
        holder.wait().unwrap();
        eventually("the port is gone", || interfaces() == ["volt0"]);
    });
}

/// The other process of the test above; does nothing on its own.
#[test]
fn hold_a_port_until_killed() {
    let Some(socket) = std::env::var_os("NETMGR_TEST_HOLD") else { return };
    run(async {
        let client = Client::from(ipc::Connection::connect(socket.as_ref()).await.unwrap());
        let network = client.network("volt0").await.unwrap();
        let factory = client.factory(&network, 1).await.unwrap();
        let port = client.tap(&factory, "vm-held").await.unwrap();
        let _tap = client.fd(&port).await.unwrap();
        tokio::time::sleep(DEADLINE).await;
    });
}

#[test]
fn cancelled_creation_leaves_no_interface_and_takes_no_quota() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let factory = client.factory(&client.define_default().await, 1).await.unwrap();
            for pause in 0..30 {
                let mut request = factory.create_tap_request();
                request.get().set_workload("vm-web");
                let sent = request.send();
                tokio::time::sleep(Duration::from_micros(pause * 50)).await;
                drop(sent);
            }
            // What was made for nobody may be on its way out still.
            let end = tokio::time::Instant::now() + DEADLINE;
            let port = loop {
                match client.tap(&factory, "vm-web").await {
                    Ok(port) => break port,
                    Err(fault) => assert!(tokio::time::Instant::now() < end, "{fault}"),
                }
            };
            assert_eq!(interfaces(), ["volt0", "tap-web"]);
            client.release(&port).await.unwrap();
            settle("it is gone", || interfaces() == ["volt0"]).await;
        });
    });
}

#[test]
fn factory_makes_as_many_ports_as_it_was_given_and_no_more() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            for max in [0, MAX_PORTS + 1] {
                assert_eq!(client.factory(&network, max).await.err().unwrap().code, Code::InvalidArgument);
            }
            client.factory(&network, MAX_PORTS).await.unwrap();
            let factory = client.factory(&network, 2).await.unwrap();
            let first = client.tap(&factory, "vm-a").await.unwrap();
            let _second = client.tap(&factory, "vm-b").await.unwrap();
            let fault = client.tap(&factory, "vm-c").await.err().unwrap();
            assert_eq!(fault.code, Code::Exhausted);
            // Another factory has a quota of its own.
            let other = client.factory(&network, 1).await.unwrap();
            let _other = client.tap(&other, "vm-d").await.unwrap();
            client.release(&first).await.unwrap();
            client.tap(&factory, "vm-c").await.unwrap();
        });
    });
}

/// With as much to say of each as there may be: one answer with all of them would be longer than any that is read.
#[test]
fn ports_of_a_full_network_are_listed_in_pages() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define("exactly15bytes_", "10.0.0.1", 8, 0).await.unwrap();
            let count = MAX_LISTED_PORTS + 1;
            let factory = client.factory(&network, count).await.unwrap();
            let name = |n: u32| format!("{n:0>63}");
            let addresses = |n: u32| {
                let (high, low) = (n >> 8, n & 255);
                let four = (1..=16).map(|each| format!("10.{}.{low}.{each}", high + 1));
                let six = (16..32).map(|each| format!("2001:db8:aaaa:bbbb:cccc:dddd:{:x}:ff{each}", n + 0xf000));
                four.chain(six).collect::<Vec<_>>()
            };
            let mut ports = Vec::new();
            for n in 0..count {
                let addresses = addresses(n);
                let given: Vec<&str> = addresses.iter().map(String::as_str).collect();
                ports.push(client.tap_from(&factory, &name(n), &[], &given).await.unwrap());
            }
            let first = client.ports(&network, "").await.unwrap();
            let last = &first[first.len() - 1].workload;
            let second = client.ports(&network, last).await.unwrap();
            assert_eq!((first.len() as u32, second.len()), (MAX_LISTED_PORTS, 1));
            for (n, port) in (0..).zip(first.iter().chain(&second)) {
                assert_eq!((&port.workload, port.addresses.len()), (&name(n), 32));
            }
            assert_eq!(client.ports(&network, &second[0].workload).await.unwrap(), []);
            assert_eq!(client.info(&network).await.unwrap().ports.len() as u32, count);
        });
    });
}

#[test]
fn tenants_quota_holds_over_all_its_networks_and_factories() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            client.define_default().await;
            client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            let tenant = client.tenant("acme", 2).await.unwrap();
            let zero = client.tenant_factory(&tenant, "volt0").await.unwrap();
            let one = client.tenant_factory(&tenant, "volt1").await.unwrap();
            assert_eq!(client.tenant_factory(&tenant, "volt2").await.err().unwrap().code, Code::NotFound);
            let _a = client.tap(&zero, "vm-a").await.unwrap();
            let b = client.tap(&one, "vm-b").await.unwrap();
            for factory in [&zero, &one] {
                assert_eq!(client.tap(factory, "vm-c").await.err().unwrap().code, Code::Exhausted);
            }
            client.release(&b).await.unwrap();
            client.tap(&zero, "vm-c").await.unwrap();
            let none = client.tenant("poor", 0).await.unwrap();
            let factory = client.tenant_factory(&none, "volt0").await.unwrap();
            assert_eq!(client.tap(&factory, "vm-x").await.err().unwrap().code, Code::Exhausted);
        });
    });
}

#[test]
fn tenant_that_is_dropped_loses_its_ports_and_its_name() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let others = client.factory(&network, 1).await.unwrap();
            let _other = client.tap(&others, "vm-other").await.unwrap();
            let tenant = client.tenant("acme", 2).await.unwrap();
            assert_eq!(client.tenant("acme", 2).await.err().unwrap().code, Code::AlreadyExists);
            assert_eq!(client.tenant("Acme!", 2).await.err().unwrap().code, Code::InvalidArgument);
            let factory = client.tenant_factory(&tenant, "volt0").await.unwrap();
            let port = client.tap(&factory, "vm-a").await.unwrap();
            drop(tenant);
            settle("interfaces", || interfaces() == ["volt0", "tap-other"]).await;
            assert_eq!(client.port(&port).await.err().unwrap().code, Code::Revoked);
            assert_eq!(client.tap(&factory, "vm-b").await.err().unwrap().code, Code::Revoked);
            client.tenant("acme", 2).await.unwrap();
        });
    });
}

#[test]
fn workload_has_one_port_on_a_network_and_may_have_one_on_each() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let zero = client.factory(&client.define_default().await, 9).await.unwrap();
            let one = client.define("volt1", "10.43.0.1", 24, 0).await.unwrap();
            let one = client.factory(&one, 9).await.unwrap();
            let first = client.tap(&zero, "vm-web").await.unwrap();
            assert_eq!(client.tap(&zero, "vm-web").await.err().unwrap().code, Code::AlreadyExists);
            let second = client.tap(&one, "vm-web").await.unwrap();
            // Another workload with the same id.
            let third = client.tap(&zero, "web").await.unwrap();
            let mut names = Vec::new();
            for port in [&first, &second, &third] {
                let info = client.port(port).await.unwrap();
                assert_eq!(text(&interface(&info.interface).unwrap(), "master"), info.network);
                names.push(info.interface);
            }
            assert_eq!(names[0], "tap-web");
            assert_ne!(names[1], names[2]);
            assert!(interface("tap-vm-web-volt1").is_some() && interface("tap-web-volt0").is_some());
        });
    });
}

#[test]
fn mac_address_is_taken_once_on_a_network_and_must_be_unicast() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let factory = client.factory(&network, 9).await.unwrap();
            let mac = [2, 0, 0, 0, 0, 1];
            let _port = client.tap_with(&factory, "vm-a", &mac).await.unwrap();
            let host_side = [0xfe, 0, 0, 0, 0, 1];
            let bridge: Vec<u8> = text(&interface("volt0").unwrap(), "address")
                .split(':')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect();
            for taken in [&mac[..], &host_side, &bridge] {
                let fault = client.tap_with(&factory, "vm-b", taken).await.err().unwrap();
                assert_eq!(fault.code, Code::AlreadyExists, "{taken:?}");
            }
            for bad in [&[1, 0, 0x5e, 0, 0, 1][..], &[0; 6], &[2, 0, 0], &[2; 7]] {
                assert_eq!(client.tap_with(&factory, "vm-b", bad).await.err().unwrap().code, Code::InvalidArgument);
            }
            for name in ["", "Web", "a/b", &"x".repeat(64)] {
                assert_eq!(client.tap(&factory, name).await.err().unwrap().code, Code::InvalidArgument, "{name}");
            }
            client.tap_with(&factory, "vm-b", &[2, 0, 0, 0, 0, 2]).await.unwrap();
        });
    });
}

#[test]
fn port_of_an_earlier_netmgr_lives_while_its_tap_is_open_and_blocks_its_workload_alone() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        let (tap, info) = run(async {
            let client = earlier.connect().await;
            let factory = client.factory(&client.define_default().await, 2).await.unwrap();
            let port = client.tap(&factory, "vm-web").await.unwrap();
            let _closed = client.tap(&factory, "vm-closed").await.unwrap();
            let outcome = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
            earlier.kill();
            outcome
        });
        assert_eq!(interfaces(), ["volt0", "tap-web"], "a TAP that nobody has open goes with netmgr");

        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            assert_eq!(client.info(&network).await.unwrap().ports, [info.brief()]);
            let factory = client.factory(&network, 2).await.unwrap();
            let fault = client.tap(&factory, "vm-web").await.err().unwrap();
            assert_eq!(fault.code, Code::AlreadyExists);
            assert!(fault.remedy.contains("tap-web"), "{fault}");
            assert_eq!(client.tap_with(&factory, "vm-b", &info.mac).await.err().unwrap().code, Code::AlreadyExists);
            assert_eq!(client.remove("volt0").await.err().unwrap().code, Code::WrongState);
            client.tap(&factory, "vm-closed").await.unwrap();
            assert_eq!(interface("tap-web").unwrap()["ifindex"], info.index);
            close(tap, info.index).await;
            client.tap(&factory, "vm-web").await.unwrap();
        });
    });
}

/// That its release was answered is not forgotten with who has answered: the guest that has its TAP open still does not come back.
#[test]
fn port_whose_release_was_answered_is_no_port_of_the_next_netmgr_s_which_takes_it_off_the_host() {
    in_own_network(|| {
        let mut earlier = Netmgr::start();
        let taps = run(async {
            let client = earlier.connect().await;
            let factory = client.factory(&client.define_default().await, 9).await.unwrap();
            let mut taps = Vec::new();
            let mut ports = Vec::new();
            for n in 0..9 {
                let port = client.tap(&factory, &format!("vm-{n}")).await.unwrap();
                taps.push(client.fd(&port).await.unwrap());
                ports.push(port);
            }
            // All of them are answered before the first is taken away.
            let released: Vec<_> = ports.iter().take(8).map(|port| client.release(port)).collect();
            for released in futures::future::join_all(released).await {
                released.unwrap();
            }
            earlier.kill();
            taps
        });
        let marked = |name: &String| text(&interface(name).unwrap(), "ifalias") == "volt-vmm gone -";
        let left = interfaces().iter().filter(|name| marked(name)).count();
        println!("{left} of 8 were there still");
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            settle("they are gone", || interfaces() == ["volt0", "tap-8"]).await;
            let network = client.network("volt0").await.unwrap();
            assert_eq!(client.info(&network).await.unwrap().ports.len(), 1);
            let factory = client.factory(&network, 8).await.unwrap();
            for n in 0..8 {
                client.tap(&factory, &format!("vm-{n}")).await.unwrap();
            }
        });
        drop(taps);
    });
}

#[test]
fn bridge_has_as_many_ports_as_the_kernel_lets_it_and_one_more_is_refused_by_name() {
    in_own_network(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_default().await;
            let (factory, more) = (client.factory(&network, MAX_PORTS).await, client.factory(&network, 2).await);
            let (factory, more) = (factory.unwrap(), more.unwrap());
            let mut ports = Vec::new();
            for n in 0..MAX_PORTS {
                ports.push(client.tap(&factory, &format!("vm-{n}")).await.unwrap());
            }
            assert_eq!(client.info(&network).await.unwrap().ports.len() as u32, MAX_PORTS);
            let fault = client.tap(&more, "vm-more").await.err().unwrap();
            assert_eq!(fault.code, Code::Exhausted, "{fault}");
            assert!(fault.why.contains("volt0 has 1023 ports") && fault.remedy.contains("nomaster"), "{fault}");
            assert_eq!(interface("tap-more"), None);
            // A place that was given back is free at once, though the interface may be there still; and one that is not Volt's.
            client.release(&ports[0]).await.unwrap();
            let _one = client.tap(&more, "vm-more").await.unwrap();
            assert_eq!(client.tap(&more, "vm-most").await.err().unwrap().code, Code::Exhausted);
            drop(ports.pop());
            client.tap(&more, "vm-most").await.unwrap();
        });
    });
}
