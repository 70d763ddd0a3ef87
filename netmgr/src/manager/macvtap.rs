//! Networks without a bridge, whose ports are macvtaps on an interface of the host's. That interface is never changed, nor does it say anywhere that such a
//! network is: a later netmgr knows of one that has ports, and of another once it is defined again.

use std::collections::BTreeMap;

use schema::network_capnp::MacvtapMode;

use crate::{
    config::{AUTO, Config, Kind as NetworkKind},
    error::Error,
    macvtap,
    manager::{Manager, NetworkId, find, fits, has_room},
    names::Kind,
    network::Network,
    nft::Sender,
    ports::Port,
    uplink,
};

/// What a port of a network is made of: a veth's, if it is to have an end in a namespace.
pub fn kind(network: &Config, within: bool) -> Result<Kind, Error> {
    match (network.kind, within) {
        (kind @ (NetworkKind::Macvtap(_) | NetworkKind::Sriov { .. }), true) => {
            Err(Error::NotForContainers { network: network.name.clone(), kind })
        }
        (NetworkKind::Macvtap(mode), false) => Ok(Kind::Macvtap(mode)),
        (NetworkKind::Sriov { .. }, false) => Ok(Kind::Macvtap(MacvtapMode::Passthru)),
        (_, true) => Ok(Kind::Veth),
        (_, false) => Ok(Kind::Tap),
    }
}

/// What may come from all of the macvtaps of networks.
pub fn senders(networks: &BTreeMap<String, Network>) -> impl Iterator<Item = Sender<'_>> {
    let macvtaps = networks.iter().filter(|(_, network)| network.config.is_macvtap());
    macvtaps.flat_map(|(name, network)| network.ports.iter().map(|(workload, port)| port.sends(workload, name)))
}

impl Manager {
    /// Defines such a network, or changes one, with `ipv6` of `NetworkConfig`.
    pub fn define_macvtap(&mut self, config: Config, ipv6: &str) -> Result<NetworkId, Error> {
        if ipv6 == AUTO {
            let why = "a network of macvtaps is on one that somebody else has numbered; give its router's address there, or none";
            return Err(Error::argument("IPv6 address", ipv6, why));
        }
        let config = config.with_ipv6(ipv6, &self.instance)?;
        if config.isolate {
            let why = match config.kind {
                NetworkKind::Sriov { .. } => {
                    "which virtual functions reach one another is for their card to say; leave it out"
                }
                _ => "guests of macvtaps are kept from one another by the mode private; leave it out",
            };
            return Err(Error::argument("isolate", "true", why));
        }
        if self.filter.is_none() {
            return Err(macvtap::no_filter());
        }
        let serial = self.next();
        let Manager { rtnl, instance, networks, isolated, .. } = self;
        let known = networks.get(&config.name);
        fits(known, &config)?;
        let has_others = |known: &Network| {
            (&known.config.uplink, known.config.kind) != (&config.uplink, config.kind) && !known.ports.is_empty()
        };
        if let Some(known) = known.filter(|known| has_others(known)) {
            return Err(Error::PortsAttached { name: config.name, ports: known.ports.len() });
        }
        if known.is_none() {
            has_room(networks, isolated)?;
        }
        let parent = macvtap::parent(rtnl, &config)?;
        let mtu = if config.mtu == 0 { parent.mtu } else { config.mtu };
        if mtu > parent.mtu {
            return Err(uplink::too_large(config.uplink.as_ref(), mtu));
        }
        let (name, config) = (config.name.clone(), Config { mtu, ..config });
        let network =
            networks.entry(name.clone()).or_insert_with(|| Network::new(serial, parent.index, config.clone()));
        (network.index, network.config) = (parent.index, config);
        let id = NetworkId { name, serial: network.serial };
        let links = rtnl.links()?;
        network.adopt(&links, instance, || 0);
        self.guard(&links)?;
        let Manager { rtnl, instance, networks, .. } = self;
        find(networks, &id)?.mend_ports(rtnl, instance, &links)?;
        Ok(id)
    }

    /// Forgets such a network, which has no port.
    pub fn remove_macvtap(&mut self, id: &NetworkId) -> Result<(), Error> {
        let network = find(&mut self.networks, id)?;
        let left = |(workload, port): (&String, &Port)| {
            port.is_left().then(|| Error::MacvtapLeft { interface: port.interface.clone(), workload: workload.clone() })
        };
        if let Some(left) = network.ports.iter().find_map(left) {
            return Err(left);
        }
        if !network.ports.is_empty() {
            return Err(Error::PortsAttached { name: id.name.clone(), ports: network.ports.len() });
        }
        self.networks.remove(&id.name);
        if self.networks.is_empty() {
            self.clear();
        }
        Ok(())
    }

    /// Takes away the rules of macvtaps that have gone while there was no netmgr. Those of the others are put there anew when they are looked at.
    pub fn sweep_guards(&mut self) {
        let Manager { filter: Some(filter), networks, .. } = self else { return };
        let kept = |interface: &str| senders(networks).any(|port| port.interface == interface);
        if let Err(error) = filter.sweep_guards(kept)
            && !matches!(error, Error::NoRight(_))
        {
            confine::say!("netmgr: {}", error.fault("take away what an earlier netmgr has left"));
        }
    }
}
