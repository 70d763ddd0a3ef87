//! A network namespace of the test's own with a TAP in it, and a packet socket on the TAP's host side.
#![allow(dead_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;
use testrig::frontend::*;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-net-backend");
pub const MAC: &str = "02:00:00:00:00:07";
/// IEEE 802 local experimental ethertype 1: nothing on the host speaks it.
pub const EXPERIMENTAL: u16 = 0x88b5;

pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const MTU: u64 = 1 << 3;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const HOST_TSO4: u64 = 1 << 11;
pub const MRG_RXBUF: u64 = 1 << 15;

pub const HEADER: usize = 12;
pub const NEEDS_CSUM: u8 = 1;
pub const GSO_TCPV4: u8 = 1;

/// The wire's host side.
pub struct Wire {
    pub tap: OwnedFd,
    pub index: i32,
    pub socket: OwnedFd,
}

fn check(answer: i32) -> i32 {
    assert!(answer >= 0, "{}", io::Error::last_os_error());
    answer
}

/// Opens a TAP or TUN with these flags.
pub fn open_tap(name: &str, flags: i32) -> OwnedFd {
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) });
    tap.into()
}

pub const TAP: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Gives the calling thread, and what it starts, a network namespace of its own.
pub fn own_namespace() {
    testkit::namespace::network().unwrap();
    // No router solicitations between the frames.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
}

impl Wire {
    /// In a namespace of its own. `offloads`: whether the packet socket speaks virtio_net_hdr.
    pub fn new(offloads: bool) -> Wire {
        own_namespace();
        let tap = open_tap("tap-test", TAP);
        // SAFETY: plain system calls on descriptors that live; ioctls get the ifreq they want.
        let (socket, index) = unsafe {
            let fd = check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0));
            let socket = OwnedFd::from_raw_fd(fd);
            let mut up = request("tap-test");
            up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_NOARP) as i16;
            check(libc::ioctl(fd, libc::SIOCSIFFLAGS as _, &raw mut up));
            let mut index = request("tap-test");
            check(libc::ioctl(fd, libc::SIOCGIFINDEX as _, &raw mut index));
            (socket, index.ifr_ifru.ifru_ifindex)
        };
        let wire = Wire { tap, index, socket };
        if offloads {
            let on: i32 = 1;
            // SAFETY: the option is an int.
            check(unsafe {
                libc::setsockopt(
                    wire.socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_VNET_HDR,
                    (&raw const on).cast(),
                    4,
                )
            });
        }
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = wire.index;
        // SAFETY: the address and its length go together.
        check(unsafe {
            libc::bind(wire.socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        });
        wire
    }

    /// Brings the interface up, or takes it down.
    pub fn set_up(&self, up: bool) {
        let mut flags = request("tap-test");
        let up = if up { libc::IFF_UP } else { 0 };
        flags.ifr_ifru.ifru_flags = (up | libc::IFF_NOARP) as i16;
        // SAFETY: SIOCSIFFLAGS reads one ifreq.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut flags) });
        // That it is down is what the socket says next.
        let _ = rustix::net::sockopt::socket_error(&self.socket);
    }

    pub fn send(&self, frame: &[u8]) {
        rustix::net::send(&self.socket, frame, rustix::net::SendFlags::empty()).unwrap();
    }

    /// The next frame that `wanted` is true for and that came from the guest.
    pub fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let begun = Instant::now();
        let mut bytes = vec![0; 1 << 17];
        while begun.elapsed() < PATIENCE {
            match rustix::net::recv(&self.socket, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT) {
                Ok((len, _)) if wanted(&bytes[..len]) => return bytes[..len].to_vec(),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => std::thread::sleep(std::time::Duration::from_micros(200)),
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the frame arrives");
    }

    /// A backend on this wire, its rings running: receive, transmit.
    pub fn boot(&self, features: u64, size: u16) -> (Machine, Queue, Queue) {
        let mut machine = self.connect(&[]);
        let mut queues = machine.begin(features, 2, size);
        let transmit = queues.remove(1);
        (machine, queues.remove(0), transmit)
    }

    pub fn connect(&self, more: &[&str]) -> Machine {
        let (ours, theirs) = pair();
        let mut args = vec!["--fd={}", "--tap-fd={}", "--mac", MAC];
        args.extend(more);
        let tap = self.tap.try_clone().unwrap();
        Machine::connect(start(PROGRAM, &args, vec![theirs, tap]), ours, 2)
    }
}

/// An Ethernet frame of the experimental type with `len` bytes in all.
pub fn frame(len: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(EXPERIMENTAL.to_be_bytes());
    let body = len - frame.len();
    frame.extend((0..body).map(|n| fill.wrapping_add(n as u8).wrapping_add((n >> 8) as u8)));
    frame
}

/// Whether a frame that follows a virtio_net_hdr of `skip` bytes has the experimental type.
pub fn is_ours(frame: &[u8], skip: usize) -> bool {
    frame.get(skip + 12..skip + 14) == Some(&EXPERIMENTAL.to_be_bytes()[..])
}

/// A TCP segment of `payload` bytes over IPv4, its TCP checksum left to be done, and the header that says so.
pub fn tcp(payload: usize, gso_size: u16) -> (Vec<u8>, Vec<u8>) {
    let mut frame = vec![2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 9, 8, 0];
    let total = (40 + payload) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(&ip);
    // The checksum field holds the folded sum of the pseudo-header.
    let mut pseudo = vec![192, 0, 2, 1, 192, 0, 2, 2, 0, 6];
    pseudo.extend(((20 + payload) as u16).to_be_bytes());
    let partial = !checksum(&pseudo, 0);
    let mut tcp = vec![0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff];
    tcp.extend(partial.to_be_bytes());
    tcp.extend([0, 0]);
    frame.extend(&tcp);
    frame.extend((0..payload).map(|n| (n * 7) as u8 ^ (n >> 8) as u8));
    let mut header = vec![NEEDS_CSUM, if gso_size > 0 { GSO_TCPV4 } else { 0 }];
    header.extend(54u16.to_le_bytes()); // hdr_len
    header.extend(gso_size.to_le_bytes());
    header.extend(34u16.to_le_bytes()); // csum_start
    header.extend(16u16.to_le_bytes()); // csum_offset
    (header, frame)
}

/// The Internet checksum.
pub fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
