//! Bridges: made, adopted, brought to a configuration, removed. Touches only bridges that netmgr made.

use std::net::Ipv4Addr;

use rtnetlink::{
    AddressMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        RouteNetlinkMessage,
        address::AddressMessage,
        link::{BridgeStpState, InfoBridge, InfoData, InfoKind},
    },
};

use crate::{
    config::{Address, Config},
    error::Error,
    kernel::{Kernel, Steps, Whom, odd},
    link::Link,
    names::{self, Mac},
};

/// Makes the bridge of a network, or brings the one that is there to `config`; gives its interface index.
/// A bridge that is made here and cannot be brought to `config` is taken away again.
pub fn define(kernel: &mut Kernel, config: &Config) -> Result<u32, Error> {
    let foreign = || Error::ForeignInterface { name: config.name.clone() };
    let there = kernel.link(LinkUnspec::new_with_name(&config.name))?;
    if there.as_ref().is_some_and(|link| !link.is_our_bridge(&config.name)) {
        return Err(foreign());
    }
    if let Some(subnet) = config.address
        && let Some((held, holder)) = kernel.holder(subnet, there.as_ref().map(|link| link.index))?
    {
        return Err(Error::SubnetHeld { subnet, held, holder });
    }
    match there {
        Some(link) => configure(kernel, &link, config),
        None => {
            let link = make(kernel, &config.name)?.ok_or_else(foreign)?;
            configure(kernel, &link, config).inspect_err(|_| {
                // The error that is reported is the first one. What this leaves, the next definition adopts.
                let _ = kernel.delete(link.index, |link| link.is_our_bridge(&config.name));
            })
        }
    }
}

/// Takes a network's bridge off the host, if it is still there.
pub fn remove(kernel: &mut Kernel, network: &str, index: u32) -> Result<(), Error> {
    kernel.delete(index, |link| link.is_our_bridge(network))
}

/// Every bridge that netmgr, this one or an earlier one, has made, with the configuration that it has.
pub fn existing(kernel: &mut Kernel) -> Result<Vec<(u32, Config)>, Error> {
    let bridges: Vec<Link> = kernel.links(None)?.into_iter().filter(|link| link.is_our_bridge(&link.name)).collect();
    let addresses = if bridges.is_empty() { Vec::new() } else { kernel.addresses()? };
    let address = |index: u32| addresses.iter().find(|(of, _)| *of == index).map(|(_, address)| *address);
    Ok(bridges
        .into_iter()
        .map(|link| (link.index, Config { address: address(link.index), name: link.name, mtu: link.mtu }))
        .collect())
}

/// Makes a bridge, down and without mark; `None` if the name is taken.
fn make(kernel: &mut Kernel, name: &str) -> Result<Option<Link>, Error> {
    let mut steps = Steps::default();
    // The address is fixed for the gateway's sake, and tells that the bridge is ours until the mark is set.
    let bridge = no_stp().name(name).address(Mac::of_bridge(name).0.to_vec());
    let message = RouteNetlinkMessage::NewLink(bridge.build());
    steps.add(format!("make bridge {name}"), NLM_F_CREATE | NLM_F_EXCL, message);
    let links = match kernel.run(steps.get(LinkUnspec::new_with_name(name))) {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => return Ok(None),
        links => links?,
    };
    let link = links.into_iter().next().ok_or(odd("make a bridge"))?;
    Ok(link.is_our_bridge(name).then_some(link))
}

fn no_stp() -> Whom {
    let off = InfoData::Bridge(vec![InfoBridge::StpState(BridgeStpState::Disabled)]);
    Whom::new_with_info_kind(InfoKind::Bridge).set_info_data(off)
}

fn configure(kernel: &mut Kernel, link: &Link, config: &Config) -> Result<u32, Error> {
    let name = &config.name;
    let bridge = || LinkUnspec::new_with_index(link.index);
    let has: Vec<Address> =
        kernel.addresses()?.into_iter().filter(|(of, _)| *of == link.index).map(|(_, address)| address).collect();
    // While a new one is still down.
    kernel.ipv6_off(name);
    let mut steps = Steps::default();
    // Set apart from creation: an MTU that is given there is lost when the first port comes.
    let mut marked = bridge().alias(names::BRIDGE_MARK).mtu(config.mtu);
    if link.mac != Some(Mac::of_bridge(name)) {
        marked = marked.address(Mac::of_bridge(name).0.to_vec());
    }
    steps.set(format!("mark bridge {name}, and set its MTU to {}", config.mtu), marked);
    if link.stp {
        let message = RouteNetlinkMessage::NewLink(no_stp().index(link.index).build());
        steps.add(format!("switch off the spanning tree protocol of {name}"), 0, message);
    }
    // First those that go: a subnet's first address takes the others with it.
    for gone in has.iter().filter(|address| Some(**address) != config.address) {
        let message = RouteNetlinkMessage::DelAddress(address(link.index, *gone));
        steps.add(format!("take {gone} off {name}"), 0, message);
    }
    if let Some(new) = config.address.filter(|address| !has.contains(address)) {
        let message = RouteNetlinkMessage::NewAddress(address(link.index, new));
        steps.add(format!("give {new} to {name}"), NLM_F_CREATE | NLM_F_REPLACE, message);
    }
    steps.set(format!("bring {name} up"), bridge().up()).get(bridge());
    let now = kernel.run(&mut steps)?.pop().ok_or(odd("configure a bridge"))?;
    if now.is_our_bridge(name) && now.up && now.mtu == config.mtu {
        Ok(now.index)
    } else {
        Err(Error::Answer {
            tried: format!("bring bridge {name} to its configuration"),
            why: "it has another name, state or MTU",
        })
    }
}

fn address(index: u32, address: Address) -> AddressMessage {
    AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address.ip, address.prefix).build()
}

#[cfg(test)]
mod tests {
    use rustix::thread::UnshareFlags;

    use super::*;

    /// The failure that is injected comes after the bridge has been made: the kernel takes no address with such a prefix.
    #[test]
    fn bridge_that_cannot_be_configured_is_taken_away_again_unless_it_was_there() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: making a network namespace takes root");
            return;
        }
        let test = || {
            // SAFETY: takes this thread's network namespace apart from the process's, which is all it does.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            let mut kernel = Kernel::open().unwrap();
            let good = Config::new("volt0", "10.42.0.1", 24, 0).unwrap();
            let bad = Config { address: Some(Address { ip: Ipv4Addr::new(10, 42, 0, 1), prefix: 33 }), ..good.clone() };
            let error = define(&mut kernel, &bad).unwrap_err();
            assert!(matches!(&error, Error::Kernel { tried, .. } if tried.starts_with("give 10.42.0.1/33")), "{error}");
            assert_eq!(kernel.links(None).unwrap().len(), 1, "lo");
            let index = define(&mut kernel, &good).unwrap();
            define(&mut kernel, &bad).unwrap_err();
            assert!(
                kernel.link(LinkUnspec::new_with_index(index)).unwrap().is_some_and(|link| link.is_our_bridge("volt0"))
            );
            assert_eq!(define(&mut kernel, &good).unwrap(), index);
            assert_eq!(kernel.addresses().unwrap(), [(index, good.address.unwrap())]);
            remove(&mut kernel, "volt0", index).unwrap();
            assert_eq!(kernel.links(None).unwrap().len(), 1);
        };
        std::thread::spawn(test).join().unwrap();
    }
}
