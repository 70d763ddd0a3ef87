//! Ports: TAPs that are made, configured, put on a bridge and taken away. Touches only TAPs that netmgr made.

use std::os::fd::OwnedFd;

use crate::{
    error::Error,
    kernel::{Kernel, Steps, Whom, header, odd},
    link::Link,
    names::{self, Mac, TapName},
    tap,
};

/// Address generation mode "none" for IPv6 (linux/if_link.h): IFLA_INET6_ADDR_GEN_MODE and IN6_ADDR_GEN_MODE_NONE.
const INET6_ADDR_GEN_MODE: (u16, u8) = (8, 1);
/// linux/rtnetlink.h.
const RTM_NEWLINKPROP: u16 = 108;
/// IFLA_PROP_LIST and IFLA_ALT_IFNAME (linux/if_link.h).
const PROP_LIST: u16 = 52;
const ALT_IFNAME: u16 = 53;

/// A port to be made.
pub struct Wanted<'a> {
    /// Network, which is the bridge's name.
    pub network: &'a str,
    /// The bridge's index.
    pub bridge: u32,
    /// Bytes; the bridge's.
    pub mtu: u32,
    /// The workload's name.
    pub workload: &'a str,
    /// The guest's address.
    pub mac: Mac,
}

/// What became of an attempt to make a port.
pub enum Made {
    /// The TAP and its interface index. The interface goes when the last descriptor is closed.
    Port(OwnedFd, u32),
    /// An interface of that name is there.
    NameTaken,
}

/// Makes a TAP and puts it on the bridge, ready for frames: one exchange with the kernel beside the three system calls that
/// make the TAP. On an error the TAP, which is not persistent, goes with its only descriptor, and all that was done to it.
pub fn attach(kernel: &mut Kernel, wanted: &Wanted<'_>, name: &TapName) -> Result<Made, Error> {
    let Wanted { network, bridge, workload, .. } = *wanted;
    let TapName { name, full } = name;
    let tap = match tap::make(name) {
        Ok(tap) => tap,
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
    let whom = Whom::Name(name);
    let mark = names::port_mark(workload, wanted.mac);
    let mut steps = Steps::default();
    // The host's IPv6 has no business on a bridge's port: no link-local address, and no solicitations that the guest would see.
    // A kernel without IPv6 refuses, and that is as good.
    steps.set("keep IPv6 off a TAP", whom, 0, |attributes| {
        attributes.nested(libc::IFLA_AF_SPEC, |families| {
            families.nested(libc::AF_INET6 as u16, |inet6| {
                inet6.bytes(INET6_ADDR_GEN_MODE.0, &[INET6_ADDR_GEN_MODE.1]);
            });
        });
    });
    steps.or_not();
    // Before the bridge, whose own MTU the kernel may fit to that of a port that comes.
    steps.set(
        format!("mark TAP {name}, and set its MAC address and its MTU of {}", wanted.mtu),
        whom,
        0,
        |attributes| {
            attributes
                .text(libc::IFLA_IFALIAS, &mark)
                .bytes(libc::IFLA_ADDRESS, &wanted.mac.host_side().0)
                .u32(libc::IFLA_MTU, wanted.mtu);
        },
    );
    if let Some(full) = full {
        let append = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_APPEND;
        steps.add(
            format!("give TAP {name} the alternative name {full}"),
            RTM_NEWLINKPROP,
            append,
            &header(whom, 0),
            |attributes| {
                whom.fill(attributes);
                attributes.nested(PROP_LIST, |properties| {
                    properties.text(ALT_IFNAME, full);
                });
            },
        );
    }
    steps.set(format!("put TAP {name} on bridge {network} and bring it up"), whom, libc::IFF_UP, |attributes| {
        attributes.u32(libc::IFLA_MASTER, bridge);
    });
    let answers = kernel
        .run(steps.get(whom).get(Whom::Index(bridge)))
        .map_err(|error| refine(kernel, error, wanted, full.as_deref()))?;
    let mut links = answers.into_iter().flatten().map(|body| Link::read(&body));
    let (Some(Some(port)), Some(Some(master))) = (links.next(), links.next()) else { return Err(odd("make a port")) };
    if !master.is_our_bridge(network) {
        return Err(Error::BridgeGone(network.to_owned()));
    }
    if port.alias != mark
        || port.master != bridge
        || !port.up
        || port.mtu != wanted.mtu
        || port.mac != Some(wanted.mac.host_side())
    {
        return Err(Error::Answer {
            tried: format!("put TAP {name} on bridge {network}"),
            why: "it has not become what it should be",
        });
    }
    Ok(Made::Port(tap, port.index))
}

/// Takes a port's interface off the host and sees to it that it is gone, whoever still has its TAP open.
pub fn detach(kernel: &mut Kernel, index: u32, workload: &str, mac: Mac) -> Result<(), Error> {
    let mark = names::port_mark(workload, mac);
    kernel.delete(index, |link| link.kind == "tun" && link.alias == mark)
}

/// Puts a port that is there on another bridge, unless its interface is gone.
pub fn reattach(kernel: &mut Kernel, index: u32, workload: &str, mac: Mac, bridge: u32) -> Result<(), Error> {
    let mark = names::port_mark(workload, mac);
    if kernel.link(Whom::Index(index))?.is_none_or(|link| link.alias != mark) {
        return Ok(());
    }
    let mut steps = Steps::default();
    kernel.run(steps.set(
        format!("put the port of {workload} on its bridge again"),
        Whom::Index(index),
        0,
        |attributes| {
            attributes.u32(libc::IFLA_MASTER, bridge);
        },
    ))?;
    Ok(())
}

/// Says what a refusal means, where that can be told.
fn refine(kernel: &mut Kernel, error: Error, wanted: &Wanted<'_>, full: Option<&str>) -> Error {
    let Error::Kernel { source, tried, .. } = &error else { return error };
    match (source.raw_os_error(), full) {
        (Some(libc::EXFULL), _) => Error::Full { what: "ports on the bridge", limit: 1023 },
        (Some(libc::EEXIST), Some(full)) if tried.ends_with(full) => Error::ForeignInterface { name: full.to_owned() },
        _ => match kernel.link(Whom::Index(wanted.bridge)) {
            Ok(bridge) if !bridge.as_ref().is_some_and(|bridge| bridge.is_our_bridge(wanted.network)) => {
                Error::BridgeGone(wanted.network.to_owned())
            }
            _ => error,
        },
    }
}
