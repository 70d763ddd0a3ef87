//! Macvtaps: interfaces of guests' own on an interface of the host's, each with a MAC address there (linux/if_link.h; drivers/net/macvtap.c). Touches
//! the host's interfaces by [`Rtnl`], and their devices, which another process opens ([`Devices`](crate::sysfs::Devices)), by a few requests.
//!
//! A macvtap stays when the last descriptor of its device is closed, and nobody can ask the kernel whether one is open: so it is here that it ends.
//! What the interface gets while nobody has it open comes to the host, which therefore has no IPv6 there and answers no ARP.

use std::{
    collections::BTreeSet,
    io, mem,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use rtnetlink::{
    LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoMacVtap, LinkAttribute, MacVtapFlags,
            MacVtapMode,
        },
    },
};
use schema::{net::Mac, network_capnp::MacvtapMode};

use crate::{
    ask::{incomplete, retried_if_passing},
    config::{Config, Kind as NetworkKind, Uplink},
    error::Error,
    forwarding,
    instance::Instance,
    link::Link,
    mark,
    names::{self, Kind},
    nft::Filter,
    rtnl::{Batch, LinkBuilder, Rtnl, Snapshot},
    tap, uplink, veth,
    vf::Function,
    wanted::{Made, Wanted, call},
};

/// What the libc crate lacks for some of its targets: the MAC address of an interface, by its device.
const SIOCGIFHWADDR: libc::Ioctl = 0x8927;
/// The requests that the filter lets through.
pub const REQUESTS: [libc::Ioctl; 2] = [libc::TUNGETIFF, SIOCGIFHWADDR];

/// On a virtual function it has what that one's card gives it, and asks for nothing else.
fn with(mode: MacvtapMode, on_function: bool) -> LinkBuilder {
    let mode = match mode {
        MacvtapMode::Bridge => MacVtapMode::Bridge,
        MacvtapMode::PrivateMode => MacVtapMode::Private,
        MacvtapMode::Vepa => MacVtapMode::Vepa,
        MacvtapMode::Passthru => MacVtapMode::Passthrough,
    };
    let flags = on_function.then_some(InfoMacVtap::Flags(MacVtapFlags::NoPromisc));
    let data = [InfoMacVtap::Mode(mode)].into_iter().chain(flags).collect();
    LinkBuilder::new_with_info_kind(InfoKind::MacVtap).set_info_data(InfoData::MacVtap(data))
}

/// The networks whose ports an earlier netmgr of `owner` has left, with their parents' indices: what is known of them is what a port's mark says, and the
/// kernel of its interface.
pub fn existing(snapshot: &Snapshot, owner: &Instance) -> Vec<(u32, Config)> {
    let found = snapshot.links.iter().filter_map(|link| {
        let Some(Kind::Macvtap(mode)) = Kind::of(link) else { return None };
        let mark = mark::read_port(&link.alias).filter(|mark| mark.owner == *owner)?;
        let (name, mtu) = mark.on?;
        let lower = snapshot.link(link.lower)?;
        let (parent, kind, vlan) = match Function::of(lower, owner) {
            Some(Function { card, trust, vlan, .. }) => (snapshot.link(card)?, NetworkKind::Sriov { trust }, vlan),
            None => (lower, NetworkKind::Macvtap(mode), 0),
        };
        let uplink = Some(Uplink { parent: parent.name.clone(), vlan });
        Some((parent.index, Config { name, address: None, ipv6: None, mtu, kind, uplink, isolate: false }))
    });
    found.collect()
}

/// The interface that a network is on: one of the host's.
pub fn parent(rtnl: &mut Rtnl, config: &Config) -> Result<Link, Error> {
    let parent = config.uplink.as_ref().map_or("", |uplink| &uplink.parent);
    let missing = || Error::NoParent { parent: parent.to_owned(), network: config.name.clone() };
    let found = rtnl.link(LinkUnspec::new_with_name(parent))?.ok_or_else(missing)?;
    uplink::is_foreign(&found, parent)?;
    Ok(found)
}

/// Makes a macvtap, opens its device, and brings it up. On an error it is deleted.
pub fn attach(
    rtnl: &mut Rtnl,
    filter: &mut Option<Filter>,
    wanted: &Wanted<'_>,
    mode: MacvtapMode,
) -> Result<Made, Error> {
    let filter = filter.as_mut().ok_or_else(no_filter)?;
    if let Some(function) = wanted.function
        && let Some(beneath) = rtnl.link(LinkUnspec::new_with_index(function.interface))?
    {
        filter.keep_off_also(&beneath.name)?;
    }
    let nonce = rtnl.macvtaps.as_mut().ok_or_else(no_devices)?.nonce();
    // One on a virtual function has that one's address, which no nonce can be: its name is one at first.
    let name = names::passing_macvtap(nonce);
    let (first, address) = match wanted.function {
        Some(_) => (Wanted { name: &name, ..*wanted }, wanted.mac),
        None => (*wanted, nonce),
    };
    let Some(index) = retried_if_passing(|| make(rtnl, &first, mode, nonce))? else { return Ok(Made::NameTaken) };
    let made = open(rtnl, &first, index, address).and_then(|device| {
        if first.name != wanted.name && !rename(rtnl, wanted, index)? {
            return Ok(None);
        }
        filter.guard(wanted.sends())?;
        bring_up(rtnl, wanted, index)?;
        Ok(Some(device))
    });
    if !matches!(made, Ok(Some(_))) {
        // The error that is reported is the first one. What this leaves, the next netmgr takes away.
        let _ = rtnl.delete(index, |link| veth::is_half_made(link, wanted.owner) || wanted.may_be(link));
        let _ = filter.unguard(wanted.name);
    }
    Ok(made?.map_or(Made::NameTaken, |device| Made::Port(Some(device), index)))
}

/// Gives a macvtap its name; `false` if somebody has it.
fn rename(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<bool, Error> {
    let whom = LinkUnspec::new_with_index(index).name(wanted.name);
    match rtnl.run(Batch::default().set(format!("give macvtap {} its name", wanted.name), whom)) {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        renamed => renamed.map(|_| true),
    }
}

/// No filter of what guests send: then there is no macvtap either, whose guest would be anybody on a network that is not Volt's.
pub fn no_filter() -> Error {
    Error::NoEgress(io::ErrorKind::Unsupported.into())
}

fn no_devices() -> Error {
    Error::NoMacvtap(io::ErrorKind::NotFound.into())
}

/// Makes one, down; `None` if the host has an interface of that name, else its index.
fn make(rtnl: &mut Rtnl, wanted: &Wanted<'_>, mode: MacvtapMode, nonce: Mac) -> Result<Option<u32>, Error> {
    let Wanted { name, bridge: parent, mtu, owner, .. } = *wanted;
    let tried = format!("make macvtap {name}");
    let address = nonce.bytes().to_vec();
    let on_function = wanted.function.is_some();
    let link = with(mode, on_function).name(name).link(parent).address(address.clone()).mtu(mtu);
    let link = RouteNetlinkMessage::NewLink(link.link_group(names::half_made(owner)).build());
    let mut cleared = false;
    loop {
        let mut batch = Batch::default();
        batch.add(tried.clone(), NLM_F_CREATE | NLM_F_EXCL, link.clone());
        if mode == MacvtapMode::Passthru && !on_function {
            // One that is alone there has its parent's at first, whatever is asked for.
            batch
                .set("set a macvtap's MAC address", LinkUnspec::new_with_name(name).address(address.clone()))
                .optional();
        }
        let source = match rtnl.run(batch.get(LinkUnspec::new_with_name(name))) {
            Err(Error::Kernel { source, tried, detail }) => match source.raw_os_error() {
                Some(libc::EEXIST) => source,
                Some(libc::ENODEV) => {
                    let (network, parent) = (wanted.network.to_owned(), format!("with index {parent}"));
                    return Err(Error::NoParent { network, parent });
                }
                Some(libc::EBUSY | libc::EINVAL) => return Err(Error::ParentBusy { tried, source }),
                Some(libc::EOPNOTSUPP) => return Err(Error::NoMacvtap(source)),
                _ => return Err(Error::Kernel { source, tried, detail }),
            },
            links => {
                let made = links?.into_iter().find(|link| veth::is_half_made(link, owner));
                return made.map(|link| Some(link.index)).ok_or_else(|| incomplete(&tried));
            }
        };
        match rtnl.link(LinkUnspec::new_with_name(name))? {
            // What an attempt before has left that could not be undone.
            Some(link) if veth::is_half_made(&link, owner) && !cleared => {
                rtnl.delete(link.index, |link| veth::is_half_made(link, owner))?;
                cleared = true;
            }
            Some(_) => return Ok(None),
            None => return Err(Error::Kernel { tried, source, detail: String::new() }),
        }
    }
}

/// Opens a macvtap's device, and sees to it that it is that one's and no other's, and as a TAP's is.
fn open(rtnl: &Rtnl, wanted: &Wanted<'_>, index: u32, nonce: Mac) -> Result<OwnedFd, Error> {
    let devices = rtnl.macvtaps.as_ref().ok_or_else(no_devices)?;
    let device = devices.open(wanted.name, index).map_err(Error::NoMacvtap)?;
    let another = || Error::Answer {
        tried: format!("open the device of macvtap {}", wanted.name),
        why: "it is another interface's: /sys is of another network namespace".into(),
    };
    // SAFETY: all-zero bytes are a valid ifreq: integers and unions of them.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let mut ask = |what| {
        // SAFETY: both requests fill in the ifreq they are given, which lives through the call.
        let answer = unsafe { libc::ioctl(device.as_raw_fd(), what, &raw mut request) };
        // SAFETY: what the kernel has filled in of the union, or left as zeros: bytes, in either case.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        (answer == 0).then_some((request.ifr_name, address)).ok_or_else(another)
    };
    let (name, _) = ask(libc::TUNGETIFF)?;
    let (_, address) = ask(SIOCGIFHWADDR)?;
    let is_name = name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8).eq(wanted.name.bytes());
    if !is_name || !address.iter().take(6).map(|byte| *byte as u8).eq(nonce.bytes()) {
        return Err(another());
    }
    tap::size_header(&device).map_err(|source| Error::Kernel {
        tried: format!("set the header of macvtap {}", wanted.name),
        source,
        detail: String::new(),
    })?;
    Ok(device)
}

/// Makes it what it should be, and brings it up as the last of all.
fn bring_up(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<(), Error> {
    let whom = || LinkUnspec::new_with_index(index);
    let mut batch = Batch::default();
    settle(&mut batch, wanted, index);
    wanted.alternatives().iter().for_each(|full| call(&mut batch, whom(), wanted, full));
    let taken = |error| match error {
        // Of another macvtap, or of the parent itself.
        Error::Kernel { source, .. } if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EADDRINUSE)) => {
            Error::MacTaken { mac: wanted.mac.to_string(), network: wanted.network.to_owned() }
        }
        error => error,
    };
    rtnl.run(&mut batch).map_err(taken)?;
    rtnl.set_ipv6(wanted.name, false)?;
    up(&mut batch, wanted, index);
    let links = rtnl.run(batch.get(whom())).map_err(taken)?;
    let link = links.into_iter().next().ok_or_else(|| incomplete("make a macvtap"))?;
    if !is(rtnl, wanted, &link) {
        let why = "it has not become what it should be".into();
        return Err(Error::Answer { tried: format!("bring macvtap {} up", wanted.name), why });
    }
    Ok(())
}

/// What is set of it in each case.
fn settle(batch: &mut Batch, wanted: &Wanted<'_>, index: u32) {
    let (name, whom) = (wanted.name, || LinkUnspec::new_with_index(index));
    let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let no_ipv6 = whom().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]));
    // A kernel without IPv6 refuses, and that is as good.
    batch.set("keep IPv6 off a macvtap", no_ipv6).optional();
    let marked = whom().alias(wanted.mark()).address(wanted.mac.bytes().to_vec()).mtu(wanted.mtu).link_group(0);
    // What the guest hears of is the guest's to say, and not the host's.
    let marked = marked.arp(false).allmulticast(true);
    batch.set(format!("mark macvtap {name}, and set its MAC address and its MTU of {}", wanted.mtu), marked);
}

/// Brings it up, as the last of all. (The host's IPv6 is off then, whose own groups go with that.)
fn up(batch: &mut Batch, wanted: &Wanted<'_>, index: u32) {
    let name = wanted.name;
    for group in groups(wanted.mac, wanted.sources.iter()) {
        let heard = RouteNetlinkMessage::NewNeighbour(forwarding::group(index, group));
        // One that it is sent already is refused.
        batch.add(format!("have macvtap {name} be sent what is for its guest"), NLM_F_CREATE, heard).optional();
    }
    batch.set(format!("bring macvtap {name} up"), LinkUnspec::new_with_index(index).up());
}

/// The groups by which others find a guest that has IPv6, and routers tell it of themselves (RFC 4291, 2.7.1; RFC 2464, 7): some drivers, as of
/// virtual functions, let in those alone that they are told of, and say nothing when they are asked for all.
fn groups(mac: Mac, addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<[u8; 6]> {
    let solicited = |[.., a, b, c]: [u8; 16]| [0x33, 0x33, 0xff, a, b, c];
    let mut groups: BTreeSet<[u8; 6]> = addresses
        .filter_map(|address| match address {
            IpAddr::V6(address) => Some(solicited(address.octets())),
            IpAddr::V4(_) => None,
        })
        .collect();
    if !groups.is_empty() {
        let [.., a, b, c] = mac.bytes();
        groups.extend([[0x33, 0x33, 0xff, a, b, c], [0x33, 0x33, 0, 0, 0, 1]]);
    }
    groups
}

/// Whether the interface is just so.
pub fn is(rtnl: &Rtnl, wanted: &Wanted<'_>, link: &Link) -> bool {
    link.name == wanted.name
        && link.alias == wanted.mark()
        && (link.lower, link.up, link.mtu) == (wanted.bridge, true, wanted.mtu)
        && Kind::of(link) == Some(wanted.kind)
        && (link.no_arp, link.all_multicast) == (true, true)
        && link.mac == Some(wanted.mac)
        && rtnl.ipv6_is(link, false)
        && wanted.alternatives().iter().all(|name| link.alternatives.contains(name))
}

/// Takes a macvtap off the host, and gives the virtual function back that it was on.
pub fn delete(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<(), Error> {
    rtnl.delete(index, |link| wanted.may_be(link))?;
    give_back(rtnl, wanted)
}

fn give_back(rtnl: &mut Rtnl, wanted: &Wanted<'_>) -> Result<(), Error> {
    wanted.function.map_or(Ok(()), |function| function.give_back(rtnl, wanted.owner))
}

/// Brings one that was made back to what it should be; `None` if it is there no more, else whether it was not as it should be.
pub fn mend(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<Option<bool>, Error> {
    let whom = || LinkUnspec::new_with_index(index);
    let Some(link) = rtnl.link(whom())?.filter(|link| wanted.may_be(link)) else {
        // What this leaves, the next look gives back.
        let _ = give_back(rtnl, wanted);
        return Ok(None);
    };
    let mut changed = !is(rtnl, wanted, &link);
    if let Some(function) = wanted.function
        && !function.is_right(rtnl, wanted.mac, wanted.mtu, wanted.owner)?
    {
        function.settle(rtnl, wanted.mac, wanted.mtu, wanted.owner)?;
        changed = true;
    }
    if changed {
        let mut batch = Batch::default();
        if link.name != wanted.name {
            // Kernels before 6.2 rename no interface that is up.
            batch.set(format!("take {} down", link.name), whom().down());
            batch.set(format!("give {} its name {} again", link.name, wanted.name), whom().name(wanted.name));
        }
        if let Kind::Macvtap(mode) = wanted.kind
            && Kind::of(&link) != Some(wanted.kind)
        {
            let again = RouteNetlinkMessage::NewLink(with(mode, wanted.function.is_some()).index(index).build());
            batch.add(format!("set the mode of macvtap {} again", wanted.name), 0, again);
        }
        settle(&mut batch, wanted, index);
        for full in wanted.alternatives().iter().filter(|full| !link.alternatives.contains(full)) {
            call(&mut batch, whom(), wanted, full);
        }
        rtnl.run(&mut batch)?;
        rtnl.set_ipv6(wanted.name, false)?;
        up(&mut batch, wanted, index);
        rtnl.run(&mut batch)?;
    }
    Ok(Some(changed))
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn guest_with_ipv6_is_found_by_each_of_its_addresses_and_one_without_hears_no_group() {
        let mac = "02:00:00:0a:0b:0c".parse().unwrap();
        let groups = |addresses: &[&str]| {
            let found = groups(mac, addresses.iter().map(|address| address.parse().unwrap()));
            found.iter().map(|[a, b, c, d, e, f]| format!("{a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}")).collect::<Vec<_>>()
        };
        let own = ["33:33:0:0:0:1", "33:33:ff:a:b:c"];
        assert_eq!(groups(&["10.7.0.5"]), [""; 0]);
        // The one that follows from its MAC address.
        assert_eq!(groups(&["10.7.0.5", "2001:db8::ff:fe0a:b0c"]), own);
        assert_eq!(groups(&["2001:db8::1:2:3"]), ["33:33:0:0:0:1", "33:33:ff:2:0:3", "33:33:ff:a:b:c"]);
    }
}
