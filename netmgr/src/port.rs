//! Ports: TAPs that are made, configured, put on a bridge and taken away. Touches only TAPs that netmgr made.

use std::os::fd::OwnedFd;

use rtnetlink::{
    LinkUnspec,
    packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, Prop},
    },
};

use crate::{
    error::Error,
    kernel::{Kernel, Steps, odd},
    names::{self, Mac, TapName},
    tap,
};

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
    let whom = || LinkUnspec::new_with_name(name);
    let mark = names::port_mark(workload, wanted.mac);
    let mut steps = Steps::default();
    // The host's IPv6 has no business on a bridge's port: no link-local address, and no solicitations that the guest would see.
    // A kernel without IPv6 refuses, and that is as good.
    let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let no_ipv6 = whom().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6]));
    steps.set("keep IPv6 off a TAP", no_ipv6).or_not();
    // Before the bridge, whose own MTU the kernel may fit to that of a port that comes.
    steps.set(
        format!("mark TAP {name}, and set its MAC address and its MTU of {}", wanted.mtu),
        whom().alias(&mark).address(wanted.mac.host_side().0.to_vec()).mtu(wanted.mtu),
    );
    if let Some(full) = full {
        let names = LinkAttribute::PropList(vec![Prop::AltIfName(full.clone())]);
        steps.add(
            format!("give TAP {name} the alternative name {full}"),
            NLM_F_CREATE | NLM_F_EXCL | NLM_F_APPEND,
            RouteNetlinkMessage::NewLinkProp(whom().append_extra_attribute(names).build()),
        );
    }
    steps.set(format!("put TAP {name} on bridge {network} and bring it up"), whom().controller(bridge).up());
    steps.get(whom()).get(LinkUnspec::new_with_index(bridge));
    let mut links = kernel.run(&mut steps).map_err(|error| refine(kernel, error, wanted, full.as_deref()))?.into_iter();
    let (Some(port), Some(master)) = (links.next(), links.next()) else { return Err(odd("make a port")) };
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
    kernel.delete(index, |link| link.kind == Some(InfoKind::Tun) && link.alias == mark)
}

/// Puts a port that is there on another bridge, unless its interface is gone.
pub fn reattach(kernel: &mut Kernel, index: u32, workload: &str, mac: Mac, bridge: u32) -> Result<(), Error> {
    let mark = names::port_mark(workload, mac);
    if kernel.link(LinkUnspec::new_with_index(index))?.is_none_or(|link| link.alias != mark) {
        return Ok(());
    }
    let back = LinkUnspec::new_with_index(index).controller(bridge);
    kernel.run(Steps::default().set(format!("put the port of {workload} on its bridge again"), back))?;
    Ok(())
}

/// Says what a refusal means, where that can be told.
fn refine(kernel: &mut Kernel, error: Error, wanted: &Wanted<'_>, full: Option<&str>) -> Error {
    let Error::Kernel { source, tried, .. } = &error else { return error };
    match (source.raw_os_error(), full) {
        (Some(libc::EXFULL), _) => Error::Full { what: "ports on the bridge", limit: 1023 },
        (Some(libc::EEXIST), Some(full)) if tried.ends_with(full) => Error::ForeignInterface { name: full.to_owned() },
        _ => match kernel.link(LinkUnspec::new_with_index(wanted.bridge)) {
            Ok(bridge) if !bridge.as_ref().is_some_and(|bridge| bridge.is_our_bridge(wanted.network)) => {
                Error::BridgeGone(wanted.network.to_owned())
            }
            _ => error,
        },
    }
}
