//! Uplinks, by which a network is a VLAN of an interface of the host's, its parent (IEEE 802.1Q): an interface of the kernel's kind `vlan` on that one,
//! which is a port of the network's bridge. Guests send and get frames without a tag; the kernel puts it on, and takes it off, where they leave and come.
//! Touches only what netmgr made; of the parent, nothing is changed (but that the kernel has it take frames for whomever, as a bridge's port does).
//!
//! It is no guest's port: its bridge learns from it who is behind it, sends it what might be anybody's, and what comes by it is looked at as what comes
//! from the outside ([`nft`](crate::nft)). It is there whether its parent is up or not.

use rtnetlink::{
    LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
            InfoVlan, LinkAttribute, VlanFlags,
        },
    },
};

use crate::{
    ask::{incomplete, retried_from_look, retried_if_passing},
    bridge::Wanted,
    config::Uplink,
    error::Error,
    instance::Instance,
    link::Link,
    mark, names,
    rtnl::{Batch, LinkBuilder, Rtnl},
};

/// Whether a network's uplink is just so; or there is none, where there should be none.
pub fn is(rtnl: &Rtnl, wanted: Wanted<'_>, bridge: u32, links: &[Link]) -> bool {
    let found = links.iter().find(|link| may_be(link, wanted, bridge));
    let Some(uplink) = &wanted.config.uplink else { return found.is_none() };
    let parent = links.iter().find(|link| is_called(link, &uplink.parent));
    let (Some(link), Some(parent)) = (found, parent) else { return false };
    link.name == names::uplink(&wanted.config.name)
        && link.alias == mark::uplink(&wanted.config.name, wanted.owner)
        && (link.lower, link.vlan) == (parent.index, uplink.vlan)
        && (link.master, link.up, link.mtu) == (bridge, true, wanted.config.mtu)
        && link.learning
        && link.flood
        && link.group != names::half_made(wanted.owner)
        && !rtnl.port_has_ipv6(link)
}

/// The MTU of the interface that a network's uplink is to be on; nothing for one without. An interface of Volt's own is none for that.
pub fn bound(rtnl: &mut Rtnl, wanted: Wanted<'_>) -> Result<Option<u32>, Error> {
    let Some(uplink) = &wanted.config.uplink else { return Ok(None) };
    let links = rtnl.links()?;
    parent(&links, uplink, &wanted.config.name).map(|parent| Some(parent.mtu))
}

/// Makes the uplink of a network that is to be, on no bridge as yet, so that what the kernel refuses it refuses before anything else is changed.
pub fn prepare(rtnl: &mut Rtnl, wanted: Wanted<'_>, bridge: Option<u32>) -> Result<(), Error> {
    if wanted.config.uplink.is_some() { find(rtnl, wanted, bridge.unwrap_or(0)).map(drop) } else { Ok(()) }
}

/// Brings a network's uplink to its definition, or takes it away where there should be none.
pub fn bring(rtnl: &mut Rtnl, wanted: Wanted<'_>, bridge: u32) -> Result<(), Error> {
    if wanted.config.uplink.is_none() {
        return remove(rtnl, wanted, bridge);
    }
    retried_from_look(|| {
        let link = find(rtnl, wanted, bridge)?;
        configure(rtnl, &link, wanted, bridge)
    })
}

/// Takes a network's uplink off the host.
pub fn remove(rtnl: &mut Rtnl, wanted: Wanted<'_>, bridge: u32) -> Result<(), Error> {
    match rtnl.links()?.iter().find(|link| may_be(link, wanted, bridge)) {
        Some(link) => rtnl.delete(link.index, |link| may_be(link, wanted, bridge)),
        None => Ok(()),
    }
}

/// Whether it is what that network's bridge has as its uplink.
pub fn may_be(link: &Link, Wanted { config, owner }: Wanted<'_>, bridge: u32) -> bool {
    let named = || link.name == names::uplink(&config.name);
    let cleared =
        || link.alias.is_empty() && named() && (bridge != 0 && link.master == bridge || is_half_made(link, owner));
    link.kind == Some(InfoKind::Vlan)
        && match mark::read_uplink(&link.alias) {
            Some((network, of)) => network == config.name && of == *owner,
            None => cleared(),
        }
}

/// Whether it is one that was made for a network that is not `known` any more, or never came to be one.
pub fn is_left_over(link: &Link, owner: &Instance, known: impl Fn(&str) -> bool) -> bool {
    link.kind == Some(InfoKind::Vlan)
        && match mark::read_uplink(&link.alias) {
            Some((network, of)) => of == *owner && !known(network),
            None => is_half_made(link, owner),
        }
}

fn is_half_made(link: &Link, owner: &Instance) -> bool {
    link.alias.is_empty() && link.group == names::half_made(owner)
}

fn is_called(link: &Link, name: &str) -> bool {
    link.name == name || link.alternatives.iter().any(|other| other == name)
}

fn parent<'a>(links: &'a [Link], uplink: &Uplink, network: &str) -> Result<&'a Link, Error> {
    let parent = &uplink.parent;
    let missing = || Error::NoParent { parent: parent.clone(), network: network.to_owned() };
    let link = links.iter().find(|link| is_called(link, parent)).ok_or_else(missing)?;
    is_foreign(link, parent).map(|()| link)
}

/// Whether a network may be on an interface, which was given as `parent`: one that is not of Volt's own.
pub fn is_foreign(link: &Link, parent: &str) -> Result<(), Error> {
    let ours = link.bridge_mark().is_some()
        || mark::read_port(&link.alias).is_some()
        || mark::read_uplink(&link.alias).is_some()
        || mark::read_function(&link.alias).is_some();
    if ours { Err(Error::argument("parent", parent, "it is an interface of Volt's own")) } else { Ok(()) }
}

/// The one that is there, or a new one in its place: on that parent, of that VLAN.
fn find(rtnl: &mut Rtnl, wanted: Wanted<'_>, bridge: u32) -> Result<Link, Error> {
    let links = rtnl.links()?;
    let Some(uplink) = &wanted.config.uplink else { return Err(incomplete("make an uplink")) };
    let on = parent(&links, uplink, &wanted.config.name)?;
    if let Some(link) = links.iter().find(|link| may_be(link, wanted, bridge)) {
        if (link.lower, link.vlan) == (on.index, uplink.vlan) {
            return Ok(link.clone());
        }
        rtnl.delete(link.index, |link| may_be(link, wanted, bridge))?;
    }
    let name = names::uplink(&wanted.config.name);
    make(rtnl, &name, on, uplink.vlan, wanted.owner).map_err(|error| match &error {
        Error::Kernel { source, detail, .. } => match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) if detail.contains("VLANs not supported") => {
                Error::argument("parent", &uplink.parent, "such an interface has no VLANs")
            }
            Some(libc::EOPNOTSUPP) => Error::NoVlans(source.kind().into()),
            Some(libc::EEXIST) => {
                let taken = links.iter().find(|link| (link.lower, link.vlan) == (on.index, uplink.vlan));
                match taken {
                    Some(taken) => Error::VlanTaken {
                        vlan: uplink.vlan,
                        parent: uplink.parent.clone(),
                        interface: taken.name.clone(),
                    },
                    None => Error::ForeignInterface { name },
                }
            }
            _ => error,
        },
        _ => error,
    })
}

fn make(rtnl: &mut Rtnl, name: &str, parent: &Link, vlan: u16, owner: &Instance) -> Result<Link, Error> {
    // Its parent may come up later, or go down meanwhile: that is nobody's to mend.
    let loose = VlanFlags::LooseBinding | VlanFlags::ReorderHdr;
    let data = InfoData::Vlan(vec![InfoVlan::Id(vlan), InfoVlan::Flags((loose, loose))]);
    let new = LinkBuilder::new_with_info_kind(InfoKind::Vlan).name(name.to_owned()).link(parent.index);
    let new = RouteNetlinkMessage::NewLink(new.link_group(names::half_made(owner)).set_info_data(data).build());
    retried_if_passing(|| {
        let mut batch = Batch::default();
        batch.add(format!("make VLAN {vlan} of {}", parent.name), NLM_F_CREATE | NLM_F_EXCL, new.clone());
        let made = rtnl.run(batch.get(LinkUnspec::new_with_name(name)))?.pop();
        made.ok_or_else(|| incomplete("make an uplink"))
    })
}

fn configure(rtnl: &mut Rtnl, link: &Link, wanted: Wanted<'_>, bridge: u32) -> Result<(), Error> {
    let (network, mtu, name) = (&wanted.config.name, wanted.config.mtu, names::uplink(&wanted.config.name));
    let whom = || LinkUnspec::new_with_index(link.index);
    let mut batch = Batch::default();
    if link.name != name {
        // Kernels before 6.2 rename no interface that is up.
        batch.set(format!("take {} down", link.name), whom().down());
        batch.set(format!("give {} its name {name} again", link.name), whom().name(name.clone()));
        rtnl.run(&mut batch)?;
    }
    // As of a port.
    let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let no_ipv6 = whom().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]));
    batch.set("keep IPv6 off an uplink", no_ipv6).optional();
    rtnl.ipv6_off_port(&name);
    let marked = whom().alias(mark::uplink(network, wanted.owner)).mtu(mtu);
    batch.set(format!("mark {name}, and set its MTU to {mtu}"), marked);
    batch.set(format!("put {name} on bridge {network}"), whom().controller(bridge));
    let settings = vec![InfoBridgePort::Learning(true), InfoBridgePort::UnicastFlood(true)];
    let port = whom().set_port_kind(InfoPortKind::Bridge).set_port_data(InfoPortData::BridgePort(settings));
    let tried = format!("have the bridge learn who is behind {name}");
    batch.add(tried, 0, RouteNetlinkMessage::NewLink(port.build()));
    batch.set(format!("bring {name} up"), whom().link_group(0).up());
    rtnl.run(&mut batch).map(drop).map_err(|error| match &error {
        Error::Kernel { source, .. } if source.raw_os_error() == Some(libc::ERANGE) => {
            too_large(wanted.config.uplink.as_ref(), mtu)
        }
        _ => error,
    })
}

/// A network's MTU is more than what its parent takes.
pub fn too_large(uplink: Option<&Uplink>, mtu: u32) -> Error {
    let parent = uplink.map(|uplink| uplink.parent.clone()).unwrap_or_default();
    Error::ParentMtu { parent, mtu }
}
