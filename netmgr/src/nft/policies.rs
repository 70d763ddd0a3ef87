//! Policies as elements of sets: what one of them is in the kernel, where each workload is that it names, and which number it has. Pure; touches nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use schema::policy::{Protocol, Rule, Rules, Target, What};

use super::{
    rules::{self, Element},
    table::Set,
    wire::Item,
};
use crate::sources::Sources;

/// The part of a mark that is a policy's number; the rest is the turn.
pub const NUMBER: u32 = 0xffff;

/// Which policy: what it says, and on which network the workloads are that it names; of one that names none that is no matter, and empty.
type Identity = (String, Rules);

/// What a port, or a network for those that are to come, has of all this.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    network: String,
    workload: String,
    sources: Sources,
    policy: Option<u32>,
}

/// The policies in force, by what is subject to them.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    numbers: BTreeMap<Identity, u32>,
    by_number: BTreeMap<u32, Identity>,
    /// How many are subject to each.
    users: BTreeMap<u32, usize>,
    /// By interface.
    subjects: BTreeMap<String, Subject>,
    /// The interfaces of each workload, by network and name.
    workloads: BTreeMap<(String, String), BTreeSet<String>>,
    last: u32,
}

impl Policies {
    /// Has an interface be a port's of that workload, subject to that policy; the policy's number. `touched` gets the numbers of the policies whose elements
    /// are others now.
    pub fn put(
        &mut self,
        interface: &str,
        (network, workload): (&str, &str),
        sources: &Sources,
        policy: Option<&Rules>,
        touched: &mut BTreeSet<u32>,
    ) -> Option<u32> {
        let number = policy.map(|policy| self.number(network, policy));
        let subject = Subject {
            network: network.to_owned(),
            workload: workload.to_owned(),
            sources: sources.clone(),
            policy: number,
        };
        if self.subjects.get(interface) == Some(&subject) {
            return number;
        }
        if let Some(number) = number {
            *self.users.entry(number).or_default() += 1;
            touched.insert(number);
        }
        self.remove(interface, touched);
        self.workloads.entry((network.to_owned(), workload.to_owned())).or_default().insert(interface.to_owned());
        self.touch(network, workload, touched);
        self.subjects.insert(interface.to_owned(), subject);
        number
    }

    /// Forgets what an interface was.
    pub fn remove(&mut self, interface: &str, touched: &mut BTreeSet<u32>) {
        let Some(Subject { network, workload, policy, .. }) = self.subjects.remove(interface) else { return };
        if let Some(number) = policy
            && let Some(users) = self.users.get_mut(&number)
        {
            *users = users.saturating_sub(1);
            touched.insert(number);
        }
        self.touch(&network, &workload, touched);
        let of_workload = (network, workload);
        if let Some(interfaces) = self.workloads.get_mut(&of_workload) {
            interfaces.remove(interface);
            if interfaces.is_empty() {
                self.workloads.remove(&of_workload);
            }
        }
    }

    /// All that there is.
    pub fn interfaces(&self) -> impl Iterator<Item = &str> {
        self.subjects.keys().map(String::as_str)
    }

    /// Notes which of the policies in force name a workload.
    fn touch(&self, network: &str, workload: &str, touched: &mut BTreeSet<u32>) {
        let of_network = self.numbers.range((network.to_owned(), Rules::default())..);
        let of_network = of_network.take_while(|((of, _), _)| of == network);
        touched.extend(of_network.filter(|((_, rules), _)| names(rules, workload)).map(|(_, number)| *number));
    }

    /// Which policy an interface is subject to.
    pub fn of(&self, interface: &str) -> Option<u32> {
        self.subjects.get(interface)?.policy
    }

    /// How many elements it takes to have a policy in force; `None` if it is.
    pub fn more(&self, network: &str, policy: &Rules) -> Option<usize> {
        let identity = identity(network, policy);
        let is_in_force = self.numbers.contains_key(&identity);
        (!is_in_force).then(|| self.elements_as(0, &identity).len())
    }

    /// The number of a policy, the same for all who have it.
    fn number(&mut self, network: &str, policy: &Rules) -> u32 {
        let identity = identity(network, policy);
        if let Some(number) = self.numbers.get(&identity) {
            return *number;
        }
        // Not one that there has been: what others know by it may still be there.
        loop {
            self.last = if self.last < NUMBER { self.last + 1 } else { 1 };
            if !self.by_number.contains_key(&self.last) {
                break;
            }
        }
        self.numbers.insert(identity.clone(), self.last);
        self.by_number.insert(self.last, identity);
        self.last
    }

    /// Takes over a policy of an earlier netmgr's under its number.
    pub fn adopt(&mut self, number: u32, network: String, policy: Rules) {
        if number > NUMBER {
            return;
        }
        self.last = self.last.max(number);
        self.numbers.insert((network.clone(), policy.clone()), number);
        self.by_number.insert(number, (network, policy));
    }

    /// What the elements of a policy are; none if nobody is subject to it any more, and it is forgotten.
    pub fn elements(&mut self, number: u32) -> BTreeSet<Element> {
        if self.users.get(&number).copied().unwrap_or_default() == 0 {
            self.users.remove(&number);
            if let Some(identity) = self.by_number.remove(&number) {
                self.numbers.remove(&identity);
            }
            return BTreeSet::new();
        }
        self.by_number.get(&number).map(|identity| self.elements_as(number, identity)).unwrap_or_default()
    }

    fn elements_as(&self, number: u32, (network, policy): &Identity) -> BTreeSet<Element> {
        let addresses = |workload: &str| -> Vec<IpAddr> {
            let interfaces = self.workloads.get(&(network.clone(), workload.to_owned())).into_iter().flatten();
            let sources = interfaces.filter_map(|interface| self.subjects.get(interface));
            let all: BTreeSet<IpAddr> = sources.flat_map(|subject| subject.sources.iter()).collect();
            all.into_iter().collect()
        };
        let texts = std::iter::once(network.clone()).chain(policy.iter().map(Rule::to_string));
        let said = (0_u32..).zip(texts).map(|(at, text)| Element {
            set: Set::Rules,
            item: Item {
                key: [number.to_ne_bytes(), at.to_ne_bytes()].concat(),
                noted: comment(&text),
                ..Item::default()
            },
        });
        said.chain(ranges(number, policy, addresses)).collect()
    }
}

fn identity(network: &str, policy: &Rules) -> Identity {
    let network = if policy.workloads().next().is_some() { network } else { "" };
    (network.to_owned(), policy.clone())
}

fn names(rules: &Rules, workload: &str) -> bool {
    rules.workloads().any(|name| name == workload)
}

/// What a port has beside what its guest may send from.
pub fn of_port(interface: &str, sources: &Sources, policy: u32) -> Vec<Element> {
    let name = rules::name(interface);
    let plain = |set| Element::new(set, name.to_vec());
    let links: BTreeSet<u64> = sources
        .iter()
        .filter_map(|address| match address {
            IpAddr::V6(address) => Some((address.to_bits() >> 64) as u64),
            IpAddr::V4(_) => None,
        })
        .collect();
    let links = links.into_iter().map(|link| {
        let subnet = Ipv6Addr::from_bits(u128::from(link) << 64);
        Element::new(Set::Links, [&name[..], &subnet.octets()].concat())
    });
    links.chain([Set::Policed, Set::Allowed, Set::Denied].map(plain)).chain([subject(interface, policy)]).collect()
}

/// Which policy a port, or a network's ports to come, have.
pub fn subject(interface: &str, policy: u32) -> Element {
    let (key, data) = (rules::name(interface).to_vec(), policy.to_ne_bytes().to_vec());
    Element { set: Set::Policies, item: Item { key, data, ..Item::default() } }
}

/// Which policy a port's elements have it subject to, if they do.
pub fn subject_of(elements: &BTreeSet<Element>) -> Option<u32> {
    let subject = elements.iter().find(|element| element.set == Set::Policies)?;
    subject.item.data.as_slice().try_into().ok().map(u32::from_ne_bytes)
}

/// The host's own addresses.
pub fn own(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<Element> {
    // Those are reached, and not, as any other of their kind.
    addresses
        .filter(|address| !schema::policy::is_special(*address))
        .map(|address| match address {
            IpAddr::V4(address) => Element::new(Set::Own4, address.octets().to_vec()),
            IpAddr::V6(address) => Element::new(Set::Own6, address.octets().to_vec()),
        })
        .collect()
}

/// What nft(8) shows as an element's comment: of type 0, with a length of one byte, and a zero at its end.
pub fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(usize::from(u8::MAX) - 1).collect();
    [&[0, text.len() as u8 + 1], &text[..], &[0]].concat()
}

/// Reads what [`comment`] gives.
pub fn read_comment(noted: &[u8]) -> Option<&str> {
    let ([0, length], rest) = noted.split_first_chunk()? else { return None };
    let text = rest.get(..usize::from(*length))?.strip_suffix(&[0])?;
    str::from_utf8(text).ok()
}

/// The policies that elements say, by their numbers, with the network of those workloads that they name. What cannot be read is left out.
pub fn read(elements: &BTreeSet<Element>) -> BTreeMap<u32, (String, Rules)> {
    let mut texts: BTreeMap<u32, BTreeMap<u32, &str>> = BTreeMap::new();
    for Element { item, .. } in elements.iter().filter(|element| element.set == Set::Rules) {
        let Some((number, at)) = item.key.split_first_chunk::<4>() else { continue };
        let (Ok(at), Some(text)) = (at.try_into(), read_comment(&item.noted)) else { continue };
        texts.entry(u32::from_ne_bytes(*number)).or_default().insert(u32::from_ne_bytes(at), text);
    }
    let read = |mut texts: BTreeMap<u32, &str>| {
        let network = texts.remove(&0)?;
        Some((network.to_owned(), Rules::new(texts.into_values()).ok()?))
    };
    texts.into_iter().filter_map(|(number, texts)| Some((number, read(texts)?))).collect()
}

/// Where a policy lets go: ranges of which no two overlap, as the kernel takes no others.
fn ranges(number: u32, policy: &Rules, of: impl Fn(&str) -> Vec<IpAddr>) -> Vec<Element> {
    let (mut four, mut six, mut host) = (Vec::new(), Vec::new(), Vec::new());
    for Rule { to, what } in policy.iter() {
        if *to == Target::Host {
            host.push(*what);
        }
        for (first, last) in to.ranges(&of) {
            match (first, last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    four.push((first.to_bits().into(), last.to_bits().into(), *what));
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => six.push((first.to_bits(), last.to_bits(), *what)),
                _ => {}
            }
        }
    }
    let mark = number.to_ne_bytes();
    let element = |set, (first, last): (&[u8], &[u8]), (protocols, ports): Ports| {
        let key = |address: &[u8], protocol: u8, port: u16| {
            let [high, low] = port.to_be_bytes();
            [&mark[..], address, &[protocol, 0, 0, 0, high, low, 0, 0]].concat()
        };
        let (key, end) = (key(first, protocols.0, ports.0), key(last, protocols.1, ports.1));
        Element { set, item: Item { key, end, ..Item::default() } }
    };
    let four = disjoint(&four, u32::MAX.into(), 1).into_iter().map(|(first, last, ports)| {
        let [first, last] = [first, last].map(|bits| Ipv4Addr::from_bits(bits as u32).octets());
        element(Set::Allow4, (&first, &last), ports)
    });
    let six = disjoint(&six, u128::MAX, 58).into_iter().map(|(first, last, ports)| {
        let [first, last] = [first, last].map(|bits| bits.to_be_bytes());
        element(Set::Allow6, (&first, &last), ports)
    });
    let host: BTreeSet<Ports> = [1, 58].into_iter().flat_map(|icmp| ports(&host, icmp)).collect();
    let host = host.into_iter().map(|ports| element(Set::Hosts, (&[], &[]), ports));
    four.chain(six).chain(host).collect()
}

/// Protocols and ports, from the first to the last.
type Ports = ((u8, u8), (u16, u16));

/// The ranges of addresses, each with ranges of ports, in which the given ones lie, without any overlap; `most` is the last address that there is, and `icmp`
/// the number of that protocol.
fn disjoint(given: &[(u128, u128, What)], most: u128, icmp: u8) -> Vec<(u128, u128, Ports)> {
    let behind = |last: u128| last.checked_add(1).filter(|next| *next <= most);
    let starts: BTreeSet<u128> =
        given.iter().flat_map(|(first, last, _)| [Some(*first), behind(*last)]).flatten().collect();
    let mut runs: Vec<(u128, u128, Vec<Ports>)> = Vec::new();
    let mut starts = starts.into_iter().peekable();
    while let Some(first) = starts.next() {
        let last = starts.peek().map_or(most, |next| next.saturating_sub(1));
        let here = given.iter().filter(|(from, to, _)| (*from..=*to).contains(&first)).map(|(.., what)| *what);
        let here = ports(&here.collect::<Vec<_>>(), icmp);
        match runs.last_mut() {
            Some((_, end, same)) if end.checked_add(1) == Some(first) && *same == here => *end = last,
            _ if here.is_empty() => {}
            _ => runs.push((first, last, here)),
        }
    }
    runs.into_iter().flat_map(|(first, last, here)| here.into_iter().map(move |ports| (first, last, ports))).collect()
}

/// The ranges of ports in which the given ones lie, without any overlap.
fn ports(given: &[What], icmp: u8) -> Vec<Ports> {
    if given.iter().any(|what| what.protocol.is_none()) {
        return vec![((0, u8::MAX), What::ANY.ports)];
    }
    let mut all = Vec::new();
    for (protocol, number) in [(Protocol::Icmp, icmp), (Protocol::Tcp, 6), (Protocol::Udp, 17)] {
        let mut of_it: Vec<(u16, u16)> =
            given.iter().filter(|what| what.protocol == Some(protocol)).map(|what| what.ports).collect();
        of_it.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::new();
        for (first, last) in of_it {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        all.extend(joined.into_iter().map(|ports| ((number, number), ports)));
    }
    all
}
