//! Hosts beside the one that netmgr runs on: each a network namespace of a thread's own, in which real programs' kernel speaks TCP, UDP and ICMP.
//! One is on the host's other side (`lan`), the others are guests, whose card is a TAP whose frames go to and from their port's.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs::File,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with},
};
use schema::network_capnp::{NetworkKind, network, port};
pub use testrig::tcp::{reaches, serve};

use crate::common::*;

/// How long is waited for what must not come, while what must, comes.
const NEVER: Duration = Duration::from_millis(300);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that is in it.
pub struct Place {
    jobs: mpsc::Sender<Job>,
    /// By which ip(8) finds it.
    thread: i32,
}

impl Place {
    pub fn new() -> Place {
        let (jobs, todo) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            testkit::namespace::network().unwrap();
            ip("link set lo up");
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            todo.iter().for_each(|job| job());
        });
        Place { jobs, thread: told.recv().unwrap() }
    }

    /// Does something there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || _ = tell.send(work()))).unwrap();
        told.recv().expect("what was done there panicked")
    }

    pub fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || ip(&arguments))
    }

    /// One on the other side of the host's `up0`, which has `host`; it has `own`, both with their prefix.
    pub fn lan(host: &[&str], own: &[&str]) -> Place {
        let place = Place::new();
        ip(&format!("link add up0 type veth peer name eth0 netns {}", place.thread));
        ip("link set up0 up");
        place.ip("link set eth0 up");
        host.iter().for_each(|address| _ = ip(&format!("addr add {address} dev up0 nodad")));
        own.iter().for_each(|address| _ = place.ip(&format!("addr add {address} dev eth0 nodad")));
        place
    }

    /// Has one of its interfaces be another's.
    pub fn hands(&self, interface: &str, to: &Place) {
        self.ip(&format!("link set {interface} netns {}", to.thread));
    }

    /// Serves TCP on that port, of all addresses, and says to each who it is taken for.
    pub fn serves(&self, port: u16) {
        self.run(move || serve(port));
    }

    /// Whom a service takes it for; `None` if it does not reach it.
    pub fn reaches(&self, to: &str) -> Option<IpAddr> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || reaches(to, NEVER))
    }

    /// The same of one that must be reached, however long it takes.
    pub fn seen_as(&self, to: &str) -> String {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            reaches(to, testkit::wait::PATIENCE).map_or_else(|| format!("{to} is not reached"), |ip| ip.to_string())
        })
    }

    /// [`Place::seen_as`], where it takes a moment until somebody has mended something.
    pub fn seen_as_soon(&self, to: &str) -> String {
        testkit::wait::until("it is reached", || {
            self.reaches(to).map(|ip| ip.to_string()).ok_or_else(|| format!("{to} is not reached"))
        })
    }

    /// Whether it is answered an echo.
    pub fn pings(&self, to: &str) -> bool {
        let to: IpAddr = to.parse().unwrap();
        self.run(move || pings(to))
    }
}

/// RFC 792 and RFC 4443. What comes to such a socket has the IPv4 header in front, and no IPv6 header.
fn pings(to: IpAddr) -> bool {
    let (family, protocol, request, reply, at) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0, 20),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129, 0),
    };
    let socket = UdpSocket::from(socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol)).unwrap());
    // Of the echo's eight bytes, two are the checksum's, which the kernel makes in IPv6 alone; then a number that is this one's.
    let sum = !(u16::from(request) << 8).wrapping_add(77);
    let [high, low] = sum.to_be_bytes();
    socket.connect((to, 0)).unwrap();
    socket.set_read_timeout(Some(NEVER)).unwrap();
    let end = std::time::Instant::now() + NEVER;
    let mut answer = [0; 256];
    if socket.send(&[request, 0, high, low, 0, 77, 0, 0]).is_err() {
        return false;
    }
    while std::time::Instant::now() < end {
        let Ok(length) = socket.recv(&mut answer) else { return false };
        if answer[..length].get(at..at + 6).is_some_and(|echo| echo[0] == reply && echo[4..] == [0, 77]) {
            return true;
        }
    }
    false
}

/// A guest with a port.
pub struct Guest {
    place: Place,
    pub port: port::Client,
    ends: Arc<AtomicBool>,
}

impl std::ops::Deref for Guest {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

impl Guest {
    /// A guest of that network with these addresses, each with its prefix, which sends what is for others to `gateways`.
    pub async fn new(client: &Client, network: &str, workload: &str, addresses: &[&str], gateways: &[&str]) -> Guest {
        let factory = client.factory(&client.network(network).await.unwrap(), 1).await.unwrap();
        let plain: Vec<&str> = addresses.iter().map(|address| address.split('/').next().unwrap()).collect();
        let port = client.tap_from(&factory, workload, &[], &plain).await.unwrap();
        let (tap, info) = (client.fd(&port).await.unwrap(), client.port(&port).await.unwrap());
        forwards(&info.interface).await;
        let place = Place::new();
        let card = place.run(card);
        let mac: Vec<String> = info.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        place.ip(&format!("link set eth0 address {} mtu {}", mac.join(":"), info.mtu));
        place.ip("link set eth0 up");
        addresses.iter().for_each(|address| _ = place.ip(&format!("addr add {address} dev eth0 nodad")));
        for gateway in gateways {
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            place.ip(&format!("{family} route add default via {gateway}"));
        }
        let ends = Arc::new(AtomicBool::new(false));
        let over = ends.clone();
        thread::spawn(move || relay(&tap, &card, &over));
        Guest { place, port, ends }
    }
}

/// A TAP of this namespace, `eth0`, whose frames have the header that a port's have.
fn card() -> OwnedFd {
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
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

/// Has what comes out of one TAP go into the other.
fn relay(one: &OwnedFd, other: &OwnedFd, over: &AtomicBool) {
    let mut frame = vec![0; 70_000];
    while !over.load(Ordering::Relaxed) {
        let mut ends = [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
        let _ = poll(&mut ends, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
        for (from, to) in [(one, other), (other, one)] {
            while let Ok(length) = rustix::io::read(from.as_fd(), &mut frame[..]) {
                let _ = rustix::io::write(to, &frame[..length]);
            }
        }
    }
}

/// What the guests of a network reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bridged,
    Nat,
    HostOnly,
}

/// Defines a network of that kind, with `gateway` as 10.0.0.1 of a subnet of 24 bits.
pub async fn define(client: &Client, name: &str, gateway: &str, kind: Kind) -> Result<network::Client, ipc::Fault> {
    define_both(client, name, gateway, "", kind).await
}

/// The same, with IPv6.
pub async fn define_both(
    client: &Client,
    name: &str,
    gateway: &str,
    ipv6: &str,
    kind: Kind,
) -> Result<network::Client, ipc::Fault> {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name(name);
    config.set_gateway(gateway);
    config.set_prefix_length(if gateway.is_empty() { 0 } else { 24 });
    config.set_kind(if kind == Kind::HostOnly { NetworkKind::HostOnly } else { NetworkKind::Bridged });
    config.set_nat(kind == Kind::Nat);
    config.set_ipv6(ipv6);
    Ok(client.connection.call("define a network", DEADLINE, request.send()).await?.get()?.get_network()?)
}

/// How many packets the rule about that, of that chain, has dropped.
pub fn dropped(chain: &str, about: &str) -> u64 {
    let output = Command::new("nft").args(["-j", "list", "chain", "inet", "volt-vmm", chain]).output().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let rules = said["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("rule"));
    let rules = rules.filter(|rule| rule["comment"] == about);
    let parts = rules.flat_map(|rule| rule["expr"].as_array().unwrap().clone());
    parts.filter_map(|part| part["counter"]["packets"].as_u64()).sum()
}
