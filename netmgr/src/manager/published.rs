//! Ports of the host that are published: who may have which, and what becomes of them and of all connections with the ports that have them.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use schema::network_capnp::{MAX_PUBLISHED, MAX_PUBLISHED_BY_HOST};

use super::{Manager, NetworkId, PortId, find};
use crate::{
    config::{Config, Kind},
    error::Error,
    network::Network,
    ports::Port,
    published::{HostPort, Published, held},
};

/// Whose guest ports of the host are to lead to.
pub enum Whose {
    /// That of the workload's port on a network, whoever holds it.
    Of(NetworkId, String),
    /// That of the caller's own port.
    Held(PortId),
}

impl Whose {
    /// The network.
    pub fn network(&self) -> &NetworkId {
        let (Whose::Of(network, _) | Whose::Held(PortId { network, .. })) = self;
        network
    }

    fn workload(&self) -> &str {
        match self {
            Whose::Of(_, workload) => workload,
            Whose::Held(id) => &id.workload,
        }
    }
}

/// Whether ports of the host can lead to guests of that network.
fn check_published(network: &Config) -> Result<(), Error> {
    match network.kind {
        Kind::Bridged | Kind::Nat | Kind::HostOnly => Ok(()),
        kind @ (Kind::Macvtap(_) | Kind::Sriov { .. } | Kind::Isolated) => {
            Err(Error::NotPublishable { network: network.name.clone(), kind })
        }
    }
}

impl Manager {
    fn port(&mut self, whose: &Whose) -> Result<&mut Port, Error> {
        match whose {
            Whose::Held(id) => {
                let port = find(&mut self.networks, &id.network)?.ports.get_mut(&id.workload);
                port.filter(|port| port.is(id.serial) && !port.leaves()).ok_or(Error::Revoked("port"))
            }
            Whose::Of(id, workload) => {
                let port = find(&mut self.networks, id)?.ports.get_mut(workload).filter(|port| !port.leaves());
                port.ok_or_else(|| Error::NoSuchPort { workload: workload.clone(), network: id.name.clone() })
            }
        }
    }

    /// All that is published, and for which workloads.
    fn all_published(&self) -> impl Iterator<Item = (&str, &Published)> {
        let ports = self.networks.values().flat_map(|network| network.ports.iter());
        ports.flat_map(|(workload, port)| port.published.iter().map(move |one| (workload.as_str(), one)))
    }

    /// Publishes what these sockets are bound to for the guest of a port, on its ports from that one on.
    pub fn publish(&mut self, whose: &Whose, sockets: Vec<OwnedFd>, first: u16) -> Result<Vec<Published>, Error> {
        if !self.filter.as_ref().is_some_and(|filter| filter.routes()) {
            return Err(Error::NoRoutes);
        }
        let id = whose.network();
        check_published(&find(&mut self.networks, id)?.config)?;
        let (own, workload) = (self.rtnl.socket(), whose.workload());
        let port = self.port(whose)?;
        let mut new: Vec<Published> = Vec::new();
        for (socket, guest) in sockets.into_iter().zip(u32::from(first)..) {
            let host = held(&socket, own)?;
            let to = port.sources.iter().find(|address| address.is_ipv4() == host.at.is_ipv4());
            let to = to.ok_or_else(|| Error::NoAddress { workload: workload.to_owned(), host: host.to_string() })?;
            let beyond = "it must be 1 to 65535, as must those that follow it";
            let guest = u16::try_from(guest).ok().filter(|guest| *guest != 0);
            let guest = guest.ok_or_else(|| Error::argument("guest's port", &first.to_string(), beyond))?;
            if new.iter().any(|other| other.host.overlaps(&host)) {
                return Err(Error::Published { host: host.to_string(), workload: workload.to_owned() });
            }
            new.push(Published { host, guest: (to, guest).into(), held: Some(Arc::new(socket)) });
        }
        let before = port.published.len();
        self.make_way(&new)?;
        for (there, limit) in [(before, MAX_PUBLISHED), (self.all_published().count(), MAX_PUBLISHED_BY_HOST)] {
            let limit = limit as usize;
            if there + new.len() > limit {
                return Err(Error::Full { what: "published ports", limit });
            }
        }
        // A network that leads nowhere is forwarded to all the same: who comes by the host's port is answered.
        self.rtnl.forward(new.iter().any(|one| one.guest.is_ipv6()))?;
        let Manager { filter, networks, .. } = self;
        if let Some(filter) = filter {
            filter.publish(networks.values().flat_map(Network::published).chain(&new))?;
        }
        // Also those that went to a service of the host's before.
        self.end_connections(&new);
        self.port(whose)?.published.extend(new.iter().cloned());
        find(&mut self.networks, id)?.answer_loopback(&self.rtnl);
        Ok(new)
    }

    /// Holds what an earlier netmgr has published, whose sockets went with it, in phase 1. Their VMs hold those that they had from the start.
    pub(super) fn hold_published(&mut self) {
        let mut others = 0;
        let ports = self.networks.values_mut().flat_map(|network| network.ports.values_mut());
        for one in ports.flat_map(|port| &mut port.published).chain(self.left.published()) {
            match one.host.hold() {
                Ok(socket) => one.held = Some(Arc::new(socket)),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => others += 1,
                Err(error) => confine::say!(
                    "netmgr: cannot hold {}, which leads to {}: {error}; it goes on leading there, and another process may take it: publish it again (volt port unpublish, volt port publish)",
                    one.host,
                    one.guest
                ),
            }
        }
        if others > 0 {
            confine::say!(
                "netmgr: published ports that other processes hold (ss -lntup), their VMs or who took them while there was no netmgr and gets nothing of what comes there: {others}"
            );
        }
    }

    /// The sockets of what is published, for the sandbox to keep.
    pub(super) fn held_sockets(&self) -> impl Iterator<Item = RawFd> {
        let published = self.networks.values().flat_map(Network::published).chain(self.left.all_published());
        published.filter_map(|one| one.held.as_ref().map(|socket| socket.as_raw_fd()))
    }

    /// Refuses what somebody's port has already. Who has gone, and it is only not known yet or was put off, is in nobody's way.
    fn make_way(&mut self, new: &[Published]) -> Result<(), Error> {
        let has = |port: &Port| {
            let other = port.published.iter().find(|other| new.iter().any(|one| one.host.overlaps(&other.host)));
            other.map(|other| other.host.to_string())
        };
        loop {
            let Manager { rtnl, instance, networks, .. } = self;
            let in_the_way = networks.values_mut().find_map(|network| {
                let (workload, host, leaves) = network
                    .ports
                    .iter()
                    .find_map(|(workload, port)| Some((workload.clone(), has(port)?, port.leaves())))?;
                Some((network, workload, host, leaves))
            });
            let Some((network, workload, host, leaves)) = in_the_way else { return Ok(()) };
            let has_gone = if leaves {
                self.cut_off_chosen(|_, port| has(port).is_some())
            } else {
                !network.confirm(rtnl, instance, &workload)?
            };
            if !has_gone {
                return Err(Error::Published { host, workload });
            }
            self.clear_after();
        }
    }

    /// Ends that these are published for the guest of a port.
    pub fn unpublish(&mut self, whose: &Whose, hosts: &[HostPort]) -> Result<(), Error> {
        let port = self.port(whose)?;
        let is = |host: &HostPort| port.published.iter().any(|one| one.host == *host);
        if let Some(host) = hosts.iter().find(|host| !is(host)) {
            return Err(Error::NotPublished { workload: whose.workload().to_owned(), host: host.to_string() });
        }
        let gone: Vec<_> = port.published.extract_if(.., |one| hosts.contains(&one.host)).collect();
        self.close(&gone)
    }

    /// Has what is published be what ports say, and ends the connections of those that are not any more.
    pub(super) fn close(&mut self, gone: &[Published]) -> Result<(), Error> {
        if gone.is_empty() {
            return Ok(());
        }
        if let Some(filter) = &mut self.filter {
            filter.publish(self.networks.values().flat_map(Network::published))?;
        }
        self.end_connections(gone);
        self.networks.values_mut().for_each(|network| network.answer_loopback(&self.rtnl));
        Ok(())
    }

    /// Ends what is left of ports that have gone: whoever has their addresses next has nothing of theirs. What of it is still published with the rules, the
    /// next look takes away.
    pub(super) fn clear_after(&mut self) {
        let (mut published, mut addresses) = (Vec::new(), Vec::new());
        for network in self.networks.values_mut() {
            for left in network.left.drain(..) {
                published.extend(left.published);
                addresses.extend(left.sources.iter().map(|address| (network.config.name.clone(), address)));
            }
        }
        let _ = self.close(&published);
        if let Some(filter) = &mut self.filter
            && let Err(error) = filter.end_connections_of(&addresses)
            && !matches!(error, Error::NoRight(_))
        {
            confine::say!("netmgr: {}", error.fault("end connections of a guest whose port has gone"));
        }
    }

    /// Where that fails, what goes on goes on as it did.
    fn end_connections(&mut self, ports: &[Published]) {
        let Some(filter) = &mut self.filter else { return };
        let ended = self.rtnl.addresses(None, true).and_then(|addresses| {
            let own = |to: IpAddr| to.is_loopback() || addresses.iter().any(|assigned| assigned.address.ip == to);
            ports.iter().try_for_each(|port| filter.end_connections(&port.host, own))
        });
        if let Err(error) = ended {
            confine::say!("netmgr: {}", error.fault("end connections by a port that was published or is not any more"));
        }
    }
}
