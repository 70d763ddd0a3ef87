//! The kernel's network configuration: what is there, and steps to change it whose failures say what was tried.
//! Touches the rtnetlink socket, and through [`ipv6`] two settings of interfaces of ours.

use std::{
    collections::BTreeSet,
    io, mem,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
};

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::NLM_F_DUMP,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkExtentMask},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol},
    },
};

use schema::net::Mac;

use crate::{
    address::{Address, InterfaceAddress},
    ask::{self, failed, incomplete, refused, retried_if_passing},
    error::Error,
    forwarding::{self, Entry},
    handed::{self, Identity},
    ipv4::{self, Forwarding},
    ipv6::{self, Sysctl},
    link::Link,
    message::Message,
    netlink::{self, Request, Socket},
    route::{Nexthop, Route},
    sysfs::{Cards, Devices},
    vf::Vf,
};

/// An interface, and what is asked of it or to be changed.
pub type LinkBuilder = LinkMessageBuilder<LinkUnspec>;

/// What there is that networks are made of.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Routes that the kernel makes for them.
    pub routes: Vec<Route>,
}

impl Snapshot {
    /// The interface with that index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The addresses on it.
    pub fn on(&self, index: u32) -> impl Iterator<Item = &InterfaceAddress> {
        self.addresses.iter().filter(move |address| address.index == index)
    }
}

/// The kernel, by way of one socket, and one setting that has none.
pub struct Rtnl {
    socket: Socket,
    /// Another one, to netmgr's own namespace, for what is made there and moved: shared by all.
    home: Arc<Mutex<Socket>>,
    /// Where to, if this one is of another namespace.
    there: Option<OwnedFd>,
    ipv4: Forwarding,
    ipv6: Sysctl,
    /// Whether that setting cannot be made here.
    ipv6_stays: bool,
    /// The way to macvtaps' devices, where there is one.
    pub macvtaps: Option<Devices>,
    /// The network cards that can have virtual functions.
    pub cards: Cards,
    /// The network namespace that all of this is in; nothing where the kernel does not tell.
    namespace: Option<Identity>,
}

/// Steps that go to the kernel as one datagram: it takes them one after the other before it returns, even if the process is
/// killed meanwhile. It goes on after a step that failed, so each has to be harmless where an earlier one failed.
#[derive(Default)]
pub struct Batch {
    requests: Vec<Request>,
    tried: Vec<(String, bool)>,
}

impl Batch {
    /// Adds a request with `NLM_F_*` flags. `tried` completes "the kernel refused to ...".
    pub fn add(&mut self, tried: impl Into<String>, flags: u16, message: RouteNetlinkMessage) -> &mut Batch {
        self.requests.push(netlink::request(message, flags));
        self.tried.push((tried.into(), true));
        self
    }

    /// Adds a change to an interface.
    pub fn set(&mut self, tried: impl Into<String>, whom: LinkBuilder) -> &mut Batch {
        self.add(tried, 0, RouteNetlinkMessage::SetLink(whom.build()))
    }

    /// Adds a question for an interface.
    pub fn get(&mut self, whom: LinkBuilder) -> &mut Batch {
        self.add("look at an interface", 0, RouteNetlinkMessage::GetLink(brief(whom).build()))
    }

    /// How many steps there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Lets the step that was added last fail without consequence.
    pub fn optional(&mut self) -> &mut Batch {
        if let Some((_, needed)) = self.tried.last_mut() {
            *needed = false;
        }
        self
    }
}

/// Asks for no statistics.
fn brief(whom: LinkBuilder) -> LinkBuilder {
    whom.append_extra_attribute(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]))
}

impl Rtnl {
    /// Opens what there is to open, in phase 1.
    pub fn open() -> Result<Rtnl, Error> {
        let refused =
            |source| Error::Kernel { tried: "open an rtnetlink socket".into(), source, detail: String::new() };
        let (socket, home) = (Socket::open().map_err(&refused)?, Socket::open().map_err(refused)?);
        let (ipv4, ipv6, namespace) = (Forwarding::open(), Sysctl::open(), Identity::of_socket(&socket).ok());
        let home = Arc::new(Mutex::new(home));
        let (ipv6_stays, there, macvtaps, cards) = (ipv6.fd().is_none(), None, None, Cards::default());
        Ok(Rtnl { socket, home, there, ipv4, ipv6_stays, ipv6, macvtaps, cards, namespace })
    }

    /// That of a namespace that was handed over. The kernel's settings there are out of reach.
    pub fn of(&self, namespace: OwnedFd, identity: Identity, socket: OwnedFd) -> Result<Rtnl, Error> {
        let socket = Socket::handed(socket);
        if !socket.is_idle() {
            return Err(Error::argument("descriptor", "rtnetlink", handed::USED));
        }
        let (home, there, ipv4, ipv6) = (self.home.clone(), Some(namespace), Forwarding::none(), Sysctl::none());
        let (ipv6_stays, macvtaps, cards, namespace) = (true, None, Cards::default(), Some(identity));
        Ok(Rtnl { socket, home, there, ipv4, ipv6, ipv6_stays, macvtaps, cards, namespace })
    }

    /// The network namespace that all this is of, where the kernel tells.
    pub fn namespace(&self) -> Option<Identity> {
        self.namespace
    }

    /// Whether what netmgr makes in its own namespace has to be moved to come here.
    pub fn is_elsewhere(&self) -> bool {
        self.there.is_some()
    }

    /// Takes an interface that netmgr has just made in its own namespace, and that is down, from there, and gives it its name; `false` if somebody else has that.
    pub fn fetch(&self, passing: &str, name: &str) -> Result<bool, Error> {
        let Some(there) = &self.there else { return Ok(true) };
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Batch::default();
        let found = run(&mut home, batch.get(LinkUnspec::new_with_name(passing)))?;
        let index = found.first().ok_or(incomplete("look at an interface"))?.index;
        let moved = LinkUnspec::new_with_index(index).name(name.to_owned()).setns_by_fd(there.as_raw_fd());
        match run(&mut home, batch.set(format!("move {name} to its network's namespace"), moved)) {
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            moved => moved.map(|_| true),
        }
    }

    /// The descriptors that the sandbox has to keep.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        let home = self.home.lock().unwrap_or_else(PoisonError::into_inner).fd();
        let devices = self.macvtaps.iter().flat_map(Devices::fds);
        [self.socket.fd(), home].into_iter().chain(self.ipv4.fd()).chain(self.ipv6.fd()).chain(devices)
    }

    /// Lets guests on a bridge answer what the host sends from its loopback network, or not. Where that fails, published ports are reached under the
    /// host's other addresses.
    pub fn answer_loopback(&self, bridge: &str, on: bool) {
        if let Err(error) = self.ipv4.of_loopback(bridge, on)
            && on
        {
            confine::say!(
                "netmgr: ports that are published for guests on {bridge} are not reached over 127.0.0.1 ({error}). Let netmgr write to {}.",
                ipv4::FOLDER
            );
        }
    }

    /// A socket of the network namespace that all this is of.
    pub fn socket(&self) -> RawFd {
        self.socket.fd()
    }

    /// Has the host forward between its interfaces, IPv6 if it is `with_ipv6`. Nothing is changed where it does.
    pub fn forward(&mut self, with_ipv6: bool) -> Result<(), Error> {
        self.ipv4.on().map_err(|why| Error::NoForwarding { family: "IPv4", folder: ipv4::FOLDER, why })?;
        if with_ipv6 {
            let links = self.links()?;
            // A new interface has what all have.
            if links.iter().any(|link| !link.forwards) {
                let routers =
                    links.iter().filter(|link| link.accept_ra && !link.forwards).map(|link| link.name.as_str());
                let refused = |why| Error::NoForwarding { family: "IPv6", folder: ipv6::FOLDER, why };
                self.ipv6.forward(routers).map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Switches the host's IPv6 on or off on a bridge of ours. Where it cannot be switched off, the network works, and that is said.
    pub fn set_ipv6(&mut self, bridge: &str, on: bool) -> Result<(), Error> {
        match self.ipv6.no_routers(bridge).and_then(|()| self.ipv6.set_on(bridge, on)) {
            Ok(()) => Ok(()),
            Err(source) if on => Err(Error::NoIpv6 { network: bridge.to_owned(), source }),
            Err(error) => {
                self.ipv6_stays |= error.kind() != io::ErrorKind::NotFound;
                confine::say!(
                    "netmgr: IPv6 of the host stays on on bridge {bridge} ({error}). Let netmgr write to {}.",
                    ipv6::FOLDER
                );
                Ok(())
            }
        }
    }

    /// Switches the host's IPv6 off on a port's interface, before that is up: the routes that it has for each are in the way of all others'.
    /// Where that fails, its port works, and that is said, once. Whether it is off.
    pub fn ipv6_off_port(&mut self, interface: &str) -> bool {
        let off = self.ipv6.set_on(interface, false);
        if let Err(error) = &off
            && error.kind() != io::ErrorKind::NotFound
            && !mem::replace(&mut self.ipv6_stays, true)
        {
            confine::say!(
                "netmgr: IPv6 of the host stays on on {interface} ({error}). Let netmgr write to {}.",
                ipv6::FOLDER
            );
        }
        off.is_ok() && self.ipv6.fd().is_some()
    }

    /// Switches it on again there, where it was on before. Where that fails, that is for who wants it on.
    pub fn ipv6_on_port(&self, interface: &str) {
        let _ = self.ipv6.set_on(interface, true);
    }

    /// Whether the host's IPv6 on a bridge is on or off as it should be, or cannot be switched off.
    pub fn ipv6_is(&self, bridge: &Link, on: bool) -> bool {
        (bridge.ipv6 == on || bridge.ipv6 && self.ipv6_stays) && (!bridge.accept_ra || self.ipv6_stays)
    }

    /// Whether it is on on a port's interface where it can be switched off.
    pub fn port_has_ipv6(&self, port: &Link) -> bool {
        port.ipv6 && !self.ipv6_stays
    }

    /// Takes all steps, and gives the interfaces that the kernel describes; the first failure of a needed one is the error.
    pub fn run(&mut self, batch: &mut Batch) -> Result<Vec<Link>, Error> {
        run(&mut self.socket, batch)
    }

    /// The interface, if there is one. A name finds alternative names as well.
    pub fn link(&mut self, whom: LinkBuilder) -> Result<Option<Link>, Error> {
        self.link_as(brief(whom))
    }

    /// The interface with that index, if there is one, with what has come and gone by it.
    pub fn link_with_traffic(&mut self, index: u32) -> Result<Option<Link>, Error> {
        self.link_as(LinkUnspec::new_with_index(index))
    }

    /// The interface with that index, if there is one, with its virtual functions.
    pub fn card(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let with = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats, LinkExtentMask::Vf]);
        self.link_as(LinkUnspec::new_with_index(index).append_extra_attribute(with))
    }

    /// Its virtual functions alone; none of one that is not there.
    pub fn functions(&mut self, card: u32) -> Result<Vec<Vf>, Error> {
        Ok(self.card(card)?.map(|card| card.functions).unwrap_or_default())
    }

    fn link_as(&mut self, whom: LinkBuilder) -> Result<Option<Link>, Error> {
        const TRIED: &str = "look at an interface";
        let request = netlink::request(RouteNetlinkMessage::GetLink(whom.build()), 0);
        let (found, answers) = ask::question(&mut self.socket, TRIED, &[request], keep_link)?;
        match answers.into_iter().next() {
            Some(Err(refusal)) if refusal.errno == libc::ENODEV => Ok(None),
            Some(Err(refusal)) => Err(refused(refusal, TRIED)),
            _ => found.into_iter().next().ok_or(incomplete(TRIED)).map(Some),
        }
    }

    /// The interface with that index, its addresses and the routes through it, those of IPv6 if they are `with_ipv6`, one after the other: who finds them as they should be knows
    /// that each was, at some moment since the question.
    pub fn look(&mut self, index: u32, with_ipv6: bool) -> Result<Snapshot, Error> {
        Ok(Snapshot {
            links: self.link(LinkUnspec::new_with_index(index))?.into_iter().collect(),
            addresses: self.addresses(Some(index), with_ipv6)?,
            routes: self.routes(Some(index), with_ipv6)?,
        })
    }

    /// All that networks are made of, of IPv6 if it is `with_ipv6`.
    pub fn snapshot(&mut self, with_ipv6: bool) -> Result<Snapshot, Error> {
        let (links, addresses) = (self.links()?, self.addresses(None, with_ipv6)?);
        Ok(Snapshot { links, addresses, routes: self.routes(None, with_ipv6)? })
    }

    /// What a bridge's table has that stays; nothing where there is no such bridge.
    pub fn forwarding(&mut self, bridge: u32) -> Result<Vec<Entry>, Error> {
        let all = RouteNetlinkMessage::GetNeighbour(forwarding::all(bridge));
        or_none(self.dump("list what a bridge forwards", all, keep_entry), libc::ENODEV)
    }

    /// What the table of the bridge that a port is on has for an address, wherever it leads, if that stays.
    pub fn forwards(&mut self, port: u32, mac: Mac) -> Result<Option<Entry>, Error> {
        const TRIED: &str = "look at what a bridge forwards";
        let request = netlink::request(RouteNetlinkMessage::GetNeighbour(Entry::asked(port, mac)), 0);
        let (found, answers) = ask::question(&mut self.socket, TRIED, &[request], keep_entry)?;
        match answers.into_iter().next() {
            // There is none; or it is on no bridge.
            Some(Err(refusal)) if matches!(refusal.errno, libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(None),
            Some(Err(refusal)) => Err(refused(refusal, TRIED)),
            _ => Ok(found.into_iter().next()),
        }
    }

    /// All interfaces.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        self.links_as(brief(LinkBuilder::new()))
    }

    /// The same, with what has come and gone by each.
    pub fn links_with_traffic(&mut self) -> Result<Vec<Link>, Error> {
        self.links_as(LinkBuilder::new())
    }

    fn links_as(&mut self, which: LinkBuilder) -> Result<Vec<Link>, Error> {
        self.dump("list the interfaces", RouteNetlinkMessage::GetLink(which.build()), keep_link)
    }

    /// All addresses that the host takes for its own: those of its interfaces, and of each subnet of IPv4 the two that are everybody's.
    pub fn own(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        let everybody = [Ipv4Addr::BROADCAST, Ipv4Addr::UNSPECIFIED].map(IpAddr::from);
        let own = self.addresses(None, true)?.into_iter().flat_map(|InterfaceAddress { address, .. }| {
            // Where there are but two addresses, or one, they are hosts' (RFC 3021).
            let ends = address.broadcast().filter(|_| address.prefix < 31);
            let ends = ends.map(|last| [address.network().ip, last]);
            [address.ip].into_iter().chain(ends.into_iter().flatten())
        });
        Ok(own.chain(everybody).collect())
    }

    /// The addresses of that interface or of all, of IPv6 if it is `with_ipv6`.
    pub fn addresses(&mut self, index: Option<u32>, with_ipv6: bool) -> Result<Vec<InterfaceAddress>, Error> {
        let listed = families(with_ipv6).map(|family| {
            let mut message = AddressMessage::default();
            (message.header.family, message.header.index) = (family, index.unwrap_or_default());
            let each = |found: &mut Vec<_>, said| {
                if let Message::Address(has) = said
                    && is_of(family, has.address)
                    && index.is_none_or(|index| has.index == index)
                {
                    found.push(has);
                }
            };
            or_none(self.dump("list the addresses", RouteNetlinkMessage::GetAddress(message), each), libc::ENODEV)
        });
        Ok(listed.collect::<Result<Vec<_>, Error>>()?.concat())
    }

    /// The routes that the kernel has made for addresses, through that interface or through any, of IPv6 if it is `with_ipv6`.
    pub fn routes(&mut self, index: Option<u32>, with_ipv6: bool) -> Result<Vec<Route>, Error> {
        let listed = families(with_ipv6).map(|family| {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::Kernel;
            message.attributes.extend(index.map(RouteAttribute::Oif));
            let each = |found: &mut Vec<_>, said| {
                if let Message::Route(route) = said
                    && is_of(family, route.to)
                    && route.connected
                    && index.is_none_or(|index| route.nexthop == Nexthop::Interface(index))
                {
                    found.push(route);
                }
            };
            or_none(self.dump("list the routes", RouteNetlinkMessage::GetRoute(message), each), libc::ENODEV)
        });
        Ok(listed.collect::<Result<Vec<_>, Error>>()?.concat())
    }

    /// Those routes of the main table that hold `subnet` ([`Route::holds`]).
    fn routes_that_hold(&mut self, subnet: Address) -> Result<Vec<Route>, Error> {
        let main = RouteHeader::RT_TABLE_MAIN.into();
        let mut message = RouteMessage::default();
        message.header.address_family = family(subnet);
        message.attributes.push(RouteAttribute::Table(main));
        let listed =
            self.dump("list the routes", RouteNetlinkMessage::GetRoute(message), |found: &mut Vec<_>, said| {
                if let Message::Route(route) = said
                    && route.table == main
                    && route.holds(subnet)
                {
                    found.push(route);
                }
            });
        // A namespace in which no route has ever been has no main table.
        or_none(listed, libc::ENOENT)
    }

    /// A list of which nothing is missing.
    fn dump<T: Default>(
        &mut self,
        tried: &str,
        message: RouteNetlinkMessage,
        each: impl Fn(&mut T, Message),
    ) -> Result<T, Error> {
        let (found, answers) = ask::question(&mut self.socket, tried, &[netlink::request(message, NLM_F_DUMP)], each)?;
        match answers.into_iter().next() {
            Some(Ok(())) => Ok(found),
            Some(Err(refusal)) => Err(refused(refusal, tried)),
            None => Err(incomplete(tried)),
        }
    }

    /// What, other than the interface with index `except`, uses addresses of a subnet: an address whose subnet overlaps it, or
    /// a route in the main table ([`Route::holds`]).
    pub fn holder(&mut self, subnet: Address, except: Option<u32>) -> Result<Option<(Address, String)>, Error> {
        let addresses = self.addresses(None, subnet.ip.is_ipv6())?;
        let address = addresses.into_iter().find(|InterfaceAddress { index, address, .. }| {
            Some(*index) != except && address.prefix != 0 && address.overlaps(subnet)
        });
        let (held, what, nexthop) = match address {
            Some(held) => (held.address, "an address", Nexthop::Interface(held.index)),
            None => {
                let except = except.map(Nexthop::Interface);
                let route = self.routes_that_hold(subnet)?.into_iter().find(|route| Some(route.nexthop) != except);
                let Some(route) = route else { return Ok(None) };
                (route.to, "a route", route.nexthop)
            }
        };
        Ok(Some((
            held,
            match nexthop {
                Nexthop::Interface(index) => {
                    let link = self.link(LinkUnspec::new_with_index(index))?;
                    let name = link.map_or_else(|| format!("with index {index}"), |link| link.name);
                    format!("{what} of interface {name}")
                }
                Nexthop::Several => format!("{what} through several interfaces"),
                Nexthop::Nothing => format!("{what} to nowhere (blackhole, unreachable or prohibit)"),
            },
        )))
    }

    /// Deletes an interface for which `ours` holds and sees to it that it is gone; leaves any other one alone.
    pub fn delete(&mut self, index: u32, ours: impl Fn(&Link) -> bool) -> Result<(), Error> {
        if !self.link(LinkUnspec::new_with_index(index))?.as_ref().is_some_and(&ours) {
            return Ok(());
        }
        let delete = || RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build());
        match retried_if_passing(|| self.run(Batch::default().add("delete an interface", 0, delete()))) {
            Err(error) if error.is_gone() => {}
            other => _ = other?,
        }
        if self.link(LinkUnspec::new_with_index(index))?.as_ref().is_some_and(ours) {
            return Err(Error::Answer { tried: "delete an interface".into(), why: "it is still there".into() });
        }
        Ok(())
    }
}

fn run(socket: &mut Socket, batch: &mut Batch) -> Result<Vec<Link>, Error> {
    let Batch { requests, tried } = std::mem::take(batch);
    let mut links = Vec::new();
    let each = |said| {
        if let Message::Link(link) = said {
            links.push(*link);
        }
    };
    let first = tried.first().map_or("", |(tried, _)| tried);
    let answers = socket.exchange(requests, each).map_err(|failure| failed(failure, first))?;
    answers.into_iter().zip(tried).try_for_each(|(answer, (tried, needed))| match answer {
        Err(refusal) if needed => Err(refused(refusal, &tried)),
        _ => Ok(()),
    })?;
    Ok(links)
}

/// IPv4 first. A kernel without IPv6 answers for that with what it has of IPv4 instead ([`is_of`]).
fn families(with_ipv6: bool) -> impl Iterator<Item = AddressFamily> {
    [AddressFamily::Inet].into_iter().chain(with_ipv6.then_some(AddressFamily::Inet6))
}

fn family(address: Address) -> AddressFamily {
    if address.ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn is_of(wanted: AddressFamily, address: Address) -> bool {
    family(address) == wanted
}

fn keep_entry(found: &mut Vec<Entry>, said: Message) {
    if let Message::Forwarding(entry) = said {
        found.push(entry);
    }
}

fn keep_link(found: &mut Vec<Link>, said: Message) {
    if let Message::Link(link) = said {
        found.push(*link);
    }
}

/// A list that is empty where the kernel says that what it would be of is not there.
fn or_none<T>(listed: Result<Vec<T>, Error>, errno: i32) -> Result<Vec<T>, Error> {
    match listed {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(errno) => Ok(Vec::new()),
        listed => listed,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        LinkBridge,
        packet_core::{NLM_F_CREATE, NLM_F_EXCL},
        packet_route::link::LinkMessage,
    };

    use super::*;

    /// The kernel refuses a second list on one socket (EBUSY) until the first one, which a deadline or an error has cut short, is heard.
    #[test]
    fn list_that_was_left_unheard_is_not_in_the_way_of_the_next() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let bridge =
                |n| RouteNetlinkMessage::NewLink(LinkMessageBuilder::<LinkBridge>::new(&format!("d{n}")).build());
            for n in 0..200 {
                rtnl.run(Batch::default().add("make", NLM_F_CREATE | NLM_F_EXCL, bridge(n))).unwrap();
            }
            for _ in 0..3 {
                let dump = RouteNetlinkMessage::GetLink(LinkMessage::default());
                rtnl.socket.leave(netlink::request(dump.clone(), NLM_F_DUMP));
                // What is asked once is refused.
                let answers = rtnl.socket.exchange(vec![netlink::request(dump, NLM_F_DUMP)], |_| ()).unwrap();
                assert_eq!(answers[0].as_ref().unwrap_err().errno, libc::EBUSY);
                assert_eq!(rtnl.links().unwrap().len(), 201, "and lo");
            }
        };
        std::thread::spawn(test).join().unwrap();
    }
}
