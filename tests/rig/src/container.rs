//! Containers as far as a network sees them: namespaces, which their engine has made, and threads in these.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, netlink::SocketAddrNetlink},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use testkit::wait::PATIENCE;

/// A network namespace without a process.
pub struct Container(pub OwnedFd);

impl Container {
    /// One of its own.
    ///
    /// # Panics
    /// Where none can be had: it takes root.
    #[allow(clippy::new_without_default, reason = "each is another one")]
    pub fn new() -> Container {
        let made = std::thread::spawn(|| {
            testkit::namespace::network().unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Container(made.join().unwrap())
    }

    /// Its path, while it is there.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Does something on a thread within.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let within = scope.spawn(|| {
                move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            within.join().unwrap()
        })
    }

    /// What its engine hands over beside it.
    pub fn socket(&self) -> OwnedFd {
        self.within(route_socket)
    }

    /// Runs `ip` within, which must succeed; gives its output.
    pub fn ip(&self, arguments: &str) -> String {
        self.within(|| ip(arguments))
    }

    /// Has the kernel within ask whether somebody is there (ICMP echo), until that one answers.
    pub fn pings(&self, address: impl Into<IpAddr>) {
        let address = address.into();
        let heard = self.within(|| ping(address, PATIENCE));
        assert!(heard, "{address:?} does not answer");
    }
}

/// A socket to rtnetlink, in the namespace of this thread.
///
/// # Panics
/// Where the kernel gives none.
pub fn route_socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).unwrap()
}

/// RFC 792 and RFC 4443.
fn ping(address: IpAddr, patience: Duration) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = net::socket_with(family, SocketType::RAW, flags, Some(protocol)).unwrap();
    let to = std::net::SocketAddr::from((address, 0));
    // Echo, identifier 7, and the checksum of that, which the kernel makes in IPv6; what an answer begins with, and where. In IPv4 it has its header in
    // front.
    let (echo, answers, at) = match address {
        IpAddr::V4(_) => ([8, 0, 0xf7, 0xf8, 0, 7, 0, 0], 0, 20),
        IpAddr::V6(_) => ([128, 0, 0, 0, 0, 7, 0, 0], 129, 0),
    };
    let end = Instant::now() + patience;
    while Instant::now() < end {
        // Not reachable until the bridge forwards.
        let _ = net::sendto(&socket, &echo, SendFlags::empty(), &to);
        for _ in 0..20 {
            let mut answer = [0; 128];
            match net::recvfrom(&socket, &mut answer[..], RecvFlags::empty()) {
                Ok((length, _, Some(from)))
                    if length >= at + 8
                        && std::net::SocketAddr::try_from(from.clone()).is_ok_and(|from| from.ip() == address)
                        && answer[at] == answers =>
                {
                    return true;
                }
                Ok(_) | Err(Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("{error}"),
            }
        }
    }
    false
}

/// A netlink socket's own address is not its peer's.
pub fn connect(socket: BorrowedFd<'_>, to: u32) {
    net::connect(socket, &SocketAddrNetlink::new(to, 0)).unwrap();
}

/// Sends a frame out of an interface, as whoever is root in a container can.
///
/// # Panics
/// Where that is not there, or down.
pub fn send_frame(interface: &str, frame: &[u8]) {
    assert!(try_send_frame(interface, frame));
}

/// The same, if it can.
///
/// # Panics
/// Where no socket can be had.
pub fn try_send_frame(interface: &str, frame: &[u8]) -> bool {
    let socket = net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
    // SAFETY: all-zero bytes are a valid sockaddr_ll, which lives through the call, as does the frame.
    let sent = unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        let Ok(index) = rustix::net::netdevice::name_to_index(&socket, interface) else { return false };
        to.sll_ifindex = index as i32;
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    sent == frame.len() as isize
}

/// A guest's kernel behind a TAP of ours: another TAP, in a namespace of its own, and a thread that carries frames between the two until it goes.
pub struct Guest {
    /// Where its kernel is.
    pub inside: Container,
    ends: Option<OwnedFd>,
    carries: Option<std::thread::JoinHandle<()>>,
}

impl Guest {
    /// One with that MAC address and that address of a /24.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub fn behind(tap: OwnedFd, mac: &str, address: &str) -> Guest {
        let inside = Container::new();
        let card = inside.within(|| self::tap("eth0"));
        inside.ip(&format!("link set eth0 address {mac} up"));
        inside.ip(&format!("addr add {address}/24 dev eth0"));
        let (ends, end) = rustix::pipe::pipe().unwrap();
        let carries = std::thread::spawn(move || {
            use rustix::event::{PollFd, PollFlags, poll};
            let mut frame = vec![0; 1 << 16];
            loop {
                let mut polled = [
                    PollFd::new(&tap, PollFlags::IN),
                    PollFd::new(&card, PollFlags::IN),
                    PollFd::new(&ends, PollFlags::IN),
                ];
                poll(&mut polled, None).unwrap();
                if !polled[2].revents().is_empty() {
                    return;
                }
                for (from, to) in [(&tap, &card), (&card, &tap)] {
                    if let Ok(length) = rustix::io::read(from, &mut frame[..]) {
                        let _ = rustix::io::write(to, &frame[..length]);
                    }
                }
            }
        });
        Guest { inside, ends: Some(end), carries: Some(carries) }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.ends = None;
        self.carries.take().unwrap().join().unwrap();
    }
}

/// Runs `ip`, which must succeed; gives its output.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A TAP that somebody else makes, with the header that ours have.
pub fn tap(name: &str) -> OwnedFd {
    let tap = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    rustix::io::ioctl_fionbio(&tap, true).unwrap();
    // SAFETY: all-zero bytes are a valid ifreq; both requests read what outlives the call.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request), 0);
        let header = 12_i32;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header), 0);
    }
    tap.into()
}
