//! An interface, as the kernel describes it, and whether it is one of netmgr's. Pure; touches nothing.

use rtnetlink::{
    packet_core::{Parseable, parse_mac, parse_u8, parse_u16, parse_u16_be},
    packet_route::link::{InfoKind, LinkFlags, LinkHeader},
};

use schema::net::Mac;

use crate::{
    attribute::{Malformed, attributes, behind, number, switch, text},
    instance::Instance,
    mark::{self, BridgeMark},
    names,
    vf::{self, Vf},
};

// What the libc crate lacks of linux/if_link.h and linux/ipv6.h.
const IFLA_BR_FORWARD_DELAY: u16 = 1;
pub(crate) const IFLA_BR_STP_STATE: u16 = 5;
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
/// ETH_P_8021Q.
const OF_802_1Q: u16 = 0x8100;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_GROUP_FWD_MASK: u16 = 31;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_PARENT_DEV_NAME: u16 = 56;
pub(crate) const IFLA_INET6_CONF: u16 = 2;
/// What the libc crate lacks of linux/if_bridge.h.
const BR_STATE_FORWARDING: u8 = 3;
const DEVCONF_FORWARDING: usize = 0;
const DEVCONF_ACCEPT_RA: usize = 3;
const DEVCONF_DISABLE_IPV6: usize = 26;

/// So much of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// An interface, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index; never 0.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its alternative names.
    pub alternatives: Vec<String>,
    /// Its alias; empty for none.
    pub alias: String,
    /// Bridge, tun, ...; none for hardware.
    pub kind: Option<InfoKind>,
    /// `IFF_UP`.
    pub up: bool,
    /// `IFF_NOARP`: whether the host neither asks nor answers there whose address is whose.
    pub no_arp: bool,
    /// Whether somebody has taken its carrier away, as if its cable were out.
    pub no_carrier: bool,
    /// Bytes.
    pub mtu: u32,
    /// Ethernet address, where it has one.
    pub mac: Option<Mac>,
    /// Index of the bridge that it is a port of; 0 for none.
    pub master: u32,
    /// Index of the interface that it is on, is one of, or the other end of; 0 for none.
    pub lower: u32,
    /// Which VLAN of 802.1Q it is of that one; 0 for none.
    pub vlan: u16,
    /// In which mode it is a macvtap: MACVLAN_MODE_*; 0 for what is none.
    pub mode: u32,
    /// `IFF_ALLMULTI`.
    pub all_multicast: bool,
    /// Whether it is a bridge that runs the spanning tree protocol.
    pub stp: bool,
    /// Whether it is a bridge that keeps VLANs apart.
    pub vlans: bool,
    /// How long it is a bridge that lets a new port wait, in hundredths of a second.
    pub delay: u32,
    /// Whether it is a bridge that keeps multicasts from ports that have not asked for them.
    pub snooping: bool,
    /// Whether it is a port that its bridge takes frames from: a moment after it is up.
    pub open: bool,
    /// Whether it is a port of a bridge that takes from the frames which come there who is behind it.
    pub learning: bool,
    /// Whether it is a port of a bridge that is sent frames to addresses of which that does not know where they are.
    pub flood: bool,
    /// Whether it is a port of a bridge that sends nothing to others like it, and is sent nothing by them.
    pub isolated: bool,
    /// Which of the frames for a bridge itself are forwarded that come by this port of one, a bit each.
    pub forwarded: u16,
    /// Whether the host's IPv6 is on on it.
    pub ipv6: bool,
    /// Whether the host takes what routers advertise there.
    pub accept_ra: bool,
    /// Whether the host forwards IPv6 from there.
    pub forwards: bool,
    /// The group that it is in; 0 unless somebody chose one.
    pub group: u32,
    /// Which device it is of: its PCI address, of a card's function; empty for what is of none.
    pub device: String,
    /// Its virtual functions, of a card's, where these were asked for.
    pub functions: Vec<Vf>,
    /// What came by it, where that was asked for: of a port, from its guest.
    pub came: Count,
    /// And what went.
    pub went: Count,
}

impl Link {
    /// Reads it behind a message's header.
    pub fn read(body: &[u8]) -> Result<Link, Malformed> {
        let header = LinkHeader::parse(body).ok().filter(|header| header.index != 0);
        let header = header.ok_or(Malformed("message about an interface"))?;
        let (up, no_arp) = (header.flags.contains(LinkFlags::Up), header.flags.contains(LinkFlags::Noarp));
        let all_multicast = header.flags.contains(LinkFlags::Allmulti);
        let mut link = Link { index: header.index, up, no_arp, all_multicast, ..Link::default() };
        for one in behind(body, &header) {
            let one = one?;
            let value = one.value();
            match one.kind() {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = text(value),
                libc::IFLA_MTU => link.mtu = number(value, "MTU")?,
                // Not all kinds of interfaces have six bytes of it.
                libc::IFLA_ADDRESS => link.mac = parse_mac(value).ok().and_then(Mac::new),
                libc::IFLA_MASTER => link.master = number(value, "index of a bridge")?,
                libc::IFLA_LINK => link.lower = number(value, "index of an interface")?,
                libc::IFLA_GROUP => link.group = number(value, "group of interfaces")?,
                libc::IFLA_CARRIER => link.no_carrier = !switch(value, "carrier")?,
                libc::IFLA_LINKINFO => link.read_info(value)?,
                libc::IFLA_PROP_LIST => link.read_properties(value)?,
                libc::IFLA_AF_SPEC => link.read_families(value)?,
                libc::IFLA_STATS64 => link.read_traffic(value)?,
                libc::IFLA_VFINFO_LIST => link.functions = vf::read(value)?,
                IFLA_PARENT_DEV_NAME => link.device = text(value),
                _ => {}
            }
        }
        if link.name.is_empty() { Err(Malformed("message about an interface, without a name")) } else { Ok(link) }
    }

    fn read_info(&mut self, info: &[u8]) -> Result<(), Malformed> {
        let mut is_port = false;
        for one in attributes(info) {
            let one = one?;
            match one.kind() {
                libc::IFLA_INFO_KIND => {
                    self.kind = Some(InfoKind::parse(&one).map_err(|_| Malformed("kind of interface"))?);
                }
                libc::IFLA_INFO_DATA if self.kind == Some(InfoKind::Bridge) => {
                    for one in attributes(one.value()) {
                        let one = one?;
                        match one.kind() {
                            IFLA_BR_STP_STATE => self.stp = number(one.value(), "state of a bridge")? != 0,
                            IFLA_BR_VLAN_FILTERING => self.vlans = switch(one.value(), "state of a bridge")?,
                            IFLA_BR_FORWARD_DELAY => self.delay = number(one.value(), "state of a bridge")?,
                            IFLA_BR_MCAST_SNOOPING => self.snooping = switch(one.value(), "state of a bridge")?,
                            _ => {}
                        }
                    }
                }
                libc::IFLA_INFO_DATA if self.kind == Some(InfoKind::Vlan) => {
                    let (mut number, mut protocol) = (0, OF_802_1Q);
                    for one in attributes(one.value()) {
                        let one = one?;
                        match one.kind() {
                            IFLA_VLAN_ID => number = parse_u16(one.value()).map_err(|_| Malformed("VLAN"))?,
                            IFLA_VLAN_PROTOCOL => {
                                protocol = parse_u16_be(one.value()).map_err(|_| Malformed("VLAN"))?;
                            }
                            _ => {}
                        }
                    }
                    self.vlan = if protocol == OF_802_1Q { number } else { 0 };
                }
                libc::IFLA_INFO_DATA if self.kind == Some(InfoKind::MacVtap) => {
                    for one in attributes(one.value()) {
                        let one = one?;
                        if one.kind() == IFLA_MACVLAN_MODE {
                            self.mode = number(one.value(), "mode of a macvtap")?;
                        }
                    }
                }
                IFLA_INFO_SLAVE_KIND => is_port = text(one.value()) == "bridge",
                IFLA_INFO_SLAVE_DATA if is_port => {
                    for one in attributes(one.value()) {
                        let one = one?;
                        match one.kind() {
                            IFLA_BRPORT_STATE => {
                                let state = parse_u8(one.value()).map_err(|_| Malformed("state of a port"))?;
                                self.open = state == BR_STATE_FORWARDING;
                            }
                            IFLA_BRPORT_LEARNING => self.learning = switch(one.value(), "state of a port")?,
                            IFLA_BRPORT_UNICAST_FLOOD => self.flood = switch(one.value(), "state of a port")?,
                            IFLA_BRPORT_ISOLATED => self.isolated = switch(one.value(), "state of a port")?,
                            IFLA_BRPORT_GROUP_FWD_MASK => {
                                self.forwarded = parse_u16(one.value()).map_err(|_| Malformed("state of a port"))?;
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// `rtnl_link_stats64` begins with packets that came, that went, bytes that came, that went.
    fn read_traffic(&mut self, traffic: &[u8]) -> Result<(), Malformed> {
        let (numbers, _) = traffic.as_chunks::<8>();
        let [came, went, bytes_came, bytes_went, ..] = numbers else {
            return Err(Malformed("what went by an interface"));
        };
        let count = |packets: &[u8; 8], bytes: &[u8; 8]| Count {
            packets: u64::from_ne_bytes(*packets),
            bytes: u64::from_ne_bytes(*bytes),
        };
        (self.came, self.went) = (count(came, bytes_came), count(went, bytes_went));
        Ok(())
    }

    fn read_properties(&mut self, properties: &[u8]) -> Result<(), Malformed> {
        for one in attributes(properties) {
            let one = one?;
            if one.kind() == libc::IFLA_ALT_IFNAME {
                self.alternatives.push(text(one.value()));
            }
        }
        Ok(())
    }

    fn read_families(&mut self, families: &[u8]) -> Result<(), Malformed> {
        for family in attributes(families) {
            let family = family?;
            if family.kind() != libc::AF_INET6 as u16 {
                continue;
            }
            for one in attributes(family.value()) {
                let one = one?;
                if one.kind() == IFLA_INET6_CONF {
                    let setting = |which| {
                        let value = one.value().chunks_exact(4).nth(which);
                        number(value.unwrap_or_default(), "list of IPv6 settings")
                    };
                    self.ipv6 = setting(DEVCONF_DISABLE_IPV6)? == 0;
                    self.accept_ra = setting(DEVCONF_ACCEPT_RA)? != 0;
                    self.forwards = setting(DEVCONF_FORWARDING)? != 0;
                }
            }
        }
        Ok(())
    }

    /// The mark of a bridge that a netmgr made. One without any alias but with the MAC address that netmgr gives at creation was made by
    /// one that was killed before it could set the mark, as the kernel takes no alias at creation; or somebody has cleared it.
    pub fn bridge_mark(&self) -> Option<BridgeMark> {
        let half_made = || self.alias.is_empty() && self.mac == Some(names::mac_of_bridge(&self.name));
        let half_made = || half_made().then(|| BridgeMark { config: None, owner: Instance::default() });
        (self.kind == Some(InfoKind::Bridge)).then(|| mark::read_bridge(&self.alias).or_else(half_made)).flatten()
    }

    /// Whether it is a bridge that the netmgr of `instance` may have as that of the network of that name.
    pub fn is_bridge_of(&self, network: &str, instance: &Instance) -> bool {
        self.bridge_mark().is_some_and(|mark| {
            mark.config.as_ref().map_or(&self.name, |config| &config.name) == network && instance.may_have(&mark.owner)
        })
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVlan,
        packet_core::Emitable,
        packet_route::link::{
            BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoPortData, InfoPortKind, InfoVlan,
            LinkMessage, VlanProtocol,
        },
    };

    use super::*;
    use crate::{attribute::attribute, config::Config};

    fn body(message: &LinkMessage) -> Vec<u8> {
        let mut body = vec![0; message.buffer_len()];
        message.emit(&mut body);
        body
    }

    #[test]
    fn bridge_is_ours_by_mark_or_while_half_made_by_its_mac() {
        let (one, other): (Instance, Instance) = ("a".parse().unwrap(), "b".parse().unwrap());
        let config = Config::new("volt0", "10.42.0.1", 24, 1500).unwrap();
        let marked = Link {
            name: "volt0".into(),
            kind: Some(InfoKind::Bridge),
            alias: mark::bridge(&config, &one),
            ..Link::default()
        };
        let half = Link { alias: String::new(), mac: Some(names::mac_of_bridge("volt0")), ..marked.clone() };
        for ours in [
            marked.clone(),
            // Renamed.
            Link { name: "br0".into(), ..marked.clone() },
            Link { alias: mark::bridge(&config, &Instance::default()), ..marked.clone() },
            Link { alias: "volt-vmm network".into(), ..marked.clone() },
            half.clone(),
        ] {
            assert!(ours.is_bridge_of("volt0", &one), "{ours:?}");
        }
        for foreign in [
            Link { alias: mark::bridge(&config, &other), ..marked.clone() },
            Link { alias: String::new(), ..marked.clone() },
            Link { kind: Some(InfoKind::Dummy), ..marked.clone() },
            Link { alias: "uplink".into(), ..half.clone() },
            Link { mac: Some(names::mac_of_bridge("volt1")), ..half },
            Link { alias: "volt-vmm network".into(), name: "br0".into(), ..marked },
        ] {
            assert!(!foreign.is_bridge_of("volt0", &one), "{foreign:?}");
        }
    }

    /// `dev_set_alias` and `dev_valid_name` take any bytes.
    #[test]
    fn name_and_alias_that_are_not_utf8_are_somebody_s_and_not_empty() {
        let mut link = body(&LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).build());
        link.extend(attribute(libc::IFLA_ADDRESS, &names::mac_of_bridge("volt0").bytes()));
        assert!(Link::read(&link).unwrap().bridge_mark().is_some(), "half made");
        link.extend(attribute(libc::IFLA_IFALIAS, &[0xff]));
        let foreign = Link::read(&link).unwrap();
        assert_eq!((foreign.alias.as_str(), foreign.bridge_mark()), ("\u{fffd}", None));
        let named = body(&LinkUnspec::new_with_index(7).build());
        let named = [named, attribute(libc::IFLA_IFNAME, &[0xff, 0])].concat();
        assert_eq!(Link::read(&named).unwrap().name, "\u{fffd}");
    }

    #[test]
    fn link_is_read_field_by_field() {
        let bridge = |stp, vlans| {
            let builder = LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).up().mtu(1400).controller(9);
            let builder = builder.address(vec![2, 0, 0, 0, 0, 1]).alias("volt-vmm network").link_group(3);
            let builder =
                builder.append_info_data(InfoBridge::StpState(stp)).append_info_data(InfoBridge::VlanFiltering(vlans));
            let builder = builder
                .append_info_data(InfoBridge::ForwardDelay(0))
                .append_info_data(InfoBridge::MulticastSnooping(true))
                .set_port_kind(InfoPortKind::Bridge)
                .set_port_data(InfoPortData::BridgePort(vec![
                    InfoBridgePort::State(BridgePortState::Forwarding),
                    InfoBridgePort::Learning(false),
                    InfoBridgePort::UnicastFlood(true),
                    InfoBridgePort::GroupFwdMask(0xfffd),
                    InfoBridgePort::Isolated(true),
                ]));
            let mut bytes = body(&builder.arp(false).carrier(false).build());
            let other_name = attribute(libc::IFLA_ALT_IFNAME, b"other\0");
            bytes.extend(attribute(libc::IFLA_PROP_LIST, &other_name));
            let conf = attribute(IFLA_INET6_CONF, &[0; 4 * (DEVCONF_DISABLE_IPV6 + 1)]);
            bytes.extend(attribute(libc::IFLA_AF_SPEC, &attribute(libc::AF_INET6 as u16, &conf)));
            let traffic: Vec<u8> = (1..=24_u64).flat_map(u64::to_ne_bytes).collect();
            bytes.extend(attribute(libc::IFLA_STATS64, &traffic));
            bytes.extend(attribute(IFLA_PARENT_DEV_NAME, b"0000:01:00.0\0"));
            bytes.extend(attribute(libc::IFLA_VFINFO_LIST, &attribute(1, &[])));
            bytes
        };
        let expected = Link {
            index: 7,
            name: "volt0".into(),
            alternatives: vec!["other".into()],
            alias: "volt-vmm network".into(),
            kind: Some(InfoKind::Bridge),
            up: true,
            no_arp: true,
            no_carrier: true,
            mtu: 1400,
            mac: Some(Mac::new([2, 0, 0, 0, 0, 1]).unwrap()),
            master: 9,
            lower: 0,
            vlan: 0,
            mode: 0,
            all_multicast: false,
            stp: false,
            vlans: false,
            delay: 0,
            snooping: true,
            open: true,
            learning: false,
            flood: true,
            isolated: true,
            forwarded: 0xfffd,
            ipv6: true,
            accept_ra: false,
            forwards: false,
            group: 3,
            device: "0000:01:00.0".into(),
            functions: vec![Vf::default()],
            came: Count { packets: 1, bytes: 3 },
            went: Count { packets: 2, bytes: 4 },
        };
        assert_eq!(Link::read(&bridge(BridgeStpState::Disabled, false)).unwrap(), expected);
        let on = Link { stp: true, ..expected.clone() };
        assert_eq!(Link::read(&bridge(BridgeStpState::KernelStp, false)).unwrap(), on);
        let on = Link { vlans: true, ..expected };
        assert_eq!(Link::read(&bridge(BridgeStpState::Disabled, true)).unwrap(), on);
    }

    #[test]
    fn vlan_of_an_interface_is_told_from_one_of_another_protocol() {
        let vlan = |protocol| {
            let builder = LinkMessageBuilder::<LinkVlan>::new("v7").index(7).link(3);
            body(&builder.append_info_data(InfoVlan::Id(4094)).append_info_data(InfoVlan::Protocol(protocol)).build())
        };
        let link = Link::read(&vlan(VlanProtocol::Ieee8021Q)).unwrap();
        assert_eq!((link.kind, link.lower, link.vlan), (Some(InfoKind::Vlan), 3, 4094));
        assert_eq!(Link::read(&vlan(VlanProtocol::Ieee8021Ad)).unwrap().vlan, 0);
    }

    #[test]
    fn attribute_that_netmgr_does_not_look_at_may_be_what_it_likes() {
        let mut link = body(&LinkMessageBuilder::<LinkBridge>::new("volt0").index(7).build());
        link.extend([attribute(libc::IFLA_QDISC, &[0xff]), attribute(0x3fff, &[1; 5])].concat());
        let expected = Link { index: 7, name: "volt0".into(), kind: Some(InfoKind::Bridge), ..Link::default() };
        assert_eq!(Link::read(&link).unwrap(), expected);
        // Details of a kind that is not a bridge, with a port of no bytes, on which the crate's own parser panics.
        let mut foreign = body(&LinkUnspec::new_with_name("x").index(7).build());
        foreign.extend([24, 0, libc::IFLA_LINKINFO as u8, 0, 11, 0, libc::IFLA_INFO_KIND as u8, 0]);
        foreign.extend(b"bareudp\0");
        foreign.extend([8, 0, libc::IFLA_INFO_DATA as u8, 0, 4, 0, 3, 0]);
        assert_eq!(Link::read(&foreign).unwrap().kind, Some(InfoKind::BareUdp));
    }
}
