//! Networks in network namespaces of their own: each is a [`Manager`] of that namespace, by way of the sockets that were handed over, so that its bridge, its
//! ports and the rules of what these may send are as any other network's. The host has no interface and no address there.
//!
//! The namespace is whoever's who has defined the network, and stays as long as he has it so: this process cannot make one. The next netmgr finds in it what this
//! one has left there, when it is handed over again. What he does there, or with the sockets, costs this network, and no other: nothing is waited for on these.

use std::collections::btree_map::Entry;

use schema::policy::Rules;

use super::{Manager, NetworkId, find, has_room};
use crate::{
    config::{Config, Kind},
    error::Error,
    handed::{Identity, Place, Sockets},
    monitor::{Changes, Monitor},
    nft::Filter,
};

/// A network in a namespace of its own.
pub(super) struct Isolated {
    /// Of that namespace, with this network and no other.
    pub(super) manager: Manager,
    identity: Identity,
}

impl Manager {
    /// Defines a network, as [`define_here`](Manager::define_here) does; an isolated one in the namespace that was handed over, whose changes are then to be heard of.
    pub fn define(
        &mut self,
        config: Config,
        ipv6: &str,
        policy: Option<Rules>,
        sockets: Option<Sockets>,
    ) -> Result<(NetworkId, Option<Monitor>), Error> {
        let is_isolated = config.kind == Kind::Isolated;
        let other = if is_isolated {
            self.networks.contains_key(&config.name)
        } else {
            self.isolated.contains_key(&config.name)
        };
        if other {
            return Err(Error::OtherKind(config.name));
        }
        match sockets {
            _ if !is_isolated => Ok((self.define_here(config, ipv6, policy)?, None)),
            None => match self.isolated.get_mut(&config.name) {
                Some(isolated) => Ok((isolated.manager.define_here(config, ipv6, policy)?, None)),
                None => Err(Error::argument(
                    "namespace",
                    "",
                    "an isolated network has one of its own; hand its sockets over",
                )),
            },
            Some(sockets) => self.define_there(config, ipv6, policy, sockets.check()?),
        }
    }

    fn define_there(
        &mut self,
        config: Config,
        ipv6: &str,
        policy: Option<Rules>,
        place: Place,
    ) -> Result<(NetworkId, Option<Monitor>), Error> {
        let (name, identity) = (config.name.clone(), place.identity);
        let mut isolated = self.isolated.iter_mut();
        if isolated.any(|(other, known)| *other != name && known.identity == identity)
            || self.rtnl.namespace().is_none_or(|own| own == identity)
        {
            return Err(Error::argument(
                "namespace",
                "",
                "it is that of the host's networks, or of another one, and each isolated network has its own",
            ));
        }
        if let Some(known) = self.isolated.get_mut(&name) {
            if known.identity == identity {
                return Ok((known.manager.define_here(config, ipv6, policy)?, None));
            }
            let ports = known.manager.ports_there(&name);
            if ports > 0 {
                return Err(Error::PortsAttached { name, ports });
            }
        } else {
            has_room(&self.networks, &self.isolated)?;
        }
        let Place { sockets: Sockets { rtnetlink, nfnetlink, link_changes, rule_changes }, namespace, .. } = place;
        let filter = match Filter::of(nfnetlink, &self.instance) {
            Err(Error::NoFilter(_)) => None,
            filter => Some(filter?),
        };
        let monitor = Monitor::handed(link_changes, filter.as_ref().map(|filter| (rule_changes, filter.table())));
        let rtnl = self.rtnl.of(namespace, identity, rtnetlink)?;
        let is_it = |found: &Config| found.kind == Kind::Isolated && found.name == name;
        let mut manager = Manager::take_stock(rtnl, filter, self.instance.clone(), self.serial.clone(), is_it)?;
        let id = manager.define_here(config, ipv6, policy).inspect_err(|_| {
            // The error that is reported is the first one.
            if manager.networks.is_empty() {
                manager.clear()
            }
        })?;
        let new = Isolated { manager, identity };
        match self.isolated.entry(name) {
            Entry::Vacant(place) => _ = place.insert(new),
            // What is left where it was goes with that namespace.
            Entry::Occupied(mut place) => _ = place.insert(new).manager.remove(&id.name),
        }
        Ok((id, Some(monitor)))
    }

    /// How many ports are on that network, as far as anybody can tell.
    fn ports_there(&mut self, name: &str) -> usize {
        let Ok(id) = self.network(name) else { return 0 };
        _ = self.look_at(&Changes { all: true, ..Changes::default() });
        find(&mut self.networks, &id).map_or(0, |network| network.ports.values().filter(|port| !port.leaves()).count())
    }

    /// Does something where that network is.
    pub fn on<T>(&mut self, id: &NetworkId, work: impl FnOnce(&mut Manager) -> T) -> T {
        match self.isolated.get_mut(&id.name) {
            Some(isolated) => work(&mut isolated.manager),
            None => work(self),
        }
    }

    /// [`look_at`](Manager::look_at), of a network's own namespace; [`Error::Revoked`] where it has none any more.
    pub fn look_within(&mut self, id: &NetworkId, changes: &Changes) -> Result<bool, Error> {
        let isolated = self.isolated.get_mut(&id.name).ok_or(Error::Revoked("network"))?;
        find(&mut isolated.manager.networks, id)?;
        isolated.manager.look_at(changes)
    }

    /// Does something in each namespace.
    pub(super) fn each(&mut self, mut work: impl FnMut(&mut Manager)) {
        self.isolated.values_mut().for_each(|isolated| work(&mut isolated.manager));
        work(self);
    }

    /// The namespaces that networks are in.
    pub(super) fn own_namespaces(&self) -> Result<Vec<Identity>, Error> {
        let own = self.rtnl.namespace();
        let own = own.ok_or_else(|| Error::NoRight("ask for the network namespace of a socket".into()))?;
        Ok(self.isolated.values().map(|isolated| isolated.identity).chain([own]).collect())
    }
}
