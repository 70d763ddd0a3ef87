//! Guests with a kernel of their own behind their ports: what they make of what their port may send from. Runs the program as root, each test in
//! a network namespace of its own, and each guest in one more, whose card is joined with the port's TAP as a VM's backend would.

mod common;
mod router;

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use common::*;
use router::advertise;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use schema::network_capnp::{port, port_factory};
use testkit::skip;
use testrig::udp::{socket, talk};

const OWN: &str = "fd00:42::1/64";

/// Runs a test, where the kernel has IPv6.
fn with_ipv6(test: impl FnOnce() + Send + 'static) {
    if !fs::exists("/proc/sys/net/ipv6").unwrap() {
        return skip!("the kernel has no IPv6");
    }
    in_own_network(test);
}

type Job = Box<dyn FnOnce() + Send>;

/// A guest: a network namespace with one card, `eth0`.
struct Guest {
    port: port::Client,
    info: Port,
    jobs: Option<mpsc::Sender<Job>>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Guest {
    /// One whose card is up and has no address yet but, where there is IPv6, its link-local one.
    async fn of(client: &Client, factory: &port_factory::Client, workload: &str, last: u8, given: &[&str]) -> Guest {
        let port = client.tap_from(factory, workload, &[2, 0, 0, 0, 0, last], given).await.unwrap();
        let (info, tap) = (client.port(&port).await.unwrap(), client.fd(&port).await.unwrap());
        let (jobs, todo) = mpsc::channel::<Job>();
        let (made, card) = mpsc::channel();
        let (mac, mtu) = (format!("02:00:00:00:00:{last:02x}"), info.mtu);
        let inside = thread::spawn(move || {
            testkit::namespace::network().unwrap();
            made.send(new_card()).unwrap();
            ip("link set lo up");
            ip(&format!("link set eth0 address {mac} mtu {mtu} up"));
            todo.into_iter().for_each(|job| job());
        });
        let (card, ends) = (card.recv().unwrap(), Arc::new(AtomicBool::new(false)));
        let until = ends.clone();
        let joins = thread::spawn(move || join(&tap, &card, &until));
        let guest = Guest { port, info, jobs: Some(jobs), ends, threads: vec![inside, joins] };
        guest.does(|| ());
        guest
    }

    /// Does something in the guest.
    fn does<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        let job = Box::new(move || done.send(what()).unwrap());
        self.jobs.as_ref().unwrap().send(job).unwrap();
        answer.recv().unwrap()
    }

    /// Gives its card all addresses that the port may send from, as somebody does by hand.
    fn has_its_addresses(self) -> Guest {
        let addresses = self.info.addresses.clone();
        self.does(move || {
            for address in addresses {
                let more = if address.contains(':') { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
                ip(&format!("addr add {address}{more}"));
            }
        });
        self
    }

    /// A socket of its own, on one of its addresses.
    fn socket(&self, address: &str) -> UdpSocket {
        let address: IpAddr = address.parse().unwrap();
        self.does(move || socket(address))
    }

    /// What its kernel knows of who has an address.
    fn neighbour(&self, address: &str) -> String {
        let address = address.to_owned();
        self.does(move || ip(&format!("neigh show {address} dev eth0")))
    }

    /// Takes its card away.
    async fn goes(mut self, client: &Client) {
        self.ends.store(true, Ordering::Relaxed);
        drop(self.jobs.take());
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        client.release(&self.port).await.unwrap();
    }
}

/// A TAP `eth0` in this thread's network namespace.
fn new_card() -> OwnedFd {
    let tap = fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    rustix::io::ioctl_fionbio(&tap, true).unwrap();
    // SAFETY: all-zero bytes are a valid ifreq; both requests read what outlives the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"eth0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request), 0);
        let header = 12_i32;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header), 0);
    }
    tap.into()
}

/// Hands each frame of one TAP to the other, until told to end.
fn join(one: &OwnedFd, other: &OwnedFd, ends: &AtomicBool) {
    let mut frame = vec![0; 1 << 17];
    while !ends.load(Ordering::Relaxed) {
        let mut both = [one, other].map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN));
        let _ = poll(&mut both, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
        for (from, to) in [(one, other), (other, one)] {
            while let Ok(length) = rustix::io::read(from, &mut frame[..]) {
                // One that is down takes none.
                let _ = rustix::io::write(to, &frame[..length]);
            }
        }
    }
}

#[test]
fn guests_and_host_reach_one_another_by_ipv6_beside_ipv4_with_8900_bytes_whole_both_ways() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 9000, OWN).await.unwrap();
            let factory = client.factory(&network, 2).await.unwrap();
            let a = Guest::of(&client, &factory, "vm-a", 0xa, &["10.42.0.10", "::"]).await.has_its_addresses();
            let b = Guest::of(&client, &factory, "vm-b", 0xb, &["10.42.0.11", "::"]).await.has_its_addresses();
            forwards(&a.info.interface).await;
            forwards(&b.info.interface).await;
            assert_eq!(b.info.addresses[1], "fd00:42::ff:fe00:b");
            for (n, gateway, headers) in [(0, "10.42.0.1", 28), (1, "fd00:42::1", 48)] {
                let [in_a, in_b] = [&a, &b].map(|guest| guest.socket(&guest.info.addresses[n]));
                let host = socket(gateway.parse().unwrap());
                for length in [1, 8900, 9000 - headers] {
                    talk(&in_a, &in_b, length);
                    talk(&in_a, &host, length);
                    talk(&host, &in_b, length);
                }
                // What is longer is nothing that a frame of this network holds, and each kernel knows.
                for from in [&in_a, &host] {
                    let error = from.send_to(&vec![0; 9001 - headers], in_b.local_addr().unwrap()).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
                }
            }
            a.goes(&client).await;
            b.goes(&client).await;
        });
    });
}

#[test]
fn address_that_a_guest_s_own_kernel_makes_when_it_hears_of_the_subnet_is_the_one_its_port_has() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap();
            let factory = client.factory(&network, 1).await.unwrap();
            let guest = Guest::of(&client, &factory, "vm-web", 0xa, &["::"]).await;
            forwards(&guest.info.interface).await;
            let own = format!("{}/64", guest.info.addresses[0]);
            let has_it = || {
                assert!(advertise("volt0", "fd00:42::"));
                thread::sleep(Duration::from_millis(100));
                let card = guest.does(|| interface("eth0").unwrap());
                let infos = card["addr_info"].as_array().unwrap().clone();
                let is_own =
                    |info: &&serde_json::Value| format!("{}/{}", text(info, "local"), info["prefixlen"]) == own;
                infos.iter().find(is_own).is_some_and(|info| info.get("tentative").is_none())
            };
            eventually("the guest has its address", has_it);
            let (inside, host) = (guest.socket(&guest.info.addresses[0]), socket("fd00:42::1".parse().unwrap()));
            talk(&inside, &host, 1000);
            // By way of the router that it has heard of.
            let routes = guest.does(|| ip("-6 route show default"));
            assert!(routes.contains("via fe80::21:8dff:fe02:efbc dev eth0 proto ra"), "{routes}");
            guest.goes(&client).await;
        });
    });
}

/// On the host's bridge, and on another guest's card, which both would take it from a router.
#[test]
fn router_advertisement_of_a_guest_changes_no_route_of_the_host_s_or_another_guest_s() {
    with_ipv6(|| {
        // What some hosts have for all interfaces that come.
        fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "2").unwrap();
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap();
            let factory = client.factory(&network, 2).await.unwrap();
            let a = Guest::of(&client, &factory, "vm-a", 0xa, &["10.42.0.10", "::"]).await.has_its_addresses();
            let b = Guest::of(&client, &factory, "vm-b", 0xb, &["10.42.0.11", "::"]).await.has_its_addresses();
            forwards(&a.info.interface).await;
            forwards(&b.info.interface).await;
            let routes = || [ip("-6 route show table all"), b.does(|| ip("-6 route show table all"))];
            // The kernels' own addresses of the link come by themselves, a moment after it is up.
            eventually("they have those", || routes().iter().all(|routes| routes.contains("local fe80::")));
            let before = routes();
            for _ in 0..3 {
                eventually("it is a router's", || a.does(|| advertise("eth0", "fd00:66::")));
                // What comes behind it has come.
                let [in_a, in_b] = [&a, &b].map(|guest| guest.socket(&guest.info.addresses[1]));
                talk(&in_a, &in_b, 100);
                talk(&in_a, &socket("fd00:42::1".parse().unwrap()), 100);
            }
            assert_eq!(routes(), before);
            // The same from the host is heard.
            let is_heard = || {
                assert!(advertise("volt0", "fd00:66::"));
                b.does(|| ip("-6 route show")).contains("fd00:66::/64 dev eth0 proto kernel")
            };
            eventually("the host is a router", is_heard);
            a.goes(&client).await;
            b.goes(&client).await;
        });
    });
}

/// Each kernel has a link-local address by itself as soon as its card is up, and so would be in reach of the host, and of whoever is on the bridge.
#[test]
fn guest_without_ipv6_reaches_no_link_local_address_of_the_host_s_another_guest_s_or_beyond() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap();
            let factory = client.factory(&network, 3).await.unwrap();
            let four = Guest::of(&client, &factory, "vm-four", 0xa, &["10.42.0.10"]).await.has_its_addresses();
            let six = Guest::of(&client, &factory, "vm-six", 0xb, &["fd00:42::b"]).await.has_its_addresses();
            let third = Guest::of(&client, &factory, "vm-third", 0xc, &["fd00:42::c"]).await.has_its_addresses();
            // A host beyond an interface that somebody has put on the bridge.
            let beyond = Container::new();
            ip(&format!("link add up0 master volt0 type veth peer name eth0 netns {}", beyond.path()));
            ip("link set up0 up");
            beyond.ip("link set eth0 address 02:00:00:00:00:0d up");
            for interface in ["up0", &four.info.interface, &six.info.interface, &third.info.interface] {
                forwards(interface).await;
            }
            let listens = || {
                let socket = UdpSocket::bind("[::]:7000").unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            };
            let ears = [
                ("fe80::21:8dff:fe02:efbc", text(&interface("volt0").unwrap(), "address"), listens()),
                ("fe80::ff:fe00:c", "02:00:00:00:00:0c".into(), third.does(listens)),
                ("fe80::ff:fe00:d", "02:00:00:00:00:0d".into(), beyond.within(listens)),
            ];
            for (to, mac, ear) in &ears {
                let sends = |guest: &Guest, what: &'static [u8]| {
                    // Whose address this is, it asks in vain, if it may not; so it is told.
                    let (to, mac): (Ipv6Addr, _) = (to.parse().unwrap(), mac.clone());
                    guest.does(move || {
                        ip(&format!("neigh replace {to} lladdr {mac} dev eth0 nud permanent"));
                        let index = interface("eth0").unwrap()["ifindex"].as_u64().unwrap() as u32;
                        let socket = UdpSocket::bind("[::]:0").unwrap();
                        let to = std::net::SocketAddrV6::new(to, 7000, 0, index);
                        // Once it has an address of its own there to use.
                        eventually("it may send", || socket.send_to(what, to).is_ok());
                    });
                };
                let hears = || {
                    let mut buffer = [0; 16];
                    let length = ear.recv(&mut buffer).ok()?;
                    Some(buffer[..length].to_vec())
                };
                // As soon as that address is its own.
                let is_heard = || {
                    sends(&six, b"six");
                    hears().is_some()
                };
                eventually(to, is_heard);
                sends(&four, b"four");
                sends(&six, b"last");
                let mut heard = Vec::new();
                eventually("what was sent last has come", || {
                    heard.extend(hears());
                    heard.last().is_some_and(|last| last == b"last")
                });
                assert!(heard.iter().all(|one| one != b"four"), "{to}");
            }
            for guest in [four, six, third] {
                guest.goes(&client).await;
            }
        });
    });
}

/// Nobody asks: what is told of is who has them now.
#[test]
fn guest_and_host_know_at_once_who_has_addresses_that_come_back_with_another_mac_address() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap();
            let factory = client.factory(&network, 2).await.unwrap();
            let a = Guest::of(&client, &factory, "vm-a", 0xa, &["10.42.0.10", "fd00:42::a"]).await.has_its_addresses();
            forwards(&a.info.interface).await;
            let given = ["10.42.0.11", "fd00:42::b"];
            let mut is_first = true;
            let meets = |b: &Guest| {
                for (address, gateway) in given.iter().zip(["10.42.0.1", "fd00:42::1"]) {
                    let (host, in_b) = (socket(gateway.parse().unwrap()), b.socket(address));
                    talk(&a.socket(if address.contains(':') { "fd00:42::a" } else { "10.42.0.10" }), &in_b, 100);
                    talk(&host, &in_b, 100);
                }
            };
            for (workload, last) in
                [("vm-b", 0xb), ("vm-b", 0xb), ("vm-c", 0xc), ("vm-d", 0xd), ("vm-b", 0xb), ("vm-b", 0xb)]
            {
                let b = Guest::of(&client, &factory, workload, last, &given).await.has_its_addresses();
                // A datagram that comes to it before is lost.
                forwards(&b.info.interface).await;
                let mac = format!(" lladdr 02:00:00:00:00:{last:02x} ");
                // The first one is nobody's news: a kernel notes only what it had to do with. That it is there again, nobody is told.
                let told = || given.iter().all(|address| a.neighbour(address).contains(&mac));
                if !is_first {
                    eventually("the other guest knows it", told);
                }
                is_first = false;
                meets(&b);
                assert!(told());
                b.goes(&client).await;
            }
            a.goes(&client).await;
        });
    });
}

/// Its kernel has a link-local address by itself, and any other that is given to it.
#[test]
fn guest_is_not_heard_by_a_family_that_its_port_has_no_address_of_whatever_its_kernel_has() {
    with_ipv6(|| {
        let netmgr = Netmgr::start();
        run(async {
            let client = netmgr.connect().await;
            let network = client.define_both("volt0", "10.42.0.1", 24, 0, OWN).await.unwrap();
            let factory = client.factory(&network, 2).await.unwrap();
            let four = Guest::of(&client, &factory, "vm-four", 0xa, &["10.42.0.10"]).await.has_its_addresses();
            let six = Guest::of(&client, &factory, "vm-six", 0xb, &["fd00:42::b"]).await.has_its_addresses();
            for guest in [&four, &six] {
                forwards(&guest.info.interface).await;
            }
            four.does(|| _ = ip("addr add fd00:42::a/64 dev eth0 nodad"));
            six.does(|| _ = ip("addr add 10.42.0.11/24 dev eth0"));
            let [host_four, host_six] = ["10.42.0.1", "fd00:42::1"].map(|own| socket(own.parse().unwrap()));
            for (guest, wrong, unheard, right, heard) in [
                (&four, "fd00:42::a", &host_six, "10.42.0.10", &host_four),
                (&six, "10.42.0.11", &host_four, "fd00:42::b", &host_six),
            ] {
                // Whose address this is, the guest asks in vain; so it is told, which leaves the frames themselves.
                let (to, mac) = (unheard.local_addr().unwrap(), text(&interface("volt0").unwrap(), "address"));
                guest.does(move || _ = ip(&format!("neigh replace {} lladdr {mac} dev eth0 nud permanent", to.ip())));
                guest.socket(wrong).send_to(b"unheard", to).unwrap();
                // What comes behind it has come.
                talk(&guest.socket(right), heard, 100);
                unheard.set_nonblocking(true).unwrap();
                let error = unheard.recv_from(&mut [0; 16]).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                unheard.set_nonblocking(false).unwrap();
            }
            four.goes(&client).await;
            six.goes(&client).await;
        });
    });
}
