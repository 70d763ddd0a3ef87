//! What guests may send, as far as it is the networks' and the ports': which policy each has, within what, and that the packet filter has just what follows
//! from that. Runs on the rtnl thread.

use std::collections::{BTreeMap, BTreeSet};

use schema::policy::Rules;

use super::{
    Account, Manager, NetworkId, PortId, Stats, find,
    left::{self, Left},
    macvtap,
};
use crate::{
    error::Error,
    events::Change,
    link::Link,
    names::Kind,
    network::Network,
    nft::{Counts, Filter, Sender},
    ports::Port,
    rate::Rate,
};

impl Account {
    /// What a port's policy is within, on a network whose ports have that one where nothing else is said.
    pub(super) fn bound(&self, default: Option<&Rules>) -> Option<Rules> {
        let of_tenant = || self.tenant.and(default);
        self.bound.as_ref().or_else(of_tenant).cloned()
    }

    /// What a port has for which nothing else is asked.
    pub(super) fn policy(&self, default: Option<&Rules>) -> Option<Rules> {
        self.bound.as_ref().or(default).cloned()
    }
}

impl Manager {
    /// Has the TAPs on our bridges send no more than they may as yet, whether they can be told to be ports or not: somebody may have cleared
    /// the mark of one whose guest still runs.
    pub(super) fn keep_guarding(&mut self, links: &[Link]) {
        let Manager { rtnl, filter: Some(filter), networks, strays, left, .. } = self else { return };
        let bridges: BTreeSet<u32> = networks.values().map(|network| network.index).collect();
        let ports = || links.iter().filter(|link| Kind::of(link).is_some() && bridges.contains(&link.master));
        let names: BTreeSet<&str> = ports().map(|link| link.name.as_str()).collect();
        *strays = ports().map(|link| link.index).collect();
        networks.values().flat_map(|network| network.ports.values()).for_each(|port| _ = strays.remove(&port.index));
        let guarded: Vec<&str> = macvtap::senders(networks).map(|port| port.interface).collect();
        let (adopted, published) = match filter.adopt(|interface| names.contains(interface), guarded.into_iter()) {
            Ok(adopted) => adopted,
            Err(Error::NoRight(_)) => Default::default(),
            Err(error) => {
                confine::say!("netmgr: {}", error.fault("see what guests of an earlier netmgr may send"));
                Default::default()
            }
        };
        for (name, network) in networks.iter_mut() {
            network.policy = adopted.policies.get(name).cloned();
            // Each is the one's that has the address. What leads to nobody goes with the first look.
            network.adopt_published(&published);
            network.answer_loopback(rtnl);
            left::know_again(network, links, &adopted);
        }
        filter.hold_published(networks.values().flat_map(Network::published));
        *left = Left::new(networks, links, adopted, published);
    }

    /// Sees to it that each port may send what it may and no more; whether it was so. What cannot be mended is said, once.
    pub(super) fn guard(&mut self, links: &[Link]) -> Result<bool, Error> {
        let Manager { rtnl, filter: Some(filter), networks, unguarded, .. } = self else { return Ok(true) };
        if networks.is_empty() {
            return Ok(true);
        }
        let interfaces = || links.iter().filter(|link| Kind::of(link).is_some());
        let there: BTreeSet<&str> = interfaces().map(|link| link.name.as_str()).collect();
        let names: BTreeMap<u32, &str> = interfaces().map(|link| (link.index, link.name.as_str())).collect();
        let bridged = || networks.iter().filter(|(_, network)| !network.config.is_macvtap());
        let ports = bridged().flat_map(|(name, network)| network.ports.iter().map(move |port| (name, port)));
        let ports = ports.flat_map(|(network, (workload, port))| {
            let sends = port.sends(workload, network);
            // And by the name that somebody has given it, until it has its own again.
            let renamed = names.get(&port.index).filter(|name| **name != port.interface);
            [Some(sends), renamed.map(|interface| Sender { interface, ..sends })].into_iter().flatten()
        });
        let all: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
        let reach = bridged().map(|(_, network)| network.reach(all.get(&network.index).copied()));
        let defaults = networks.iter().filter_map(|(name, network)| Some((name.as_str(), network.policy.as_ref()?)));
        let own = rtnl.own()?;
        let mended = filter.mend(ports, reach, defaults, own.into_iter(), |interface| there.contains(interface));
        let outcome =
            mended.and_then(|changed| filter.publish(networks.values().flat_map(Network::published)).map(|()| changed));
        let functions =
            networks.values().flat_map(|network| network.ports.values()).filter_map(|port| port.function.as_ref());
        let beneath = functions.filter_map(|function| all.get(&function.interface).copied());
        let outcome = outcome.and_then(|changed| filter.keep_off(beneath).map(|()| changed));
        let outcome = outcome.and_then(|changed| Ok(filter.mend_guards(macvtap::senders(networks))? || changed));
        let trouble =
            outcome.as_ref().err().map(|error| error.fault("mend the rules of what guests may send").to_string());
        match &trouble {
            Some(trouble) if unguarded.as_ref() != Some(trouble) => confine::say!("netmgr: {trouble}"),
            Some(_) => {}
            None if matches!(outcome, Ok(true)) => confine::say!(
                "netmgr: the rules of what guests may send are there again; something else on this host had changed them"
            ),
            None => {}
        }
        *unguarded = trouble;
        outcome.map(|changed| !changed)
    }

    /// Takes the rules away, where there is no network.
    pub(super) fn clear(&mut self) {
        if let Some(filter) = &mut self.filter
            && let Err(error) = filter.clear()
            && !matches!(error, Error::NoRight(_))
        {
            confine::say!("netmgr: {}", error.fault("take the rules of what guests may send away"));
        }
    }

    /// What a network's ports have that are made on that account, where nothing else is asked for.
    pub fn policy(&mut self, id: &NetworkId, account: &Account) -> Result<Option<Rules>, Error> {
        Ok(account.policy(find(&mut self.networks, id)?.policy.as_ref()))
    }

    /// What the port of a workload has.
    pub fn policy_of(&mut self, id: &NetworkId, workload: &str) -> Result<Option<Rules>, Error> {
        let port = find(&mut self.networks, id)?.ports.get(workload).filter(|port| !port.leaves());
        let none = || Error::NoSuchPort { workload: workload.to_owned(), network: id.name.clone() };
        Ok(port.ok_or_else(none)?.policy.clone())
    }

    /// Has the port of a workload have a policy, or none, which bounds what its holder can have it have.
    pub fn set_policy_of(&mut self, id: &NetworkId, workload: &str, policy: Option<Rules>) -> Result<(), Error> {
        self.policy_of(id, workload)?;
        self.subject(id, workload, policy.clone())?;
        if let Some(port) = find(&mut self.networks, id)?.ports.get_mut(workload) {
            port.bound = policy;
        }
        Ok(())
    }

    /// Has a port have a policy, within what bounds it.
    pub fn set_policy(&mut self, id: &PortId, policy: Option<Rules>) -> Result<(), Error> {
        let bound = self.held(id)?.bound.clone();
        self.subject(&id.network, &id.workload, within(bound.as_ref(), policy)?)
    }

    /// What a port has.
    pub fn policy_of_port(&mut self, id: &PortId) -> Result<Option<Rules>, Error> {
        Ok(self.held(id)?.policy.clone())
    }

    /// What a port has carried, and what was dropped.
    pub fn stats(&mut self, id: &PortId) -> Result<Stats, Error> {
        let port = self.held(id)?;
        let (kind, interface, index, policed) = (port.kind, port.interface.clone(), port.index, port.policy.is_some());
        let counts = match (kind, &mut self.filter) {
            (Kind::Macvtap(_), Some(filter)) => filter.counts_at(&interface)?,
            _ => self.counts()?.remove(&interface).unwrap_or_default(),
        };
        let link = self.rtnl.link_with_traffic(index)?.unwrap_or_default();
        Ok(Stats::of(kind, policed, counts, &link))
    }

    /// What there is counted of ports, by their interfaces.
    pub(super) fn counts(&mut self) -> Result<BTreeMap<String, Counts>, Error> {
        match self.filter.as_mut().map_or_else(|| Ok(BTreeMap::new()), Filter::counts) {
            // Who may not look at rules has put none there.
            Err(Error::NoRight(_)) => Ok(BTreeMap::new()),
            counts => counts,
        }
    }

    /// A port that somebody holds.
    fn held(&mut self, id: &PortId) -> Result<&Port, Error> {
        let port = find(&mut self.networks, &id.network)?.ports.get(&id.workload);
        port.filter(|port| port.is(id.serial) && !port.leaves()).ok_or(Error::Revoked("port"))
    }

    /// Has the port of a workload carry so much, which bounds what its holder can have it carry.
    pub fn set_rate_of(&mut self, id: &NetworkId, workload: &str, rate: Rate) -> Result<(), Error> {
        self.policy_of(id, workload)?;
        self.carry(id, workload, rate)?;
        if let Some(port) = find(&mut self.networks, id)?.ports.get_mut(workload) {
            port.rate_bound = rate;
        }
        Ok(())
    }

    /// Has a port carry so much, within what bounds it.
    pub fn set_rate(&mut self, id: &PortId, rate: Rate) -> Result<(), Error> {
        let bound = self.held(id)?.rate_bound;
        self.carry(&id.network, &id.workload, rate.within(bound))
    }

    /// Has a port that is there carry so much from the next packet on.
    fn carry(&mut self, id: &NetworkId, workload: &str, rate: Rate) -> Result<(), Error> {
        let Manager { rtnl, filter, networks, .. } = self;
        let network = find(networks, id)?;
        let Some(port) = network.ports.get_mut(workload) else { return Ok(()) };
        match filter {
            Some(filter) => put(filter, Sender { rate, ..port.sends(workload, &id.name) }, port.kind)?,
            None if rate != Rate::default() => return Err(no_filter()),
            None => {}
        }
        port.rate = rate;
        if let Some(function) = &port.function {
            function.carry(rtnl, rate)?;
        }
        network.events.tell(Change::Changed, workload, &port.interface);
        Ok(())
    }

    /// Has a port that is there have that policy from the next packet on.
    fn subject(&mut self, id: &NetworkId, workload: &str, policy: Option<Rules>) -> Result<(), Error> {
        let Manager { rtnl, filter, instance, networks, .. } = self;
        let network = find(networks, id)?;
        let Some(port) = network.ports.get_mut(workload) else { return Ok(()) };
        let had = port.policy.is_some();
        // A netmgr that does not find the rules again has to know that there were some. Who is killed here leaves rules that no mark tells of, which the
        // next one finds, but no mark of rules that are not there, with which it would let nothing out.
        if had && policy.is_none() {
            let before = port.policy.take();
            let unmarked = network.confirm(rtnl, instance, workload);
            if let Some(port) = network.ports.get_mut(workload) {
                port.policy = before;
            }
            unmarked?;
        }
        let Some(port) = network.ports.get_mut(workload) else { return Ok(()) };
        match filter {
            Some(filter) => {
                put(filter, Sender { policy: policy.as_ref(), ..port.sends(workload, &id.name) }, port.kind)?;
            }
            None if policy.is_some() => return Err(no_filter()),
            None => {}
        }
        port.policy = policy;
        network.events.tell(Change::Changed, workload, &port.interface);
        if !had && port.policy.is_some() {
            network.confirm(rtnl, instance, workload)?;
        }
        Ok(())
    }
}

/// Lets a port of that kind send what it may.
fn put(filter: &mut Filter, port: Sender<'_>, kind: Kind) -> Result<(), Error> {
    match kind {
        Kind::Macvtap(_) => filter.guard(port),
        _ => filter.add(port),
    }
}

/// What a port is to have, within what bounds it.
pub(super) fn within(bound: Option<&Rules>, asked: Option<Rules>) -> Result<Option<Rules>, Error> {
    match (bound, asked) {
        (Some(bound), Some(asked)) => {
            let both = bound.narrowed(&asked).map_err(|why| Error::argument("policy", "", &why))?;
            Ok(Some(both))
        }
        (Some(bound), None) => Ok(Some(bound.clone())),
        (None, asked) => Ok(asked),
    }
}

/// Why no policy can be had.
pub(super) fn no_filter() -> Error {
    Error::NoFilter(std::io::Error::from_raw_os_error(libc::EPROTONOSUPPORT))
}
