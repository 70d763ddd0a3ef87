//! What an earlier netmgr has left in the rules of what ports were given, and whose it is: of those whose bridge is there, at the start; of those whose
//! bridge somebody has deleted while there was no netmgr to make it anew, once their network is defined again. Touches nothing.

use std::collections::BTreeMap;

use crate::{link::Link, mark, network::Network, nft::Adopted, published::Published};

/// What was read at the start for interfaces that are no port's of any network as yet. Nobody can change it before they are.
#[derive(Default)]
pub(super) struct Left {
    adopted: Adopted,
    /// By which index each interface had its name then: another one of that name is another's.
    indices: BTreeMap<String, u32>,
    published: Vec<Published>,
}

impl Left {
    /// What is not known again already.
    pub(super) fn new(
        networks: &BTreeMap<String, Network>,
        links: &[Link],
        mut adopted: Adopted,
        mut published: Vec<Published>,
    ) -> Left {
        let known = |index| networks.values().any(|network| network.ports.has(index));
        let unknown = links.iter().filter(|link| !known(link.index));
        let indices: BTreeMap<_, _> = unknown.map(|link| (link.name.clone(), link.index)).collect();
        adopted.policies.retain(|name, _| indices.contains_key(name));
        adopted.rates.retain(|name, _| indices.contains_key(name));
        published.retain(|one| is_free(networks, one));
        let mut left = Left { adopted, indices, published };
        left.forget_gone(links);
        left
    }

    /// Forgets what led to guests that have gone, which nobody can be given any more: it would be held for good.
    fn forget_gone(&mut self, links: &[Link]) {
        let Left { indices, published, .. } = self;
        let there = links.iter().filter(|link| indices.get(&link.name) == Some(&link.index));
        let marks: Vec<_> = there.filter_map(|link| mark::read_port(&link.alias)).collect();
        published.retain(|one| marks.iter().any(|mark| mark.sources.has(one.guest.ip())));
    }

    /// Which ports of the host were published for them, to be held.
    pub(super) fn published(&mut self) -> impl Iterator<Item = &mut Published> {
        self.published.iter_mut()
    }

    /// The same.
    pub(super) fn all_published(&self) -> impl Iterator<Item = &Published> {
        self.published.iter()
    }

    /// Forgets which ports of the host are published by now for others: nobody has held them meanwhile.
    pub(super) fn yield_to(&mut self, networks: &BTreeMap<String, Network>) {
        self.published.retain(|one| is_free(networks, one));
    }

    /// Gives a network that was just defined, and was not there before, what is left of its ports'.
    pub(super) fn give(&mut self, network: &mut Network, links: &[Link]) {
        let still =
            |name: &String| links.iter().any(|link| link.name == *name && self.indices.get(name) == Some(&link.index));
        self.adopted.policies.retain(|name, _| still(name));
        self.adopted.rates.retain(|name, _| still(name));
        know_again(network, links, &self.adopted);
        network.adopt_published(&self.published);
        for port in network.ports.values() {
            self.published.retain(|one| port.published.iter().all(|taken| taken.host != one.host));
            let names = links.iter().filter(|link| link.index == port.index).map(|link| &link.name);
            names.for_each(|name| _ = self.indices.remove(name));
        }
        self.forget_gone(links);
    }
}

fn is_free(networks: &BTreeMap<String, Network>, one: &Published) -> bool {
    networks.values().all(|network| network.published().all(|known| !known.host.overlaps(&one.host)))
}

/// Has the ports of a network the policies and the rates again that they had.
pub(super) fn know_again(network: &mut Network, links: &[Link], Adopted { policies, rates }: &Adopted) {
    let on = network.config.name.clone();
    for (workload, port) in network.ports.iter_mut() {
        // By the name that it has now, or by its own.
        let link = links.iter().find(|link| link.index == port.index).map_or("", |link| &link.name);
        let names = [link, &port.interface];
        port.rate = names.into_iter().find_map(|name| rates.get(name)).copied().unwrap_or_default();
        match names.into_iter().find_map(|name| policies.get(name)) {
            Some(policy) => port.policy = Some(policy.clone()),
            None if port.policy.is_some() => confine::say!(
                "netmgr: the policy of {workload} on network {on} is lost, as something else on this host has taken it away: it may send nowhere until it has another one (volt port policy)"
            ),
            None => {}
        }
    }
}
