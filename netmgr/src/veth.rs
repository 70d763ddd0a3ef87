//! Pairs of veths: one end for a bridge, the other made in a container's network namespace, and configured there. Touches the host's interfaces by
//! [`Rtnl`], and the container's by the socket that was handed over ([`handed`](crate::handed)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::{
    AddressMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        address::AddressHeaderFlags,
        link::{InfoData, InfoKind, InfoVeth, LinkAttribute, Prop},
    },
};
use schema::network_capnp::{IPV6_PREFIX_LENGTH, MAX_ROUTES};

use crate::{
    address::Address,
    ask::incomplete,
    config::Config,
    error::Error,
    handed::Handed,
    instance::Instance,
    link::Link,
    message::Message,
    names::{self, Kind},
    netlink::{self, Request},
    rtnl::{Batch, LinkBuilder, Rtnl},
    sources::Sources,
    wanted::Wanted,
};

/// The container's end, as its holder wants it.
pub struct Inside {
    /// Where, and by what way.
    pub handed: Handed,
    /// What it is called there.
    pub name: String,
    /// What it leads to by way of the gateway.
    pub routes: Vec<Address>,
    /// Who is the router of IPv4 there, in place of the gateway.
    pub router: Option<Ipv4Addr>,
    /// The network's gateways; set when the network is known.
    pub gateways: Vec<Address>,
    /// An address of each of its subnets, with the length of that one's prefix; likewise.
    pub subnets: Vec<Address>,
}

/// Reads routes that a caller sent.
pub fn routes<'a>(given: impl ExactSizeIterator<Item = Result<&'a str, Error>>) -> Result<Vec<Address>, Error> {
    const RULE: &str = "it must be a subnet in CIDR notation, such as 0.0.0.0/0 or ::/0";
    if given.len() > usize::from(MAX_ROUTES) {
        return Err(Error::argument("number of routes", &given.len().to_string(), "a port has 16 at most"));
    }
    let route = |text: Result<&str, Error>| {
        let text = text?;
        let parsed = text.split_once('/').and_then(|(ip, prefix)| {
            let address = Address { ip: ip.parse().ok()?, prefix: prefix.parse().ok()? };
            (address.prefix <= Address::longest(address.ip) && address.network() == address).then_some(address)
        });
        parsed.ok_or_else(|| Error::argument("route", text, RULE))
    };
    given.map(route).collect()
}

impl Inside {
    /// Whether it can be had on that network.
    pub fn check(&mut self, network: &Config, sources: &Sources) -> Result<(), Error> {
        (self.gateways, self.subnets) = (network.addresses().collect(), network.subnets().collect());
        if let Some(router) = self.router {
            if !network.address.is_some_and(|gateway| gateway.subnet().has_host(router)) {
                let why = "it is no host's address of the network's IPv4 subnet";
                return Err(Error::argument("router", &router.to_string(), why));
            }
            let of_ipv4 = self.gateways.iter_mut().filter(|gateway| gateway.ip.is_ipv4());
            of_ipv4.for_each(|gateway| gateway.ip = router.into());
        }
        self.routes.iter().try_for_each(|route| {
            let refuse = |why| Err(Error::argument("route", &route.to_string(), why));
            let has_address = sources.iter().any(|address| address.is_ipv4() == route.ip.is_ipv4());
            match self.gateway(route.ip) {
                None => refuse("the network has no gateway of that family"),
                Some(_) if !has_address => refuse("the container has no address of that family"),
                Some(_) => Ok(()),
            }
        })
    }

    /// The router's address of the same family as that one.
    fn gateway(&self, like: IpAddr) -> Option<Address> {
        self.gateways.iter().copied().find(|gateway| gateway.ip.is_ipv4() == like.is_ipv4())
    }

    /// Brings `lo` up: needed, and the proof that something can be done through the socket before anything is done on the host.
    pub fn prove(&mut self) -> Result<(), Error> {
        let up = RouteNetlinkMessage::SetLink(LinkUnspec::new_with_name("lo").up().build());
        self.handed.ask(vec![("bring lo up".into(), true, netlink::request(up, 0))], |_| ())
    }

    /// Gives the interface its addresses and routes, and brings it up.
    pub fn configure(&mut self, workload: &str, sources: &Sources) -> Result<(), Error> {
        let name = self.name.clone();
        let mut found = None;
        let look = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(&name).build());
        self.handed.ask(vec![(format!("look at {name}"), true, netlink::request(look, 0))], |said| {
            if let Message::Link(link) = said {
                found = Some(*link);
            }
        })?;
        let link = found.filter(|link| Kind::of(link) == Some(Kind::Veth)).ok_or_else(|| incomplete("make a veth"))?;
        let whom = || LinkUnspec::new_with_index(link.index);
        let mut asked: Vec<(String, bool, Request)> = Vec::new();
        let full = LinkAttribute::PropList(vec![Prop::AltIfName(names::within(workload))]);
        let full = RouteNetlinkMessage::NewLinkProp(whom().append_extra_attribute(full).build());
        let new = NLM_F_CREATE | NLM_F_EXCL;
        asked.push((String::new(), false, netlink::request(full, new | NLM_F_APPEND)));
        for address in sources.iter() {
            let subnet = self.subnets.iter().find(|subnet| subnet.ip.is_ipv4() == address.is_ipv4());
            let message = match address {
                IpAddr::V4(ip) => {
                    let prefix = subnet.map_or(32, |subnet| subnet.prefix);
                    AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(ip, prefix).build()
                }
                IpAddr::V6(ip) => {
                    let prefix = subnet.map_or(IPV6_PREFIX_LENGTH, |subnet| subnet.prefix);
                    let message = AddressMessageBuilder::<Ipv6Addr>::new().index(link.index);
                    let mut message = message.address(ip, prefix).build();
                    // It is this port's alone, which the rules of its bridge see to: nobody has to be asked, and it can be used at once.
                    message.header.flags = AddressHeaderFlags::Nodad;
                    message
                }
            };
            let give = netlink::request(RouteNetlinkMessage::NewAddress(message), new);
            asked.push((format!("give {address} to {name}"), true, give));
        }
        let up = RouteNetlinkMessage::SetLink(whom().up().build());
        asked.push((format!("bring {name} up"), true, netlink::request(up, 0)));
        for route in &self.routes {
            let message = match (route.ip, self.gateway(route.ip).map(|gateway| gateway.ip)) {
                (IpAddr::V4(to), Some(IpAddr::V4(by))) => {
                    let message = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link.index).gateway(by);
                    message.destination_prefix(to, route.prefix).build()
                }
                (IpAddr::V6(to), Some(IpAddr::V6(by))) => {
                    let message = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(link.index).gateway(by);
                    message.destination_prefix(to, route.prefix).build()
                }
                _ => continue,
            };
            let lead = netlink::request(RouteNetlinkMessage::NewRoute(message), new);
            asked.push((format!("lead {route} by way of the gateway"), true, lead));
        }
        self.handed.ask(asked, |_| ())
    }
}

/// Whether it is a pair's host end that has no mark as yet, or such a macvtap.
pub fn is_half_made(link: &Link, owner: &Instance) -> bool {
    matches!(Kind::of(link), Some(Kind::Veth | Kind::Macvtap(_)))
        && link.alias.is_empty()
        && link.group == names::half_made(owner)
}

/// Makes a pair, down; `None` if the host has an interface of that name, else the index of the host's end.
pub fn make(rtnl: &mut Rtnl, wanted: &Wanted<'_>, inside: &Inside) -> Result<Option<u32>, Error> {
    let Wanted { name, mac, mtu, owner, .. } = *wanted;
    let tried = format!("make veth {name}, and its other end {} within", inside.name);
    let end = |builder: LinkBuilder, name: &str, mac: schema::net::Mac| {
        builder.name(name.to_owned()).address(mac.bytes().to_vec()).mtu(mtu)
    };
    let peer = end(LinkBuilder::new(), &inside.name, mac).setns_by_fd(inside.handed.namespace()).build();
    let pair = end(LinkBuilder::new_with_info_kind(InfoKind::Veth), name, mac.host_side());
    let pair = pair.link_group(names::half_made(owner)).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let pair = RouteNetlinkMessage::NewLink(pair.build());
    let mut cleared = false;
    loop {
        let mut batch = Batch::default();
        batch.add(tried.clone(), NLM_F_CREATE | NLM_F_EXCL, pair.clone());
        let source = match rtnl.run(batch.get(LinkUnspec::new_with_name(name))) {
            Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => source,
            links => {
                let made = links?.into_iter().find(|link| is_half_made(link, owner));
                return made.map(|link| Some(link.index)).ok_or_else(|| incomplete("make a veth"));
            }
        };
        match rtnl.link(LinkUnspec::new_with_name(name))? {
            // What an attempt before has left that could not be undone.
            Some(link) if is_half_made(&link, owner) && !cleared => {
                rtnl.delete(link.index, |link| is_half_made(link, owner))?;
                cleared = true;
            }
            Some(_) => return Ok(None),
            None => return Err(Error::Within { tried, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_is_a_subnet_and_there_are_sixteen_at_most() {
        let read = |list: &[&str]| routes(list.iter().map(|text| Ok(*text)));
        let good = ["0.0.0.0/0", "10.0.0.0/8", "192.168.7.1/32", "::/0", "fd00::/64"];
        assert_eq!(read(&good).unwrap().iter().map(Address::to_string).collect::<Vec<_>>(), good);
        for bad in [
            "",
            "0.0.0.0",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::1/64",
            "::/129",
            "default",
            "10.0.0.0/-1",
            " 10.0.0.0/8",
        ] {
            assert!(read(&[bad]).unwrap_err().to_string().contains("CIDR"), "{bad:?}");
        }
        assert_eq!(read(&["10.0.0.0/8"; 16]).unwrap().len(), 16);
        assert!(read(&["10.0.0.0/8"; 17]).unwrap_err().to_string().contains("16 at most"));
    }
}
