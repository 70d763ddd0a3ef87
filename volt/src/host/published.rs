//! Ports of the host that lead to a guest: how people write them, the sockets by which they are held, and what is asked of `netmgr`. Binds sockets,
//! and never reads of one.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    str::FromStr,
};

use capnp::struct_list;
use ipc::{Code, Connection, Fault, Token, retry};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt},
};
use schema::{
    fd_lane_capnp::fd_token,
    network_capnp::{
        MAX_PUBLISHED, MAX_SOCKETS, network, port,
        published::{self, Protocol},
    },
};

use crate::{
    error::{ArgumentError, Error},
    host::links::{CALL_DEADLINE, text},
};

/// A token may be lost with a call that has to be made again, and no more wait at one time than a call takes.
const AT_ONCE: usize = MAX_SOCKETS as usize / 2;

/// Ports of the host, one behind the other, under one address or all, and which of the guest's the first of them leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    protocol: Protocol,
    /// `None` for all of the host's.
    address: Option<IpAddr>,
    first: u16,
    last: u16,
    guest: u16,
}

/// A port of the host.
type HostPort = (Protocol, SocketAddr);

/// What holds the ports of a [`Publish`] under an address, or all of a family.
pub struct Held {
    ports: Vec<HostPort>,
    sockets: Vec<OwnedFd>,
    guest: u16,
}

impl Held {
    /// To be kept through phase 2.
    pub fn sockets(&self) -> impl Iterator<Item = &OwnedFd> {
        self.sockets.iter()
    }
}

impl FromStr for Publish {
    type Err = ArgumentError;

    /// Reads `[ADDRESS:]PORT[-PORT]:PORT[-PORT][/udp]`.
    fn from_str(text: &str) -> Result<Publish, ArgumentError> {
        let publish = Publish::of_host(text)?;
        let nowhere = "it does not say to which port of the guest's it leads";
        if publish.guest == 0 { Err(wrong(text, nowhere)) } else { Ok(publish) }
    }
}

fn wrong(text: &str, why: &'static str) -> ArgumentError {
    ArgumentError::Publish { text: text.to_owned(), why }
}

impl Publish {
    /// Reads the same, which need not say where it leads.
    pub fn of_host(text: &str) -> Result<Publish, ArgumentError> {
        const NO_ADDRESS: &str = "an address is one of IPv4, or one of IPv6 in brackets";
        let wrong = |why| wrong(text, why);
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some(_) => return Err(wrong("the protocol is tcp or udp")),
        };
        let (address, ports) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (address, ports) = rest.split_once("]:").ok_or(wrong(NO_ADDRESS))?;
                (address.parse().ok().map(IpAddr::V6), ports)
            }
            None => match rest.split_once(':').filter(|(address, _)| address.contains('.')) {
                Some((address, ports)) => (address.parse().ok().map(IpAddr::V4), ports),
                None => (None, rest),
            },
        };
        if ports.len() < rest.len() && address.is_none() {
            return Err(wrong(NO_ADDRESS));
        }
        let (host, guest) = ports.split_once(':').map_or((ports, None), |(host, guest)| (host, Some(guest)));
        let (first, last) = range(host).map_err(wrong)?;
        let (guest, last_of_guest) = guest.map_or(Ok((0, 0)), range).map_err(wrong)?;
        if guest != 0 && last_of_guest - guest != last - first {
            return Err(wrong("the guest has to have as many ports of it as the host"));
        }
        let publish = Publish { protocol, address, first, last, guest };
        if publish.count() > MAX_PUBLISHED as usize {
            return Err(wrong("it is more ports than a guest may have"));
        }
        Ok(publish)
    }

    /// One port of the host, under that address or all of its, that leads to one of the guest's.
    pub fn new(protocol: Protocol, address: Option<IpAddr>, host: u16, guest: u16) -> Publish {
        Publish { protocol, address, first: host, last: host, guest }
    }

    /// The same with those that follow one another together, where they are given so.
    pub fn together(all: impl IntoIterator<Item = Publish>) -> Vec<Publish> {
        let mut together: Vec<Publish> = Vec::new();
        for one in all {
            let follows = |before: &&mut Publish| {
                (before.protocol, before.address) == (one.protocol, one.address)
                    && before.last.checked_add(1) == Some(one.first)
                    && before.guest.checked_add(one.first.saturating_sub(before.first)) == Some(one.guest)
            };
            match together.last_mut().filter(follows) {
                Some(before) => before.last = one.last,
                None => together.push(one),
            }
        }
        together
    }

    /// Whether all of it is among what is published for a guest of these addresses: what is for all of the host's, in each family that the guest has.
    pub fn is_among(&self, published: &[Publish], guest: &[IpAddr]) -> bool {
        let leads = |publish: &Publish, address: IpAddr, port: u16| {
            (publish.protocol, publish.address) == (self.protocol, Some(address))
                && (publish.first..=publish.last).contains(&port)
                && port.abs_diff(publish.first).checked_add(publish.guest)
                    == port.abs_diff(self.first).checked_add(self.guest)
        };
        let has_family = |address: &IpAddr| guest.iter().any(|own| own.is_ipv4() == address.is_ipv4());
        let mut wanted = self.addresses().into_iter().filter(|address| self.address.is_some() || has_family(address));
        let is_published = |address, port| published.iter().any(|publish| leads(publish, address, port));
        wanted.all(|address| (self.first..=self.last).all(|port| is_published(address, port)))
    }

    /// How many ports they are.
    pub fn count(&self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    /// Whether some port of the host would lead to both.
    pub fn overlaps(&self, other: &Publish) -> bool {
        let addresses = self.address.is_none() || other.address.is_none() || self.address == other.address;
        self.protocol == other.protocol && addresses && self.first <= other.last && other.first <= self.last
    }

    /// Under which addresses.
    fn addresses(&self) -> Vec<IpAddr> {
        let all = || vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        self.address.map_or_else(all, |one| vec![one])
    }

    fn ports(&self, address: IpAddr) -> Vec<HostPort> {
        (self.first..=self.last).map(|port| (self.protocol, SocketAddr::new(address, port))).collect()
    }

    /// Takes the ports, so that nobody else has them. What is for all addresses is so of both families, where the host has both.
    pub fn hold(&self) -> Result<Vec<Held>, Error> {
        let mut held = Vec::new();
        for address in self.addresses() {
            let ports = self.ports(address);
            match ports.iter().map(|port| take(*port).map_err(|why| (port.1.port(), why))).collect() {
                Ok(sockets) => held.push(Held { ports, sockets, guest: self.guest }),
                Err((_, why)) if self.address.is_none() && address.is_ipv6() && is_without_ipv6(&why) => {}
                Err((port, source)) => {
                    let host = Publish { address: Some(address), first: port, last: port, guest: 0, ..*self };
                    return Err(Error::PortNotHeld { host: host.to_string(), source });
                }
            }
        }
        Ok(held)
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            None => {}
        }
        let ports = |first: u16| match self.last - self.first {
            0 => first.to_string(),
            more => format!("{first}-{}", first.saturating_add(more)),
        };
        f.write_str(&ports(self.first))?;
        if self.guest != 0 {
            write!(f, ":{}", ports(self.guest))?;
        }
        f.write_str(if self.protocol == Protocol::Udp { "/udp" } else { "" })
    }
}

/// A port, or the first and the last of several.
fn range(text: &str) -> Result<(u16, u16), &'static str> {
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = text.parse().ok().filter(|port: &u16| is_number && *port != 0);
        port.ok_or("a port is a number from 1 to 65535")
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if last < first { Err("a range of ports ends before it begins") } else { Ok((first, last)) }
}

fn is_without_ipv6(why: &io::Error) -> bool {
    matches!(Errno::from_io_error(why), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// A socket that has a port, which nobody else then gets. One of TCP does not listen: who is not led to the guest, as over ::1, is refused, and does
/// not wait.
fn take((protocol, at): HostPort) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &at)?;
    Ok(socket)
}

/// Whose guest ports of the host are to lead to.
pub enum Guest<'a> {
    /// That of a port of ours.
    Port(&'a port::Client),
    /// That of the workload's port on a network.
    Of(&'a network::Client, &'a str),
}

impl Guest<'_> {
    /// Has ports that are held lead there, all of them or none: what is for all addresses is of that family alone of which the guest has one.
    pub async fn publish(&self, netmgr: &Connection, tried: &str, held: &[Vec<Held>]) -> Result<(), Fault> {
        let mut done = Vec::new();
        for families in held {
            let (mut refused, mut leads) = (None, false);
            for one in families {
                match self.hand_over(netmgr, tried, one, &mut done).await {
                    Ok(()) => leads = true,
                    Err(fault) if families.len() > 1 && fault.code == Code::NotFound => refused = Some(fault),
                    Err(fault) => return Err(self.undone(netmgr, &done, fault).await),
                }
            }
            if let Some(fault) = refused.filter(|_| !leads) {
                return Err(self.undone(netmgr, &done, fault).await);
            }
        }
        Ok(())
    }

    /// That fault, with all undone that was done before it: where that fails too, the port's end undoes it.
    async fn undone(&self, netmgr: &Connection, done: &[HostPort], fault: Fault) -> Fault {
        if !done.is_empty() {
            let _ = self.unpublish(netmgr, "take back what was published", done).await;
        }
        fault
    }

    async fn hand_over(
        &self,
        netmgr: &Connection,
        tried: &str,
        held: &Held,
        done: &mut Vec<HostPort>,
    ) -> Result<(), Fault> {
        let Held { ports, sockets, guest } = held;
        for (n, (some, ports)) in sockets.chunks(AT_ONCE).zip(ports.chunks(AT_ONCE)).enumerate() {
            let first = guest.saturating_add((n * AT_ONCE) as u16);
            retry(CALL_DEADLINE, async |left| {
                // A token is good for one call, so new ones go with each.
                let mut tokens = Vec::new();
                for socket in some {
                    tokens.push(netmgr.deposit(socket.as_fd()).await?);
                }
                match self {
                    Guest::Port(port) => {
                        let mut request = port.publish_request();
                        request.get().set_guest_port(first);
                        write_tokens(request.get().init_sockets(tokens.len() as u32), &tokens);
                        netmgr.call(tried, left, request.send()).await.map(drop)
                    }
                    Guest::Of(network, workload) => {
                        let mut request = network.publish_request();
                        request.get().set_workload(workload);
                        request.get().set_guest_port(first);
                        write_tokens(request.get().init_sockets(tokens.len() as u32), &tokens);
                        netmgr.call(tried, left, request.send()).await.map(drop)
                    }
                }
            })
            .await?;
            done.extend_from_slice(ports);
        }
        Ok(())
    }

    /// Takes back that ports lead there. What is for all addresses is so of that family alone of which it was published.
    pub async fn take_back(&self, netmgr: &Connection, tried: &str, publish: &Publish) -> Result<(), Fault> {
        let (mut refused, mut taken) = (None, false);
        for address in publish.addresses() {
            match self.unpublish(netmgr, tried, &publish.ports(address)).await {
                Ok(()) => taken = true,
                Err(fault) if publish.address.is_none() && fault.code == Code::NotFound => refused = Some(fault),
                Err(fault) => return Err(fault),
            }
        }
        refused.filter(|_| !taken).map_or(Ok(()), Err)
    }

    async fn unpublish(&self, netmgr: &Connection, tried: &str, ports: &[HostPort]) -> Result<(), Fault> {
        let count = u32::try_from(ports.len()).unwrap_or(0);
        match self {
            Guest::Port(port) => {
                let send = || {
                    let mut request = port.unpublish_request();
                    write_ports(request.get().init_published(count), ports);
                    request.send()
                };
                netmgr.ask(tried, CALL_DEADLINE, send).await.map(drop)
            }
            Guest::Of(network, workload) => {
                let send = || {
                    let mut request = network.unpublish_request();
                    request.get().set_workload(workload);
                    write_ports(request.get().init_published(count), ports);
                    request.send()
                };
                netmgr.ask(tried, CALL_DEADLINE, send).await.map(drop)
            }
        }
    }
}

fn write_tokens(mut to: struct_list::Builder<'_, fd_token::Owned>, tokens: &[Token]) {
    for (at, token) in (0..to.len()).zip(tokens) {
        token.write(to.reborrow().get(at));
    }
}

fn write_ports(mut to: struct_list::Builder<'_, published::Owned>, ports: &[HostPort]) {
    for (at, (protocol, host)) in (0..to.len()).zip(ports) {
        let mut one = to.reborrow().get(at);
        one.set_protocol(*protocol);
        one.set_address(host.ip().to_string());
        one.set_port(host.port());
    }
}

/// What is published, as it is written: ports that follow one another together.
pub fn read(published: struct_list::Reader<'_, published::Owned>) -> Result<Vec<Publish>, Error> {
    let one = |one: published::Reader<'_>| {
        let protocol = one.get_protocol().map_err(capnp::Error::from)?;
        Ok(Publish::new(protocol, text(one.get_address()?)?.parse().ok(), one.get_port(), one.get_guest_port()))
    };
    Ok(Publish::together(published.iter().map(one).collect::<Result<Vec<_>, Error>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> String {
        text.parse::<Publish>().unwrap_err().to_string()
    }

    #[test]
    fn what_is_published_reads_as_it_is_written() {
        for text in
            ["8080:80", "127.0.0.1:5353:53/udp", "[::]:7000-7010:7000-7010", "[fd00::1]:1:65535", "0.0.0.0:1-256:1-256"]
        {
            assert_eq!(text.parse::<Publish>().unwrap().to_string(), text);
        }
        assert_eq!("8080:80/tcp".parse::<Publish>(), "8080:80".parse());
        for text in ["8080", "127.0.0.1:53/udp", "[::]:7000-7010"] {
            assert_eq!(Publish::of_host(text).unwrap().to_string(), text);
            assert!(why(text).contains("does not say to which port"), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_published_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "from 1 to 65535"),
            ("80:", "from 1 to 65535"),
            (":80", "from 1 to 65535"),
            ("0:80", "from 1 to 65535"),
            ("80:0", "from 1 to 65535"),
            ("+80:80", "from 1 to 65535"),
            ("65536:80", "from 1 to 65535"),
            ("80:65536", "from 1 to 65535"),
            ("web:80:80", "from 1 to 65535"),
            ("1:2:3", "from 1 to 65535"),
            ("80:80/sctp", "tcp or udp"),
            ("80:80/", "tcp or udp"),
            ("10.0.0:80:80", "IPv6 in brackets"),
            ("10.0.0.256:80:80", "IPv6 in brackets"),
            ("[fd00::1:80:80", "IPv6 in brackets"),
            ("[10.0.0.1]:80:80", "IPv6 in brackets"),
            ("10-9:10-9", "ends before it begins"),
            ("10-12:10-11", "as many ports"),
            ("10-12:10", "as many ports"),
            ("1-257:1-257", "more ports than"),
            ("1-65535:1-65535", "more ports than"),
        ] {
            assert!(why(text).contains(part), "{text}: {}", why(text));
        }
    }

    #[test]
    fn ports_that_somebody_has_are_refused_by_name_and_others_are_held_against_everybody() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap();
        let publish: Publish = format!("{host}:80").parse().unwrap();
        let error = publish.hold().err().unwrap();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(error.fault().to_string().contains(&host.to_string()), "{}", error.fault());
        // Of two of a range, the one that is taken; the other one is free again.
        drop(taken);
        let held = publish.hold().unwrap();
        assert_eq!(held.iter().flat_map(Held::sockets).count(), 1);
        assert!(std::net::TcpListener::bind(host).is_err() && publish.hold().is_err());
        let error = "192.0.2.77:80:80".parse::<Publish>().unwrap().hold().err().unwrap();
        assert_eq!(error.code(), Code::InvalidArgument, "{}", error.fault());
    }

    #[test]
    fn what_is_for_all_addresses_is_among_what_is_published_in_each_family_of_the_guest_s() {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Publish>>();
        let [v4, v6] = ["10.42.0.2", "fd00::2"].map(|address| address.parse::<IpAddr>().unwrap());
        let both = read(&["0.0.0.0:80-81:8080-8081", "[::]:81-82:8081-8082"]);
        let is = |text: &str, guest: &[IpAddr]| text.parse::<Publish>().unwrap().is_among(&both, guest);
        assert!(is("80:8080", &[v4]) && is("82:8082", &[v6]) && is("81:8081", &[v4, v6]));
        assert!(!is("80:8080", &[v4, v6]) && !is("82:8082", &[v4, v6]) && !is("80-81:8080-8081", &[v6]));
        assert!(!is("81:8080", &[v4]) && !is("81:8081/udp", &[v4]) && !is("83:8083", &[v6]));
        // One that is named is of its own family, whatever the guest has.
        assert!(is("0.0.0.0:80:8080", &[v4, v6]) && is("[::]:82:8082", &[v4, v6]));
        assert!(!is("10.0.0.1:80:8080", &[v4]));
    }

    #[test]
    fn ports_that_lead_to_the_same_one_overlap_and_no_others() {
        let overlap = |a: &str, b: &str| a.parse::<Publish>().unwrap().overlaps(&b.parse().unwrap());
        assert!(overlap("80:1", "80:2") && overlap("80-90:1-11", "127.0.0.1:90:1") && overlap("[::]:1:1", "1:1"));
        assert!(!overlap("80:1", "80:1/udp") && !overlap("80-89:1-10", "90:1"));
        assert!(!overlap("127.0.0.1:80:1", "127.0.0.2:80:1") && !overlap("[::]:80:1", "0.0.0.0:80:1"));
    }
}
