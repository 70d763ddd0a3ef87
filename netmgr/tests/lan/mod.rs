//! A host's interface and a neighbour behind it, whose network guests on macvtaps are on: the parent, `up0`, is one end of a pair, whose other end is the
//! neighbour's, in another namespace. Guests are their devices' ends, and what they send is told apart by the last byte of the address that it is about.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use ipc::Fault;
use rustix::io::Errno;
use schema::network_capnp::{MacvtapMode, NetworkKind, network, network_config, port};
use testkit::wait::PATIENCE;

use crate::common::*;

pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A place with a parent, `up0` (10.7.0.1), and a neighbour behind it, `nb0` (10.7.0.2).
pub fn on_a_lan(test: impl FnOnce(Container) + Send + 'static) {
    let macvtap = std::fs::read_to_string("/proc/devices").is_ok_and(|devices| devices.contains(" macvtap\n"));
    if !macvtap {
        return testkit::skip!("the kernel has no macvtap (modprobe macvtap)");
    }
    in_own_network(|| {
        testkit::namespace::mounts().unwrap();
        assert!(Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]).status().unwrap().success());
        let neighbour = Container::new();
        ip("link add up0 address 02:00:00:00:07:01 type veth peer name nb0");
        ip(&format!("link set nb0 netns {}", neighbour.path()));
        ip("addr add 10.7.0.1/24 dev up0");
        ip("link set up0 up");
        neighbour.ip("link set nb0 address 02:00:00:00:07:02 up");
        neighbour.ip("addr add 10.7.0.2/24 dev nb0");
        test(neighbour);
    });
}

pub fn session(netmgr: &Netmgr, work: impl AsyncFnOnce(Client)) {
    run(async { work(netmgr.connect().await).await });
}

pub async fn define(
    client: &Client,
    name: &str,
    mode: MacvtapMode,
    change: impl FnOnce(network_config::Builder<'_>),
) -> Result<network::Client, Fault> {
    let mut request = client.host.define_network_request();
    let mut config = request.get().init_config();
    config.set_name(name);
    config.set_gateway("10.7.0.254");
    config.set_prefix_length(24);
    config.set_kind(NetworkKind::Macvtap);
    config.set_parent("up0");
    config.set_mode(mode);
    change(config);
    let answer = client.connection.call("define a network", DEADLINE, request.send()).await?;
    Ok(answer.get()?.get_network()?)
}

pub async fn lan(client: &Client, mode: MacvtapMode) -> network::Client {
    define(client, "lan", mode, |_| ()).await.unwrap()
}

pub fn mac(station: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, station]
}

/// An ARP request for 10.7.0.`what`, as of station `from`.
pub fn request(from: u8, what: u8) -> Vec<u8> {
    let ends = [&BROADCAST[..], &mac(from), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &mac(from), &[10, 7, 0, from]].concat();
    [&ends[..], &[0, 0, 0, 0, 0, 0, 10, 7, 0, what]].concat()
}

/// The end of a macvtap that is a guest's card.
pub struct Station(pub OwnedFd);

impl Station {
    pub async fn on(client: &Client, network: &network::Client, station: u8) -> Result<(port::Client, Station), Fault> {
        let factory = client.factory(network, 1).await?;
        let (workload, address) = (format!("vm-{station}"), format!("10.7.0.{station}"));
        let port = client.tap_from(&factory, &workload, &mac(station), &[&address]).await?;
        let device = client.fd(&port).await?;
        Ok((port, Station(device)))
    }

    pub fn sends(&self, frame: &[u8]) {
        rustix::io::write(&self.0, &[&[0; 12], frame].concat()).unwrap();
    }

    /// Which addresses were asked for, up to and with `last`; but for announcements, which ask for the sender's own.
    pub fn hears_until(&self, last: u8) -> Vec<u8> {
        let (mut heard, mut frame, end) = (Vec::new(), [0; 2048], Instant::now() + PATIENCE);
        while heard.last() != Some(&last) {
            match rustix::io::read(&self.0, &mut frame[..]) {
                Ok(54..) if frame[24..34] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 1] && frame[40..44] != frame[50..54] => {
                    heard.push(frame[53]);
                }
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    assert!(Instant::now() < end, "{last} has not come, but {heard:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        heard
    }
}

/// What a namespace hears on an interface of such requests.
pub struct Ear(OwnedFd);

impl Ear {
    pub fn at(place: &Container, interface: &str) -> Ear {
        place.within(|| {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let protocol = rustix::net::Protocol::from_raw(std::num::NonZero::new(u32::from(3_u16.to_be())).unwrap());
            let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol)).unwrap();
            // SAFETY: all-zero bytes are a valid sockaddr_ll, which lives through the call.
            let bound = unsafe {
                let mut at: libc::sockaddr_ll = std::mem::zeroed();
                (at.sll_family, at.sll_protocol) = (libc::AF_PACKET as u16, 3_u16.to_be());
                at.sll_ifindex = rustix::net::netdevice::name_to_index(&socket, interface).unwrap() as i32;
                libc::bind(socket.as_raw_fd(), (&raw const at).cast(), size_of::<libc::sockaddr_ll>() as u32)
            };
            assert_eq!(bound, 0);
            Ear(socket)
        })
    }

    /// Which frames came, by the byte at their end, up to and with `last`.
    pub fn hears_until(&self, last: u8) -> Vec<u8> {
        let (mut heard, mut frame, end) = (Vec::new(), [0; 2048], Instant::now() + PATIENCE);
        while heard.last() != Some(&last) {
            match rustix::net::recv(&self.0, &mut frame[..], rustix::net::RecvFlags::empty()) {
                // Of a test's own, which are of 42 bytes, or longer ones that end so.
                Ok((length, _)) => {
                    // A card fills ARP up to the shortest frame there is.
                    let end = if frame[12..14] == [8, 6] && length == 60 { 42 } else { length };
                    if frame[..end].ends_with(&[10, 7, 0, frame[end - 1]]) && frame[28..32] != frame[38..42] {
                        heard.push(frame[end - 1]);
                    }
                }
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    assert!(Instant::now() < end, "{last} has not come, but {heard:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        heard
    }

    /// From which MAC addresses it was answered where 10.7.0.`what` is (ARP), up to and with that one.
    pub fn answers_until(&self, what: u8, last: &str) -> Vec<String> {
        let (mut heard, mut frame, end) = (Vec::new(), [0; 2048], Instant::now() + PATIENCE);
        while heard.last().is_none_or(|heard| heard != last) {
            match rustix::net::recv(&self.0, &mut frame[..], rustix::net::RecvFlags::empty()) {
                Ok(_) if frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == [10, 7, 0, what] => {
                    heard.push(frame[22..28].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"));
                }
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error, Errno::AGAIN);
                    assert!(Instant::now() < end, "{last} has not answered, but {heard:?}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        heard
    }
}
