//! Bridges: made, adopted, brought to a configuration, removed. Touches only bridges that netmgr made.

use crate::{
    config::{Address, Config},
    error::Error,
    kernel::{Kernel, Steps, Whom, header, odd},
    link::{BR_STP_STATE, Link},
    names::{self, Mac},
    netlink::Attributes,
};

/// Makes the bridge of a network, or brings the one that is there to `config`; gives its interface index.
/// A bridge that is made here and cannot be brought to `config` is taken away again.
pub fn define(kernel: &mut Kernel, config: &Config) -> Result<u32, Error> {
    let foreign = || Error::ForeignInterface { name: config.name.clone() };
    let there = kernel.link(Whom::Name(&config.name))?;
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
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    steps.add(format!("make bridge {name}"), libc::RTM_NEWLINK, create, &header(Whom::Index(0), 0), |attributes| {
        // The address is fixed for the gateway's sake, and tells that the bridge is ours until the mark is set.
        attributes
            .text(libc::IFLA_IFNAME, name)
            .bytes(libc::IFLA_ADDRESS, &Mac::of_bridge(name).0)
            .nested(libc::IFLA_LINKINFO, no_stp);
    });
    let answers = match kernel.run(steps.get(Whom::Name(name))) {
        Err(Error::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => return Ok(None),
        answers => answers?,
    };
    let link = answers.into_iter().flatten().next().and_then(|body| Link::read(&body)).ok_or(odd("make a bridge"))?;
    Ok(link.is_our_bridge(name).then_some(link))
}

fn no_stp(info: &mut Attributes<'_>) {
    info.text(libc::IFLA_INFO_KIND, "bridge").nested(libc::IFLA_INFO_DATA, |data| {
        data.u32(BR_STP_STATE, 0);
    });
}

fn configure(kernel: &mut Kernel, link: &Link, config: &Config) -> Result<u32, Error> {
    let name = &config.name;
    let bridge = Whom::Index(link.index);
    let has: Vec<Address> =
        kernel.addresses()?.into_iter().filter(|(of, _)| *of == link.index).map(|(_, address)| address).collect();
    // While a new one is still down.
    kernel.ipv6_off(name);
    let mut steps = Steps::default();
    steps.set(format!("mark bridge {name}, and set its MTU to {}", config.mtu), bridge, 0, |attributes| {
        // Set apart from creation: an MTU that is given there is lost when the first port comes.
        attributes.text(libc::IFLA_IFALIAS, names::BRIDGE_MARK).u32(libc::IFLA_MTU, config.mtu);
        if link.mac != Some(Mac::of_bridge(name)) {
            attributes.bytes(libc::IFLA_ADDRESS, &Mac::of_bridge(name).0);
        }
    });
    if link.stp {
        steps.add(
            format!("switch off the spanning tree protocol of {name}"),
            libc::RTM_NEWLINK,
            0,
            &header(bridge, 0),
            |attributes| {
                attributes.nested(libc::IFLA_LINKINFO, no_stp);
            },
        );
    }
    // First those that go: a subnet's first address takes the others with it.
    for address in has.iter().filter(|address| Some(**address) != config.address) {
        change_address(&mut steps, format!("take {address} off {name}"), libc::RTM_DELADDR, 0, link.index, *address);
    }
    if let Some(address) = config.address.filter(|address| !has.contains(address)) {
        change_address(
            &mut steps,
            format!("give {address} to {name}"),
            libc::RTM_NEWADDR,
            libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            link.index,
            address,
        );
    }
    steps.set(format!("bring {name} up"), bridge, libc::IFF_UP, |_| ()).get(bridge);
    let answers = kernel.run(&mut steps)?;
    let now = answers
        .into_iter()
        .flatten()
        .next_back()
        .and_then(|body| Link::read(&body))
        .ok_or(odd("configure a bridge"))?;
    if now.is_our_bridge(name) && now.up && now.mtu == config.mtu {
        Ok(now.index)
    } else {
        Err(Error::Answer {
            tried: format!("bring bridge {name} to its configuration"),
            why: "it has another name, state or MTU",
        })
    }
}

fn change_address(steps: &mut Steps, tried: String, kind: u16, flags: i32, index: u32, address: Address) {
    // struct ifaddrmsg: family, prefix length, flags, scope (0: universe), interface index.
    let mut header = [libc::AF_INET as u8, address.prefix, 0, 0, 0, 0, 0, 0];
    for (to, from) in header.iter_mut().skip(4).zip(index.to_ne_bytes()) {
        *to = from;
    }
    steps.add(tried, kind, flags, &header, |attributes| {
        attributes.bytes(libc::IFA_LOCAL, &address.ip.octets()).bytes(libc::IFA_ADDRESS, &address.ip.octets());
        attributes.bytes(libc::IFA_BROADCAST, &address.broadcast().octets());
    });
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

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
            assert!(kernel.link(Whom::Index(index)).unwrap().is_some_and(|link| link.is_our_bridge("volt0")));
            assert_eq!(define(&mut kernel, &good).unwrap(), index);
            assert_eq!(kernel.addresses().unwrap(), [(index, good.address.unwrap())]);
            remove(&mut kernel, "volt0", index).unwrap();
            assert_eq!(kernel.links(None).unwrap().len(), 1);
        };
        std::thread::spawn(test).join().unwrap();
    }
}
