//! Datagrams that arrive whole or not at all: sockets, each in the network namespace of the thread that makes it, and what they say to one another.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use testkit::wait::PATIENCE;

/// One whose datagrams may not be taken apart.
///
/// # Panics
/// Where this namespace has no such address.
pub fn socket(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(address, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (level, option, whole) = match address {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    // SAFETY: the option is one int, which outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const whole).cast(), 4) };
    assert_eq!(set, 0);
    socket
}

/// Sends that many bytes there and back.
///
/// # Panics
/// Where they do not come as they were sent.
pub fn talk(one: &UdpSocket, other: &UdpSocket, length: usize) {
    let (sent, mut heard) = (vec![0x5a; length], vec![0; 1 << 16]);
    for (from, to) in [(one, other), (other, one)] {
        assert_eq!(from.send_to(&sent, to.local_addr().unwrap()).unwrap(), length);
        let (length, who) = to.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..length], who), (&sent[..], from.local_addr().unwrap()));
    }
}
