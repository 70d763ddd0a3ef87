//! Ports: TAPs, and host ends of veths, that are made, configured, put on a bridge and taken away. Touches only those that netmgr made.

use std::collections::BTreeMap;

use rtnetlink::{
    LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute},
    },
};

use crate::{
    ask::{incomplete, retried_from_look, retried_if_passing},
    error::Error,
    forwarding,
    instance::Instance,
    link::Link,
    macvtap, mark,
    names::{self, Kind},
    nft::Filter,
    rtnl::{Batch, Rtnl},
    tap,
    veth::{self, Inside},
    wanted::{FORWARDED, Made, Wanted, call},
};

/// Makes a TAP and puts it on the bridge, ready for frames: three exchanges with the kernel beside the three system calls that make the TAP and
/// those for one setting. The first, while the TAP has its name and is on no bridge yet, tells the `filter` what may come from it. (The bridge's
/// table is asked for by the interface's index, which only the second one's answer tells.) On an error the TAP, which is not persistent, goes
/// with its only descriptor, and all that was done to it.
///
/// On an isolated network it is made under another name in netmgr's own namespace, and moved from there, before all that: two exchanges more.
///
/// A veth is made `inside` a namespace in the place of that, by one exchange more, and two within it. On an error it is deleted.
pub fn attach(
    rtnl: &mut Rtnl,
    filter: &mut Option<Filter>,
    wanted: &Wanted<'_>,
    inside: Option<&mut Inside>,
) -> Result<Made, Error> {
    match (inside, wanted.kind) {
        (_, Kind::Macvtap(mode)) => macvtap::attach(rtnl, filter, wanted, mode),
        (None, _) => retried_if_passing(|| attach_tap(rtnl, filter, wanted)),
        (Some(inside), _) => attach_veth(rtnl, filter, wanted, inside),
    }
}

fn attach_veth(
    rtnl: &mut Rtnl,
    filter: &mut Option<Filter>,
    wanted: &Wanted<'_>,
    inside: &mut Inside,
) -> Result<Made, Error> {
    inside.prove()?;
    let Some(index) = retried_if_passing(|| veth::make(rtnl, wanted, inside))? else { return Ok(Made::NameTaken) };
    let made = inside.configure(wanted.workload, wanted.sources).and_then(|()| put_there(rtnl, filter, wanted));
    if made.is_err() {
        // The error that is reported is the first one. What this leaves, the next netmgr takes away.
        let _ = rtnl.delete(index, |link| veth::is_half_made(link, wanted.owner) || wanted.may_be(link));
        forget(filter, wanted);
    }
    made.map(|index| Made::Port(None, index))
}

fn attach_tap(rtnl: &mut Rtnl, filter: &mut Option<Filter>, wanted: &Wanted<'_>) -> Result<Made, Error> {
    let passing = rtnl.is_elsewhere().then(|| names::passing(wanted.network, wanted.name, wanted.owner));
    let name = passing.as_deref().unwrap_or(wanted.name);
    let tap = match tap::make(name) {
        Ok(tap) => tap,
        Err(tap::Failure::NameTaken) if passing.is_some() => {
            return Err(Error::ForeignInterface { name: name.to_owned() });
        }
        Err(tap::Failure::NameTaken) => return Ok(Made::NameTaken),
        Err(tap::Failure::Open(error))
            if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) =>
        {
            return Err(Error::Kernel { tried: format!("open {}", tap::DEVICE), source: error, detail: String::new() });
        }
        Err(tap::Failure::Open(error)) => return Err(Error::NoTun(error)),
        Err(tap::Failure::Make(error)) if error.raw_os_error() == Some(libc::EPERM) => {
            return Err(Error::NoRight(format!("make TAP {name}")));
        }
        Err(tap::Failure::Make(source)) => {
            return Err(Error::Kernel { tried: format!("make TAP {name}"), source, detail: String::new() });
        }
    };
    if passing.is_some() && !rtnl.fetch(name, wanted.name)? {
        return Ok(Made::NameTaken);
    }
    match put_there(rtnl, filter, wanted) {
        Ok(index) => Ok(Made::Port(Some(tap), index)),
        Err(error) => {
            drop(tap);
            forget(filter, wanted);
            Err(error)
        }
    }
}

/// Tells the filter what may come from a port, and puts that on its bridge; gives its interface index.
fn put_there(rtnl: &mut Rtnl, filter: &mut Option<Filter>, wanted: &Wanted<'_>) -> Result<u32, Error> {
    if let Some(filter) = filter {
        filter.add(wanted.sends())?;
    }
    put_on_bridge(rtnl, wanted)
}

/// Tells the filter that a port is not to be. What this leaves there, the next look takes away.
fn forget(filter: &mut Option<Filter>, wanted: &Wanted<'_>) {
    if let Some(filter) = filter {
        let _ = filter.remove([wanted.name].into_iter());
    }
}

/// Configures a port and puts it on its bridge; gives its interface index.
fn put_on_bridge(rtnl: &mut Rtnl, wanted: &Wanted<'_>) -> Result<u32, Error> {
    let Wanted { kind, name, network, bridge, .. } = *wanted;
    let whom = || LinkUnspec::new_with_name(name);
    let mut batch = Batch::default();
    // The host's IPv6 has no business on a bridge's port: no link-local address, and no solicitations that the guest would see.
    if !rtnl.ipv6_off_port(name) {
        let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let no_ipv6 = whom().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]));
        // A kernel without IPv6 refuses, and that is as good.
        batch.set("keep IPv6 off a port", no_ipv6).optional();
    }
    // Down, so that no frame comes before the bridge knows whose it is. The kernel does these in this order: before it is on the bridge, whose own MTU
    // may be fitted to that of a port that comes, it has its own.
    let marked = whom().alias(wanted.mark()).address(wanted.mac.host_side().bytes().to_vec()).mtu(wanted.mtu);
    // No longer half made ([`names::half_made`]).
    let marked = if kind == Kind::Veth { marked.link_group(0) } else { marked };
    let tried = format!(
        "mark {kind} {name}, set its MAC address and its MTU of {}, and put it on bridge {network}",
        wanted.mtu
    );
    batch.set(tried, marked.controller(bridge));
    let alternatives = wanted.alternatives();
    alternatives.iter().for_each(|full| call(&mut batch, whom(), wanted, full));
    batch.get(whom()).get(LinkUnspec::new_with_index(bridge));
    let mut links = rtnl.run(&mut batch).map_err(|error| refine(rtnl, error, wanted, &alternatives))?.into_iter();
    let (Some(port), Some(master)) = (links.next(), links.next()) else { return Err(incomplete("make a port")) };
    if !master.is_bridge_of(network, wanted.owner) {
        return Err(Error::BridgeGone(network.to_owned()));
    }
    let whom = || LinkUnspec::new_with_index(port.index);
    // Which the host may have known by another MAC address: what it sends there now, nobody would take.
    for address in wanted.sources.iter() {
        let neighbour = RouteNetlinkMessage::DelNeighbour(forwarding::neighbour(bridge, address));
        batch.add("forget who had an address", 0, neighbour).optional();
    }
    bring_up(&mut batch, wanted, port.index, false);
    let mut links = rtnl.run(batch.get(whom())).map_err(|error| refine(rtnl, error, wanted, &[]))?.into_iter();
    let port = links.next().ok_or(incomplete("make a port"))?;
    if !wanted.is(&port) || rtnl.port_has_ipv6(&port) {
        return Err(Error::Answer {
            tried: format!("put {kind} {name} on bridge {network}"),
            why: "it has not become what it should be".into(),
        });
    }
    Ok(port.index)
}

/// Has ports not be kept from one another any more, on a bridge that did.
pub fn join(rtnl: &mut Rtnl, ports: impl Iterator<Item = u32>) -> Result<(), Error> {
    let mut batch = Batch::default();
    for index in ports {
        let setting = vec![InfoBridgePort::Isolated(false)];
        let whom = LinkUnspec::new_with_index(index).set_port_kind(InfoPortKind::Bridge);
        let message = whom.set_port_data(InfoPortData::BridgePort(setting)).build();
        // One that is not on a bridge, or not there, is mended, or forgotten.
        batch.add("let a port send to others", 0, RouteNetlinkMessage::NewLink(message)).optional();
    }
    if batch.is_empty() { Ok(()) } else { rtnl.run(&mut batch).map(drop) }
}

/// Keeps the guest's address on its port, and then, as the last of all, brings that up: on the bridge, or not at all. First the bridge learns nothing any more
/// from what comes from it, hands none of it to the host past the filter ([`FORWARDED`]), and does not send it what might be anybody's; and, if need be,
/// it forgets what it has learnt.
fn bring_up(batch: &mut Batch, wanted: &Wanted<'_>, index: u32, forget: bool) {
    let Wanted { kind, name, network, bridge, mac, isolate, .. } = wanted;
    batch.add(
        format!("keep the MAC address {mac} on {kind} {name}"),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewNeighbour(wanted.entry(index).message()),
    );
    let mut settings = vec![
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::GroupFwdMask(FORWARDED),
    ];
    // One that is not may be whoever's who runs the host ([`Wanted::is`]).
    settings.extend(isolate.then_some(InfoBridgePort::Isolated(true)));
    settings.extend(forget.then_some(InfoBridgePort::Flush));
    // The kernel does what is the bridge's before it brings the interface up, and nothing at all where that is on no bridge.
    let port = LinkUnspec::new_with_index(index).controller(*bridge).up();
    let port = port.set_port_kind(InfoPortKind::Bridge).set_port_data(InfoPortData::BridgePort(settings));
    let tried =
        format!("set what bridge {network} learns from {kind} {name}, and forwards to and from it, and bring that up");
    batch.add(tried, 0, RouteNetlinkMessage::NewLink(port.build()));
}

/// Brings a port that was made back to what it should be; `None` if it is there no more, else whether it was not as it should be.
pub fn mend(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<Option<bool>, Error> {
    retried_from_look(|| match wanted.kind {
        Kind::Macvtap(_) => macvtap::mend(rtnl, wanted, index),
        _ => try_mend(rtnl, wanted, index),
    })
}

fn try_mend(rtnl: &mut Rtnl, wanted: &Wanted<'_>, index: u32) -> Result<Option<bool>, Error> {
    let whom = || LinkUnspec::new_with_index(index);
    let Some(link) = rtnl.link(whom())?.filter(|link| wanted.may_be(link)) else { return Ok(None) };
    let is_kept = rtnl.forwards(index, wanted.mac)? == Some(wanted.entry(index));
    let changed = !(is_kept && wanted.is(&link)) || rtnl.port_has_ipv6(&link);
    if changed {
        let mut batch = Batch::default();
        let Wanted { kind, name, network, bridge, .. } = *wanted;
        if link.name != name {
            // Kernels before 6.2 rename no interface that is up.
            batch.set(format!("take {} down", link.name), whom().down());
            batch.set(format!("give {} its name {name} again", link.name), whom().name(name));
        }
        let marked = whom().alias(wanted.mark()).address(wanted.mac.host_side().bytes().to_vec()).mtu(wanted.mtu);
        batch.set(format!("mark {kind} {name} again, and set its MAC address and its MTU"), marked);
        for full in wanted.alternatives().iter().filter(|full| !link.alternatives.contains(full)) {
            call(&mut batch, whom(), wanted, full);
        }
        if link.no_carrier && kind == Kind::Tap {
            batch.set(format!("give {kind} {name} its carrier again"), whom().carrier(true));
        }
        batch.set(format!("put {kind} {name} on bridge {network} again"), whom().controller(bridge));
        bring_up(&mut batch, wanted, index, true);
        rtnl.ipv6_off_port(&link.name);
        rtnl.run(&mut batch).map_err(|error| refine(rtnl, error, wanted, &[]))?;
    }
    Ok(Some(changed))
}

/// Has nothing come from ports' interfaces or go to them any more, whoever has their TAPs open, and marks them as given up: they stay on their bridge,
/// under the filter's eyes, until they are taken off the host, by whichever netmgr. One that cannot be cut off is taken away at once; the outcome for
/// each.
pub fn cut_off(rtnl: &mut Rtnl, ports: &[(u32, Wanted<'_>)]) -> Vec<Result<(), Error>> {
    // Where that fails, they go one by one; and a macvtap always, as it may have its parent for itself.
    let now = try_cut_off(rtnl, ports).unwrap_or_default();
    let each = ports.iter().map(|(index, wanted)| {
        let is_cut = |link: &Link| link.index == *index && !link.up && mark::is_gone(&link.alias, wanted.owner);
        if now.iter().any(is_cut) { Ok(()) } else { macvtap::delete(rtnl, wanted, *index) }
    });
    each.collect()
}

fn try_cut_off(rtnl: &mut Rtnl, ports: &[(u32, Wanted<'_>)]) -> Result<Vec<Link>, Error> {
    let mut batch = Batch::default();
    for (index, wanted) in ports.iter().filter(|(_, wanted)| !matches!(wanted.kind, Kind::Macvtap(_))) {
        let whom = || LinkUnspec::new_with_index(*index);
        if rtnl.link(whom())?.is_some_and(|link| wanted.may_be(&link)) {
            let given_up = whom().alias(mark::gone(wanted.owner)).down();
            batch.set("cut off an interface", given_up).optional().get(whom()).optional();
        }
    }
    rtnl.run(&mut batch)
}

/// Takes interfaces of ports that were given up off the host and sees to it that they are gone, whoever still has their TAPs open; the outcome
/// for each. `group` is one that no interface is in.
///
/// Deleting one interface takes the kernel some 20 ms (it waits until no CPU looks at it any more), and deleting all of a group hardly
/// longer. So several are put in one first.
pub fn detach(rtnl: &mut Rtnl, indexes: &[u32], owner: &Instance, group: u32) -> Vec<Result<(), Error>> {
    if indexes.len() > 1 {
        // Where that fails, they go one by one.
        let _ = detach_group(rtnl, indexes, owner, group);
    }
    indexes.iter().map(|index| rtnl.delete(*index, |link| mark::is_gone(&link.alias, owner))).collect()
}

fn detach_group(rtnl: &mut Rtnl, indexes: &[u32], owner: &Instance, group: u32) -> Result<(), Error> {
    let links: BTreeMap<u32, Link> = rtnl.links()?.into_iter().map(|link| (link.index, link)).collect();
    if links.values().any(|link| link.group == group) {
        return Err(Error::Answer { tried: "choose a group of interfaces".into(), why: "somebody uses it".into() });
    }
    let mut batch = Batch::default();
    let ours = |index: &&u32| links.get(index).is_some_and(|link| mark::is_gone(&link.alias, owner));
    for index in indexes.iter().filter(ours) {
        batch.set("put an interface in a group", LinkUnspec::new_with_index(*index).link_group(group)).optional();
    }
    let all = RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(0).link_group(group).build());
    rtnl.run(batch.add("delete the interfaces of a group", 0, all)).map(drop)
}

/// Says what a refusal means, where that can be told.
fn refine(rtnl: &mut Rtnl, error: Error, wanted: &Wanted<'_>, alternatives: &[String]) -> Error {
    let Error::Kernel { source, tried, .. } = &error else { return error };
    match (source.raw_os_error(), alternatives.iter().find(|full| tried.ends_with(*full))) {
        (Some(libc::EXFULL), _) => Error::BridgeFull(wanted.network.to_owned()),
        (Some(libc::EEXIST), Some(full)) => Error::ForeignInterface { name: full.clone() },
        _ => match rtnl.link(LinkUnspec::new_with_index(wanted.bridge)) {
            Ok(bridge) if !bridge.as_ref().is_some_and(|bridge| bridge.is_bridge_of(wanted.network, wanted.owner)) => {
                Error::BridgeGone(wanted.network.to_owned())
            }
            _ => error,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{bridge, config::Config, sources::Sources};

    /// As a container's does at any moment, with its namespace.
    #[test]
    fn port_that_goes_while_it_is_mended_is_gone_and_no_error() {
        if !testkit::user::is_root() {
            return testkit::skip!("making a network namespace takes root");
        }
        let test = || {
            testkit::namespace::network().unwrap();
            let mut rtnl = Rtnl::open().unwrap();
            let config = Config::new("volt0", "10.42.0.1", 24, 1500).unwrap();
            let (owner, sources) = (Instance::default(), Sources::default());
            let bridge = bridge::define(&mut rtnl, bridge::Wanted { config: &config, owner: &owner }, None).unwrap();
            let (mac, name) = (names::mac_of_guest("volt0", "one"), names::first(Kind::Tap, "one").name);
            let wanted = Wanted {
                kind: Kind::Tap,
                name: &name,
                network: "volt0",
                bridge,
                mtu: 1500,
                isolate: false,
                workload: "one",
                mac,
                sources: &sources,
                reference: None,
                policy: None,
                function: None,
                owner: &owner,
            };
            let mut gone = 0;
            for _ in 0..50 {
                let made = attach(&mut rtnl, &mut None, &wanted, None).unwrap();
                let Made::Port(Some(tap), index) = made else { panic!("no TAP") };
                let down = || LinkUnspec::new_with_index(index).down();
                thread::scope(|scope| {
                    scope.spawn(|| drop(tap));
                    // Each time there is something to mend, until it is gone.
                    loop {
                        _ = rtnl.run(Batch::default().set("take it down", down()).optional());
                        match mend(&mut rtnl, &wanted, index).unwrap() {
                            Some(_) => {}
                            None => break gone += 1,
                        }
                    }
                });
            }
            assert_eq!(gone, 50);
        };
        thread::spawn(test).join().unwrap();
    }
}
