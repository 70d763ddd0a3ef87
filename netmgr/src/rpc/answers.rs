//! Networks and ports, as answers have them.

use schema::network_capnp::{NetworkKind, network_config, port_info, port_stats, rate};

use crate::{
    config::{Config, Kind, Uplink},
    error::Error,
    manager::{PortFacts, Stats},
    nft::Counts,
    rate::Rate,
};

/// What a network is.
pub fn write_config(mut to: network_config::Builder<'_>, config: &Config) {
    to.set_name(&config.name);
    to.set_mtu(config.mtu);
    to.set_kind(match config.kind {
        Kind::Bridged | Kind::Nat => NetworkKind::Bridged,
        Kind::HostOnly => NetworkKind::HostOnly,
        Kind::Macvtap(_) => NetworkKind::Macvtap,
        Kind::Sriov { .. } => NetworkKind::Sriov,
        Kind::Isolated => NetworkKind::Isolated,
    });
    if let Kind::Macvtap(mode) = config.kind {
        to.set_mode(mode);
    }
    to.set_trust(config.kind == Kind::Sriov { trust: true });
    to.set_nat(config.kind.leads_outward());
    to.set_isolate(config.isolate);
    if let Some(address) = config.address {
        to.set_gateway(address.ip.to_string());
        to.set_prefix_length(address.prefix);
    }
    if let Some(address) = config.ipv6 {
        to.set_ipv6(address.to_string());
    }
    if let Some(Uplink { parent, vlan }) = &config.uplink {
        to.set_parent(parent);
        to.set_vlan(*vlan);
    }
}

/// What a port is.
pub fn write_port(mut to: port_info::Builder<'_>, facts: &PortFacts) {
    to.set_workload(&facts.workload);
    to.set_interface_name(&facts.interface);
    to.set_index(facts.index);
    to.set_mac(&facts.mac.bytes());
    to.set_network(&facts.network);
    to.set_mtu(facts.mtu);
}

/// And the addresses that go with it.
pub fn write_addresses(mut to: port_info::Builder<'_>, facts: &PortFacts) {
    let count = u32::try_from(facts.sources.iter().count()).unwrap_or(0);
    let mut addresses = to.reborrow().init_addresses(count);
    for (at, address) in (0..count).zip(facts.sources.iter()) {
        addresses.set(at, address.to_string());
    }
    let count = u32::try_from(facts.gateways.len()).unwrap_or(0);
    let mut gateways = to.init_gateways(count);
    for (at, gateway) in (0..count).zip(&facts.gateways) {
        gateways.set(at, gateway.to_string());
    }
}

/// How much it carries.
pub fn write_rate(mut to: rate::Builder<'_>, rate: Rate) {
    to.set_from_guest(rate.from_guest);
    to.set_to_guest(rate.to_guest);
}

/// How much a caller wants one to carry.
pub fn read_rate(rate: Result<rate::Reader<'_>, capnp::Error>) -> Result<Rate, Error> {
    let rate = rate.map_err(|_| Error::argument("rate", "", "it is no rate"))?;
    Rate::new(rate.get_from_guest(), rate.get_to_guest())
}

/// What it has carried.
pub fn write_stats(mut to: port_stats::Builder<'_>, Stats { policed, counts, from, to: went }: &Stats) {
    let Counts { allowed, denied, forged, over_from, over_to } = counts;
    to.set_policed(*policed);
    to.set_allowed_packets(allowed.packets);
    to.set_allowed_bytes(allowed.bytes);
    to.set_denied_packets(denied.packets);
    to.set_denied_bytes(denied.bytes);
    to.set_forged_packets(forged.packets);
    to.set_forged_bytes(forged.bytes);
    to.set_over_from_packets(over_from.packets);
    to.set_over_from_bytes(over_from.bytes);
    to.set_over_to_packets(over_to.packets);
    to.set_over_to_bytes(over_to.bytes);
    to.set_from_packets(from.packets);
    to.set_from_bytes(from.bytes);
    to.set_to_packets(went.packets);
    to.set_to_bytes(went.bytes);
}
