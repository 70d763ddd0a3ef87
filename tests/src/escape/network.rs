//! Attempts on the network, and on sockets of any kind.

use libc::{AF_ALG, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, AF_VSOCK, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM};
use schema::net::DEFAULT_NETWORK;

use super::{
    attempts::{Act, Attempt, Class, call},
    foothold::{Hand, Held},
};

const fn net(name: &'static str, act: Act) -> Attempt {
    Attempt::new(Class::Network, name, act)
}

fn family(family: i32) -> [u8; 2] {
    // Fits: the families are small numbers.
    (family as u16).to_ne_bytes()
}

fn inet(port: u16) -> Vec<u8> {
    [&family(AF_INET)[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

fn inet6(port: u16) -> Vec<u8> {
    let mut address = [0; 16];
    address[15] = 1;
    [&family(AF_INET6)[..], &port.to_be_bytes(), &[0; 4], &address, &[0; 4]].concat()
}

fn unix(path: &str) -> Vec<u8> {
    [&family(AF_UNIX)[..], path.as_bytes(), &[0]].concat()
}

fn hidden(name: &str) -> Vec<u8> {
    [&family(AF_UNIX)[..], &[0], name.as_bytes()].concat()
}

fn vsock(cid: u32, port: u32) -> Vec<u8> {
    [&family(AF_VSOCK)[..], &[0; 2], &port.to_ne_bytes(), &cid.to_ne_bytes(), &[0; 4]].concat()
}

fn socket(hand: &mut Hand, family: i32, kind: i32, protocol: i32) -> Result<u64, Held> {
    call!(hand, SYS_socket, family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol)
}

fn connect(hand: &mut Hand, domain: i32, kind: i32, address: &[u8]) -> Result<u64, Held> {
    let (fd, at) = (socket(hand, domain, kind, 0)?, hand.put(address)?);
    call!(hand, SYS_connect, fd, at, address.len(); or [libc::EINPROGRESS, libc::EAGAIN])
}

fn bind(hand: &mut Hand, domain: i32, kind: i32, address: &[u8]) -> Result<u64, Held> {
    let (fd, at) = (socket(hand, domain, kind, 0)?, hand.put(address)?);
    call!(hand, SYS_bind, fd, at, address.len(); or [libc::EADDRINUSE])
}

pub(super) const ALL: &[Attempt] = &[
    net("connect by TCP", |h, s| connect(h, AF_INET, SOCK_STREAM, &inet(s.world.tcp))),
    net("connect by TCP over IPv6", |h, s| connect(h, AF_INET6, SOCK_STREAM, &inet6(s.world.tcp))),
    net("connect by MPTCP", |h, s| {
        let (fd, address) = (socket(h, AF_INET, SOCK_STREAM, 262)?, h.put(&inet(s.world.tcp))?);
        call!(h, SYS_connect, fd, address, 16; or [libc::EINPROGRESS])
    }),
    net("listen on TCP", |h, _| bind(h, AF_INET, SOCK_STREAM, &inet(4242))),
    net("send by UDP", |h, s| {
        let (fd, to) = (socket(h, AF_INET, SOCK_DGRAM, 0)?, h.put(&inet(s.world.udp))?);
        call!(h, SYS_sendto, fd, to, 1, 0, to, 16)
    }),
    net("listen on UDP", |h, _| bind(h, AF_INET, SOCK_DGRAM, &inet(4243))),
    net("make a raw socket", |h, _| socket(h, AF_INET, SOCK_RAW, libc::IPPROTO_ICMP)),
    net("make a ping socket", |h, _| socket(h, AF_INET, SOCK_DGRAM, libc::IPPROTO_ICMP)),
    net("make a packet socket", |h, _| socket(h, AF_PACKET, SOCK_RAW, 0x300)),
    net("make a socket of kernel cryptography", |h, _| socket(h, AF_ALG, libc::SOCK_SEQPACKET, 0)),
    net("ask rtnetlink for the interfaces", |h, _| {
        let fd = socket(h, AF_NETLINK, SOCK_RAW, libc::NETLINK_ROUTE)?;
        // RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP
        let message = [&32_u32.to_ne_bytes()[..], &18_u16.to_ne_bytes(), &0x301_u16.to_ne_bytes(), &[0; 24]].concat();
        let message = h.put(&message)?;
        call!(h, SYS_sendto, fd, message, 32, 0, 0, 0)?;
        let room = h.room(16 << 10)?;
        let size = call!(h, SYS_recvfrom, fd, room, 16 << 10, 0, 0, 0)?;
        // A network namespace of its own has nothing but a loopback interface that is down: one message.
        let bytes = h.get(room, usize::try_from(size).unwrap_or(0))?;
        let network = DEFAULT_NETWORK.as_bytes();
        let seen = bytes.windows(network.len()).any(|name| name == network);
        if seen { Ok(size) } else { Err(Held::Refused(libc::ENODEV)) }
    }),
    net("remove an interface by rtnetlink", |h, _| {
        let fd = socket(h, AF_NETLINK, SOCK_RAW, libc::NETLINK_ROUTE)?;
        // RTM_DELLINK of an index that nobody has, NLM_F_REQUEST | NLM_F_ACK: EPERM comes before ENODEV.
        let head = [&32_u32.to_ne_bytes()[..], &17_u16.to_ne_bytes(), &5_u16.to_ne_bytes(), &[0; 8]].concat();
        let message = [&head[..], &[0; 4], &0x00ff_ffff_u32.to_ne_bytes(), &[0; 8]].concat();
        let message = h.put(&message)?;
        call!(h, SYS_sendto, fd, message, 32, 0, 0, 0)?;
        let room = h.room(256)?;
        call!(h, SYS_recvfrom, fd, room, 256, 0, 0, 0)?;
        let answer = h.get(room + 16, 4)?;
        let errno = answer.try_into().map_or(0, i32::from_ne_bytes);
        if errno == -libc::EPERM { Err(Held::Refused(libc::EPERM)) } else { Ok(0) }
    }),
    net("make a generic netlink socket", |h, _| socket(h, AF_NETLINK, SOCK_RAW, libc::NETLINK_GENERIC)),
    net("make a netfilter netlink socket", |h, _| socket(h, AF_NETLINK, SOCK_RAW, libc::NETLINK_NETFILTER)),
    net("make an audit netlink socket", |h, _| socket(h, AF_NETLINK, SOCK_RAW, libc::NETLINK_AUDIT)),
    net("connect by vsock", |h, _| connect(h, AF_VSOCK, SOCK_STREAM, &vsock(2, 1))),
    net("listen on vsock", |h, _| bind(h, AF_VSOCK, SOCK_STREAM, &vsock(u32::MAX, 4244))),
    net("connect to a Unix socket that is open to all", |h, s| {
        connect(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.listener))
    }),
    net("connect to netmgr", |h, s| connect(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.netmgr))),
    net("connect to ipamd", |h, s| connect(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.ipamd))),
    net("connect to kernel-store", |h, s| connect(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.kernel_store))),
    net("connect to the neighbour's control socket", |h, s| connect(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.vm))),
    net("connect to an abstract socket", |h, s| connect(h, AF_UNIX, SOCK_STREAM, &hidden(&s.world.hidden))),
    net("listen on a Unix socket", |h, s| bind(h, AF_UNIX, SOCK_STREAM, &unix(&s.world.new))),
    net("listen on an abstract socket", |h, _| bind(h, AF_UNIX, SOCK_STREAM, &hidden("volt-escape-own"))),
    net("turn a socket that it has to netmgr", |h, s| {
        let address = unix(&s.world.netmgr);
        let (fd, at) = (s.fd("socket:")?, h.put(&address)?);
        call!(h, SYS_connect, fd, at, address.len())
    }),
    net("listen on a socket that it has", |h, s| {
        let fd = s.fd("socket:")?;
        call!(h, SYS_listen, fd, 1)
    }),
    net("configure an interface through a socket that it has", |h, s| {
        let (fd, request) = (s.fd("socket:")?, h.put(&[b"lo".as_slice(), &[0; 38]].concat())?);
        call!(h, SYS_ioctl, fd, libc::SIOCSIFFLAGS, request)
    }),
    net("enter the host's network", |h, s| {
        let path = h.text(&s.world.network)?;
        let fd = call!(h, SYS_openat, libc::AT_FDCWD, path, libc::O_RDONLY)?;
        call!(h, SYS_setns, fd, libc::CLONE_NEWNET)
    }),
    net("leave for a network of its own", |h, _| call!(h, SYS_unshare, libc::CLONE_NEWNET)),
];
