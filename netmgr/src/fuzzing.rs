//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use rtnetlink::packet_core::NetlinkPayload;
use schema::net::is_of_ipv6_hosts;
use testkit::input::Input;

use crate::{
    address::Address,
    config::Config,
    instance::Instance,
    link::Link,
    mark::{self, BridgeMark, PortMark},
    message::Message,
    netlink::{answer, messages},
    nft::{Said, concerns},
};

/// A datagram on a netlink socket: it comes to its end, and what is read of it is within what the kernel's own types hold.
pub fn netlink_answers(data: &[u8]) {
    let mut count = 0;
    for message in messages::<Message>(data) {
        count += 1;
        let Ok(message) = message else { continue };
        match message.payload {
            NetlinkPayload::InnerMessage(Message::Link(link)) => {
                assert!(link.index != 0 && !link.name.is_empty());
                interface(&link);
            }
            NetlinkPayload::InnerMessage(Message::Address(assigned)) => {
                let (address, network) = (assigned.address, assigned.address.network());
                assert!(address.prefix <= Address::longest(address.ip) && network.overlaps(address));
                assert!(network.contains(address) && network.network() == network && network.ip <= address.ip);
                assert!(address.broadcast().is_none_or(|last| address.ip <= last));
            }
            NetlinkPayload::InnerMessage(Message::Route(route)) => {
                assert!(route.to.prefix <= Address::longest(route.to.ip) && route.holds(route.to));
            }
            NetlinkPayload::Error(error) => {
                let _why = answer(error.raw_code(), &error.header);
            }
            NetlinkPayload::Done(done) => {
                let all_well = matches!(answer(done.code, &done.extended_ack), Ok(Ok(())));
                assert_eq!(all_well, done.code == 0);
            }
            _ => {}
        }
    }
    // A message has a header at least, and the first that is none is the last.
    assert!(count <= data.len() / 16 + 1);
    // The same, as what nf_tables says.
    assert!(messages::<Said>(data).count() <= data.len() / 16 + 1);
    let _ = concerns(data, "volt-vmm");
}

fn interface(link: &Link) {
    let name = link.bridge_mark().and_then(|mark| mark.config).map(|config| config.name);
    let owner = link.bridge_mark().map(|mark| mark.owner).unwrap_or_default();
    assert_eq!(link.is_bridge_of(&name.unwrap_or_else(|| link.name.clone()), &owner), link.bridge_mark().is_some());
}

/// An interface's alias: what is read as a mark is written as one that is read as the same, and nothing else is both a bridge's and a port's.
pub fn interface_marks(data: &[u8]) {
    let Ok(alias) = std::str::from_utf8(data) else { return };
    let (bridge, port) = (mark::read_bridge(alias), mark::read_port(alias));
    assert!(bridge.is_none() || port.is_none());
    if let Some(BridgeMark { config: Some(config), owner }) = &bridge {
        let again = mark::bridge(config, owner);
        assert!(again.len() < 256, "IFALIASZ: {again}");
        assert_eq!(mark::read_bridge(&again), bridge);
    }
    if let Some((function, owner)) = mark::read_function(alias) {
        assert!(bridge.is_none() && port.is_none());
        let again = mark::function(&function, &owner);
        assert!(again.len() < 255, "IFALIASZ, and its NUL: {again}");
        assert_eq!(mark::read_function(&again), Some((function, owner)));
    }
    if let Some(PortMark { workload, mac, on: Some((network, mtu)), sources, policed, owner }) = &port {
        let again = mark::port(workload, *mac, network, *mtu, owner, sources, *policed);
        assert!(again.len() < 255, "IFALIASZ, and its NUL: {again}");
        assert_eq!(mark::read_port(&again), port);
    }
}

/// A network as a caller defines it: what is taken is one that the rules allow, and its mark is read as the same.
pub fn network_config(data: &[u8]) {
    let mut input = Input::new(data);
    let [prefix, len] = input.array();
    let mtu = input.u32();
    let name = input.take(len.into());
    let [Ok(name), Ok(rest)] = [name, input.take(128)].map(std::str::from_utf8) else { return };
    let (gateway, ipv6) = rest.split_once('\n').unwrap_or((rest, ""));
    let owner = Instance::default();
    let config = Config::new(name, gateway, prefix, mtu).and_then(|config| config.with_ipv6(ipv6, &owner));
    let Ok(config) = config else { return };
    assert_eq!(config.ipv6.is_none(), ipv6.is_empty());
    assert!(config.ipv6.is_none_or(|address| address.prefix == 64 && is_of_ipv6_hosts(address.ip)));
    assert_eq!(config.name, name);
    match config.address {
        None => assert!(gateway.is_empty() && prefix == 0),
        Some(address) => {
            assert_eq!((address.ip.to_string().as_str(), address.prefix), (gateway, prefix));
            assert!(address.subnet().has_host(address.ip));
        }
    }
    if config.mtu != 0 {
        let marked = mark::read_bridge(&mark::bridge(&config, &owner));
        assert_eq!(marked.and_then(|mark| mark.config), Some(config));
    }
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_netlink_answers_break_no_promise() {
        replay("netlink_answers", super::netlink_answers);
    }

    #[test]
    fn kept_aliases_break_no_promise() {
        replay("interface_marks", super::interface_marks);
    }

    #[test]
    fn kept_networks_break_no_promise() {
        replay("network_config", super::network_config);
    }
}
