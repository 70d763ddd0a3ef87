//! The packet filter (nf_tables) that keeps guests to what is theirs: a table of this installation's own in each of the families `bridge` and
//! `inet`, and the elements of its ports. Touches one netlink socket, on the rtnl thread; runs no program.
//!
//! Ports are *elements* of sets, keyed by their interfaces' names, and never rules: to add one takes as long with a thousand of them.
//! A port's elements are there from before its TAP is on a bridge until after that has gone.
//!
//! What is there is known by the kernel's generation of the rules, which each change by anybody raises. Each change of ours is one batch,
//! which the kernel takes as a whole or not at all, and which names the generation that it goes on from: where somebody has changed
//! anything since, the kernel refuses it, and what there is of these tables is looked at first. If that is not what this netmgr has put
//! there, or it is a netmgr's first look, all of them is put there anew, in one batch: at each moment the old ones are in force or the new
//! ones. What an earlier netmgr has left is not compared: it goes, with whatever anybody has made of it. Other tables are never touched.

mod again;
mod connections;
mod device;
mod elements;
mod expression;
#[cfg(test)]
mod model;
mod outside;
mod policed;
mod policies;
mod rates;
mod routed;
mod rules;
mod table;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{OwnedFd, RawFd},
};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use schema::{net::Mac, network_capnp::MAX_RANGES, policy::Rules};

pub use self::wire::{Said, concerns};
use self::{
    device::Guard,
    elements::{NO_LIFE, count, lists_of},
    expression::State,
    policies::{NUMBER, Policies},
    rules::Element,
    table::{Family, Set},
    wire::{Attributes, ELEMENTS_SET, Item, Kind, Life, Object, Request, TABLE},
};
use crate::{
    ask::{self, failed, incomplete, refused, retried_if_passing},
    attribute::Malformed,
    error::Error,
    handed,
    instance::Instance,
    link::Count,
    netlink::{self, Socket},
    published::Published,
    rate::Rate,
    sources::Sources,
};

/// How often a change is tried that somebody else's changes come before.
const TRIES: usize = 16;
/// How often all of the table is looked at, or put there anew, to know of it.
const LOOKS: usize = 4;
/// The most bytes of a batch: some ten thousand ports' elements. The kernel's own limit is a few hundred of them.
const LONGEST_BATCH: usize = 8 << 20;

/// How many of the connections and counts that rules have noted are carried over when all of a table is put there anew: some MiB of a batch.
const MOST_NOTED: usize = 1 << 15;

const MAKE: &str = "set the rules of what guests may send";
const CHANGE: &str = "change what guests may send";
const CLEAR: &str = "take the rules of what guests may send away";
const LOOK: &str = "look at the rules of what guests may send";

/// Whose frames are looked at, and what they may be from.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Its interface's name.
    pub interface: &'a str,
    /// The guest's MAC address.
    pub mac: Mac,
    /// The addresses that it may send from; of a family of which there is none, it may send nothing.
    pub sources: &'a Sources,
    /// Its network.
    pub network: &'a str,
    /// Its workload, by which policies of that network name it.
    pub workload: &'a str,
    /// Where it may send to; `None` for wherever it likes.
    pub policy: Option<&'a Rules>,
    /// How much.
    pub rate: Rate,
}

/// A network, as far as the rules know it.
#[derive(Clone, Copy, Debug)]
pub struct Reach<'a> {
    /// Its name.
    pub network: &'a str,
    /// By which names its bridge may be met: its own, and one that somebody may have given it.
    pub interfaces: [Option<&'a str>; 2],
    /// The bridge's IPv4 address, with its subnet's prefix.
    pub ipv4: Option<(Ipv4Addr, u8)>,
    /// The same of IPv6.
    pub ipv6: Option<(Ipv6Addr, u8)>,
    /// Whether it has an uplink.
    pub uplink: bool,
    /// Whether its guests reach the outside.
    pub outward: bool,
    /// Whether they reach no service of the host's.
    pub closed: bool,
}

/// What the rules have counted of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// What its policy has let through, since it has one.
    pub allowed: Count,
    /// And what not.
    pub denied: Count,
    /// What was dropped as its guest must not send it.
    pub forged: Count,
    /// What was dropped of what its guest has sent beyond its rate, since it has one.
    pub over_from: Count,
    /// And of what it was sent.
    pub over_to: Count,
}

impl Counts {
    /// Notes what an element of a set that counts has counted.
    fn read(&mut self, set: Set, life: &Life) -> Result<(), Malformed> {
        let counted = match set {
            Set::Allowed => &mut self.allowed,
            Set::Denied => &mut self.denied,
            Set::OverFrom => &mut self.over_from,
            Set::OverTo => &mut self.over_to,
            _ => &mut self.forged,
        };
        *counted = count(life)?;
        Ok(())
    }
}

/// What an earlier netmgr has left, by names of interfaces, or networks.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The policies that they are subject to.
    pub policies: BTreeMap<String, Rules>,
    /// How much they carry.
    pub rates: BTreeMap<String, Rate>,
}

/// What elements are there for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// A port, by its interface.
    Port(String),
    /// A network, by its name.
    Network(String),
    /// The ports of a network that are to come, by its name.
    Default(String),
    /// A policy, by its number.
    Policy(u32),
    /// The host.
    Host,
    /// All ports that are published.
    Published,
    /// All interfaces that guests have alone.
    Beneath,
    /// A workload of a network that has an uplink: who comes by that is not taken for it.
    Inside(String, String),
}

/// Elements, by what they are there for.
type Elements = BTreeMap<Owner, BTreeSet<Element>>;

/// What is known of the tables in the kernel.
#[derive(Debug)]
struct Known {
    /// At which generation it was so.
    generation: u32,
    /// The tables, their sets, chains and rules, as the kernel has told of them when they had just been made.
    objects: Vec<Object>,
    /// The state that the bridges' rules are in.
    state: State,
}

/// What there is in the kernel: the tables, their sets, chains and rules, and what is in the sets.
type Seen = (Vec<Object>, BTreeSet<Element>);

/// What became of a batch.
enum Sent {
    Done,
    /// Somebody has changed rules, of whichever table, since the generation that it names.
    Late,
}

/// The tables in the kernel.
pub struct Filter {
    socket: Socket<Request>,
    table: String,
    /// Those in which the kernel takes the rules.
    families: &'static [Family],
    /// Those that are in the tables, if these are known, and else those that are to be.
    elements: Elements,
    policies: Policies,
    /// The networks that have an uplink.
    uplinks: BTreeSet<String>,
    /// The policies whose elements may be others now.
    touched: BTreeSet<u32>,
    /// The state that the bridges' rules are to be in.
    state: State,
    /// Of whose elements some are rates of what is sent to a port.
    rated: BTreeSet<Owner>,
    known: Option<Known>,
    /// Whether there were none of these that were known to be as they should be, and nobody has asked for that since.
    was_lost: bool,
    /// Who may have begun what was counted in tables that these have come in the place of.
    uncounted: BTreeSet<IpAddr>,
    /// What is known of the tables beside it, by the interfaces that they are for.
    guards: BTreeMap<String, Guard>,
}

impl Filter {
    /// Opens the socket, in phase 1; [`Error::NoFilter`] where the kernel has none that takes the rules.
    pub fn open(instance: &Instance) -> Result<Filter, Error> {
        let refused = |source: io::Error| match source.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => Error::NoFilter(source),
            _ => Error::Kernel { tried: "open a socket to nf_tables".into(), source, detail: String::new() },
        };
        let socket = Socket::open().map_err(refused)?;
        socket.let_send(LONGEST_BATCH);
        Filter::over(socket, instance)
    }

    /// The same of a namespace that was handed over.
    pub fn of(socket: OwnedFd, instance: &Instance) -> Result<Filter, Error> {
        let socket = Socket::handed(socket);
        if !socket.is_idle() {
            return Err(Error::argument("descriptor", "nfnetlink", handed::USED));
        }
        Filter::over(socket, instance)
    }

    fn over(socket: Socket<Request>, instance: &Instance) -> Result<Filter, Error> {
        let (table, families) = (rules::table(instance), &Family::ALL[..]);
        let mut filter = Filter {
            socket,
            table,
            families,
            elements: Elements::new(),
            policies: Policies::default(),
            uplinks: BTreeSet::new(),
            touched: BTreeSet::new(),
            state: State::default(),
            rated: BTreeSet::new(),
            known: None,
            was_lost: false,
            uncounted: BTreeSet::new(),
            guards: BTreeMap::new(),
        };
        let mut outcome = filter.probe();
        if let Err(Error::NoFilter(_)) = outcome {
            filter.families = &[Family::Bridge];
            outcome = filter.probe();
        }
        match outcome {
            // Not to be changed here is what each change says.
            Ok(()) | Err(Error::NoRight(_)) => Ok(filter),
            Err(error) => Err(error),
        }
    }

    /// Whether what goes beyond networks is looked at, and redirected.
    pub fn routes(&self) -> bool {
        self.families.contains(&Family::Inet)
    }

    /// Sees whether the kernel takes the rules: has it make a table of them under a name of its own, and take it away, in one batch.
    fn probe(&mut self) -> Result<(), Error> {
        let name = format!("{}-probe", self.table);
        let requests = self
            .all(|family| Ok([rules::make(&name, family, State::default())?, rules::clear(&name, family)?].concat()));
        let requests = requests.map_err(|why| unsent(MAKE, why))?;
        retried_if_passing(|| self.send(MAKE, None, requests.clone()).map(drop)).map_err(|error| match error {
            Error::Kernel { source, .. } if lacks_filter(&source) => Error::NoFilter(source),
            error => error,
        })
    }

    /// The tables' name.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// The socket's descriptor, for the sandbox to keep.
    pub fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    /// Takes over what an earlier netmgr let those interfaces send that are chosen: they may be ports that nobody can tell as such any more. Gives the
    /// policies that interfaces, or networks, were subject to, and rates, by their names, with those of the interfaces that are `guarded`: a policy of which
    /// nothing can be read allows nothing; and the ports of the host that it had published.
    pub fn adopt<'a>(
        &mut self,
        chosen: impl Fn(&str) -> bool,
        guarded: impl Iterator<Item = &'a str>,
    ) -> Result<(Adopted, Vec<Published>), Error> {
        let (_, elements) = self.look()?;
        let published = elements.iter().filter_map(routed::read_published).collect();
        let policies = policies::read(&elements);
        for (number, (network, rules)) in &policies {
            self.policies.adopt(*number, network.clone(), rules.clone());
            self.touched.insert(*number);
        }
        let (mut subject, mut rates) = (BTreeMap::new(), BTreeMap::new());
        let mut note = |interface: &str, element: &Element| {
            if element.set == Set::Policies {
                let number = element.item.data.as_slice().try_into().ok().map(u32::from_ne_bytes);
                let policy = number.and_then(|number| policies.get(&(number & NUMBER))).map(|(_, rules)| rules.clone());
                subject.insert(interface.to_owned(), policy.unwrap_or_default());
            }
            if element.set.limits() {
                rates::read(element, rates.entry(interface.to_owned()).or_default());
            }
        };
        for interface in guarded {
            let table = self.beside(interface);
            let given = self.elements_beside(&table, |set| set == Set::Policies || set.limits())?;
            given.iter().for_each(|(element, _)| note(interface, element));
        }
        for element in elements {
            let Some(interface) = element.port().map(str::to_owned) else { continue };
            note(&interface, &element);
            if chosen(&interface) {
                let owner = Owner::Port(interface);
                if is_rate_to(&element) {
                    self.rated.insert(owner.clone());
                }
                self.elements.entry(owner).or_default().insert(element);
            }
        }
        for (interface, policy) in subject.iter().filter(|(interface, _)| chosen(interface)) {
            self.policies.put(interface, ("", ""), &Sources::default(), Some(policy), &mut self.touched);
        }
        Ok((Adopted { policies: subject, rates }, published))
    }

    /// Sees to it that the tables are as they should be and hold the elements of these ports and of none that has gone, as `there` tells; of these
    /// networks, and of what their ports to come are subject to; and of the host's `own` addresses. Whether somebody else had changed them. (An interface that is
    /// there may be a port's that could not be taken away.)
    pub fn mend<'a>(
        &mut self,
        ports: impl Iterator<Item = Sender<'a>>,
        networks: impl Iterator<Item = Reach<'a>>,
        defaults: impl Iterator<Item = (&'a str, &'a Rules)>,
        own: impl Iterator<Item = IpAddr>,
        there: impl Fn(&str) -> bool,
    ) -> Result<bool, Error> {
        let mut wanted = Elements::from([(Owner::Host, policies::own(own))]);
        let networks: Vec<Reach<'_>> = networks.collect();
        self.uplinks = networks.iter().filter(|one| one.uplink).map(|one| one.network.to_owned()).collect();
        for port in ports {
            wanted.extend(self.elements_of(port));
        }
        let reach = networks.iter().map(|network| (Owner::Network(network.network.to_owned()), network.elements()));
        wanted.extend(reach);
        for (network, policy) in defaults {
            wanted.insert(Owner::Default(network.to_owned()), self.elements_of_network(network, policy));
        }
        let changed = self.known.is_some() && !self.is_whole().unwrap_or(true);
        wanted
            .values_mut()
            .for_each(|elements| elements.retain(|element| self.families.contains(&element.set.family())));
        let known = self.elements.keys().chain(wanted.keys());
        let gone = known.filter(|owner| match owner {
            Owner::Port(interface) => !wanted.contains_key(owner) && !there(interface),
            Owner::Network(_) | Owner::Default(_) | Owner::Inside(..) => !wanted.contains_key(owner),
            Owner::Policy(_) | Owner::Host | Owner::Published | Owner::Beneath => false,
        });
        let gone: BTreeSet<Owner> = gone.cloned().collect();
        let stays = |name: &str| {
            let is = |owner: &Owner| {
                wanted.contains_key(owner) || self.elements.contains_key(owner) && !gone.contains(owner)
            };
            let guarded = self.guards.contains_key(name);
            guarded || is(&Owner::Port(name.to_owned())) || is(&Owner::Default(name.to_owned()))
        };
        let forgotten: Vec<String> =
            self.policies.interfaces().filter(|name| !stays(name)).map(str::to_owned).collect();
        forgotten.iter().for_each(|name| self.policies.remove(name, &mut self.touched));
        self.apply(wanted.into_iter().chain(gone.into_iter().map(|owner| (owner, BTreeSet::new()))).collect())?;
        Ok(changed)
    }

    /// Lets a port send what it may, before it is on a bridge; or has it send something else: one exchange with the kernel. Nothing has changed where
    /// it fails because the port's policy is too much.
    pub fn add(&mut self, port: Sender<'_>) -> Result<(), Error> {
        self.has_room(port.network, port.policy)?;
        let elements = self.elements_of(port);
        self.apply(elements)
    }

    /// Has a network's ports that are to come be subject to a policy, or to none.
    pub fn set_default(&mut self, network: &str, policy: Option<&Rules>) -> Result<(), Error> {
        self.has_room(network, policy)?;
        let elements = match policy {
            Some(policy) => self.elements_of_network(network, policy),
            None => {
                self.policies.remove(network, &mut self.touched);
                BTreeSet::new()
            }
        };
        self.apply(Elements::from([(Owner::Default(network.to_owned()), elements)]))
    }

    /// Forgets of ports that were given up all but that their interfaces are there still, of which nothing is let through then: one exchange with the
    /// kernel.
    pub fn cut_off<'a>(&mut self, interfaces: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let mut wanted = Elements::new();
        for interface in interfaces {
            self.policies.remove(interface, &mut self.touched);
            let owner = Owner::Port(interface.to_owned());
            let mut left = self.elements.get(&owner).cloned().unwrap_or_default();
            left.retain(|element| element.set == Set::Ports);
            wanted.insert(owner, left);
        }
        self.apply(wanted)
    }

    /// Forgets ports, whose interfaces have gone: one exchange with the kernel.
    pub fn remove<'a>(&mut self, interfaces: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let mut wanted = Elements::new();
        for interface in interfaces {
            self.policies.remove(interface, &mut self.touched);
            wanted.insert(Owner::Port(interface.to_owned()), BTreeSet::new());
        }
        self.apply(wanted)
    }

    /// What there is counted of ports, by their interfaces.
    pub fn counts(&mut self) -> Result<BTreeMap<String, Counts>, Error> {
        let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
        for set in Set::ALL.into_iter().filter(|set| set.counts()) {
            for (item, life) in self.items(set)? {
                let Some(name) = Element { set, item }.port().map(str::to_owned) else { continue };
                counts.entry(name).or_default().read(set, &life).map_err(|why| unsent(LOOK, why))?;
            }
        }
        Ok(counts)
    }

    fn elements_of(&mut self, port: Sender<'_>) -> Elements {
        let Sender { interface, mac, sources, network, workload, .. } = port;
        let own = self.own(port, interface);
        let mut elements = Elements::from([(Owner::Port(interface.to_owned()), own)]);
        if self.uplinks.contains(network) {
            let inside = outside::of_guest(network, mac, sources.iter()).into_iter().collect();
            elements.insert(Owner::Inside(network.to_owned(), workload.to_owned()), inside);
        }
        elements
    }

    /// What is a port's alone, under that name of its interface.
    fn own(&mut self, port: Sender<'_>, name: &str) -> BTreeSet<Element> {
        let Sender { interface, mac, sources, network, workload, policy, rate } = port;
        let policy = self.policies.put(interface, (network, workload), sources, policy, &mut self.touched);
        let policed = policy.map(|policy| policies::of_port(name, sources, policy));
        let own = rules::elements(name, mac, sources.iter()).into_iter().chain(rates::elements(name, rate));
        own.chain(policed.into_iter().flatten()).collect()
    }

    fn elements_of_network(&mut self, network: &str, policy: &Rules) -> BTreeSet<Element> {
        let number = self.policies.put(network, (network, ""), &Sources::default(), Some(policy), &mut self.touched);
        number.into_iter().map(|number| policies::subject(network, number)).collect()
    }

    /// Has each of these have those elements and no others, and each policy those that follow from what is subject to it.
    fn apply(&mut self, mut wanted: Elements) -> Result<(), Error> {
        for number in &self.touched {
            wanted.insert(Owner::Policy(*number), self.policies.elements(*number));
        }
        self.change(wanted)?;
        self.follow()?;
        self.touched.clear();
        Ok(())
    }

    /// Has each policy the elements that follow from what is subject to it.
    fn settle(&mut self) -> Result<(), Error> {
        if self.touched.is_empty() { Ok(()) } else { self.apply(Elements::new()) }
    }

    /// Whether a policy can be in force beside those that are.
    fn has_room(&self, network: &str, policy: Option<&Rules>) -> Result<(), Error> {
        let Some(more) = policy.and_then(|policy| self.policies.more(network, policy)) else { return Ok(()) };
        let policies = self.elements.range(Owner::Policy(0)..=Owner::Policy(u32::MAX));
        let there: usize = policies.map(|(_, elements)| elements.len()).sum();
        if there + more > MAX_RANGES as usize {
            return Err(Error::Full { what: "ranges of addresses and ports in policies", limit: MAX_RANGES as usize });
        }
        Ok(())
    }

    /// Has these ports be published, and no others, with the next change.
    pub fn hold_published<'a>(&mut self, published: impl Iterator<Item = &'a Published>) {
        self.elements.insert(Owner::Published, published.map(routed::published).collect());
    }

    /// Has these ports be published, and no others.
    pub fn publish<'a>(&mut self, published: impl Iterator<Item = &'a Published>) -> Result<(), Error> {
        self.change(Elements::from([(Owner::Published, published.map(routed::published).collect())]))
    }

    /// Has nothing come to the host by these interfaces, which guests have alone, and by no others of such.
    pub fn keep_off<'a>(&mut self, interfaces: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let elements = interfaces.map(routed::beneath).filter(|_| self.routes()).collect();
        self.change(Elements::from([(Owner::Beneath, elements)]))
    }

    /// Nor by that one.
    pub fn keep_off_also(&mut self, interface: &str) -> Result<(), Error> {
        let mut elements = self.elements.get(&Owner::Beneath).cloned().unwrap_or_default();
        elements.extend(self.routes().then(|| routed::beneath(interface)));
        self.change(Elements::from([(Owner::Beneath, elements)]))
    }

    /// Takes the tables away, where there is no port any more.
    pub fn clear(&mut self) -> Result<(), Error> {
        let requests = self.all(|family| rules::clear(&self.table, family)).map_err(|why| unsent(CLEAR, why))?;
        (self.elements, self.rated, self.known) = (Elements::new(), BTreeSet::new(), None);
        (self.policies, self.touched, self.uplinks) = (Policies::default(), BTreeSet::new(), BTreeSet::new());
        self.send(CLEAR, None, requests).map(drop)
    }

    /// Has each of these have those elements and no others.
    fn change(&mut self, wanted: Elements) -> Result<(), Error> {
        let turn = self.state.turn.wrapping_add(self.takes(&wanted).into());
        let stay = self.rated.iter().any(|owner| !wanted.contains_key(owner));
        self.state = State { turn, to_rates: stay || wanted.values().flatten().any(is_rate_to) };
        retried_if_passing(|| self.try_change(&wanted))
    }

    /// Whether by such a change something may not be let through any more that was.
    fn takes(&self, wanted: &Elements) -> bool {
        let none = BTreeSet::new();
        wanted.iter().any(|(owner, elements)| {
            let there = self.elements.get(owner).unwrap_or(&none);
            match owner {
                Owner::Host => !elements.is_subset(there),
                // Who is subject to none any more is looked at as the port that it is.
                Owner::Policy(_) => !elements.is_empty() && !there.is_subset(elements),
                // One that has none is not counted, and so looked at by all rules; of one that was not there nothing is noted.
                Owner::Port(_) => policies::subject_of(elements).is_some() && !there.is_empty() && there != elements,
                _ => false,
            }
        })
    }

    fn try_change(&mut self, wanted: &Elements) -> Result<(), Error> {
        for _ in 0..TRIES {
            let Some(known) = &self.known else {
                self.note(wanted);
                return self.replace();
            };
            let generation = known.generation;
            let (mut gone, mut new) = (Vec::new(), Vec::new());
            let none = BTreeSet::new();
            for (owner, elements) in wanted {
                let there = self.elements.get(owner).unwrap_or(&none);
                gone.extend(there.difference(elements));
                new.extend(elements.difference(there));
            }
            let is_there = gone.is_empty() && new.is_empty();
            let requests = if is_there {
                if known.state == self.state {
                    return Ok(());
                }
                rules::change(&self.table, self.state)
            } else {
                let lists = [(Kind::DelSetElem, gone), (Kind::NewSetElem, new)];
                let lists = lists.into_iter().map(|(kind, elements)| {
                    let elements = elements.into_iter().map(|element| (element, &NO_LIFE)).collect();
                    lists_of(&self.table, kind, Set::family, elements)
                });
                lists.collect::<Result<Vec<_>, _>>().map(|lists| lists.concat())
            };
            let requests = requests.map_err(|why| unsent(CHANGE, why))?;
            // What has become of it is not known until it is.
            let known = self.known.take();
            match self.send(CHANGE, Some(generation), requests) {
                Ok(Sent::Done) if is_there => {
                    let generation = self.passed(generation);
                    self.know_again(generation);
                }
                Ok(Sent::Done) => {
                    self.note(wanted);
                    self.known = known;
                    self.passed(generation);
                }
                Ok(Sent::Late) => {
                    self.known = known;
                    // What cannot be told of it for all that others change meanwhile is put there anew.
                    _ = self.is_whole();
                }
                // Elements that are not as this netmgr knows them, or an answer that was lost: all is put there anew.
                Err(error @ (Error::NoRight(_) | Error::Deadline { .. })) => return Err(error),
                Err(_) => {}
            }
        }
        self.known = None;
        self.note(wanted);
        self.replace()
    }

    fn note(&mut self, wanted: &Elements) {
        for (owner, elements) in wanted {
            if elements.iter().any(is_rate_to) {
                self.rated.insert(owner.clone());
            } else {
                self.rated.remove(owner);
            }
            if elements.is_empty() {
                self.elements.remove(owner);
            } else {
                self.elements.insert(owner.clone(), elements.clone());
            }
        }
    }

    /// Whether it is known what is in the tables.
    pub fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// Whether there was a moment since the last question when it was not, and they were put there anew.
    pub fn was_lost(&mut self) -> bool {
        mem::take(&mut self.was_lost)
    }

    /// Whether nobody else has changed rules, of whichever table, since this netmgr did.
    pub fn is_untouched(&mut self) -> bool {
        let known = self.known.as_ref().map(|known| known.generation);
        known.is_some() && self.generation().ok() == known
    }

    /// Whether the tables are as this netmgr has put them there; forgets what it knows if not, or if that cannot be told.
    fn is_whole(&mut self) -> Result<bool, Error> {
        let Some(known) = self.known.take() else { return Ok(false) };
        for _ in 0..LOOKS {
            let generation = self.generation()?;
            if generation == known.generation {
                self.known = Some(known);
                return Ok(true);
            }
            let (objects, elements) = self.look()?;
            if self.generation()? != generation {
                continue;
            }
            let expected = self.elements.values().flatten().cloned().chain(self.constants()).collect();
            if known.objects == objects && elements == expected {
                self.known = Some(Known { generation, ..known });
            }
            return Ok(self.known.is_some());
        }
        Err(restless())
    }

    /// Puts the tables there anew, whatever there is. Where others change rules all the time, they are there all the same, but not known: the
    /// next change puts them there again. What the rules themselves have noted is put there again, as far as it can be: a connection goes on.
    fn replace(&mut self) -> Result<(), Error> {
        self.was_lost = true;
        self.uncounted.extend(self.elements.values().flatten().filter_map(Element::source));
        let noted = self.noted().unwrap_or_default();
        let mut requests = self.anew(&noted).map_err(|why| unsent(MAKE, why))?;
        for _ in 0..LOOKS {
            let generation = self.generation()?;
            match self.send(MAKE, Some(generation), requests.clone()) {
                Ok(Sent::Done) => _ = self.passed(generation),
                Ok(Sent::Late) => continue,
                Err(error @ (Error::NoRight(_) | Error::Deadline { .. })) => return Err(error),
                // Whatever somebody may have made of that.
                Err(_) if !noted.is_empty() => {
                    requests = self.anew(&[]).map_err(|why| unsent(MAKE, why))?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            // Only who reads what it has made knows by which numbers to tell it from another's.
            self.know_again(after(generation));
            if self.is_known() {
                return Ok(());
            }
        }
        self.send(MAKE, None, requests).map(drop)
    }

    /// Learns by which numbers the kernel knows what was put there at that generation, to tell it from another's; if that is not the last one, nothing is known.
    fn know_again(&mut self, generation: u32) {
        let objects = self.objects();
        let is_last = self.generation().is_ok_and(|last| last == generation);
        let state = self.state;
        self.known = objects.ok().filter(|_| is_last).map(|objects| Known { generation, objects, state });
    }

    /// What was known at that generation is known at the next one, which is a change of this netmgr's own.
    fn passed(&mut self, generation: u32) -> u32 {
        let next = after(generation);
        let known = self.known.iter_mut().map(|known| &mut known.generation);
        let known = known.chain(self.guards.values_mut().map(|guard| &mut guard.generation));
        known.filter(|known| **known == generation).for_each(|known| *known = next);
        next
    }

    /// The requests that each family takes.
    fn all(&self, of: impl Fn(Family) -> Result<Vec<Request>, Malformed>) -> Result<Vec<Request>, Malformed> {
        Ok(self.families.iter().map(|family| of(*family)).collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// What there always is in the sets.
    fn constants(&self) -> impl Iterator<Item = Element> {
        rules::constants().filter(|element| self.families.contains(&element.set.family()))
    }

    /// The requests that put all of it there, with what was noted before.
    fn anew(&self, noted: &[(Element, Life)]) -> Result<Vec<Request>, Malformed> {
        let constants: Vec<Element> = self.constants().collect();
        let elements = with_noted(self.elements.values().flatten().chain(&constants), noted);
        let mut requests = self.all(|family| rules::make(&self.table, family, self.state))?;
        requests.extend(lists_of(&self.table, Kind::NewSetElem, Set::family, elements)?);
        Ok(requests)
    }

    /// What the rules themselves have noted: what others have begun, and counts.
    fn noted(&mut self) -> Result<Vec<(Element, Life)>, Error> {
        let mut noted = Vec::new();
        for set in Set::ALL.into_iter().filter(|set| notes(*set)) {
            let items = self.items(set)?.into_iter().filter(|(_, life)| is_left(set, life));
            noted.extend(items.map(|(item, life)| (Element { set, item }, life)));
        }
        noted.truncate(MOST_NOTED);
        Ok(noted)
    }

    /// Sends one batch.
    fn send(&mut self, tried: &str, generation: Option<u32>, requests: Vec<Request>) -> Result<Sent, Error> {
        let unanswered = |message, flags| {
            let mut request = netlink::request(message, flags);
            request.header.flags &= !NLM_F_ACK;
            request
        };
        let mut batch = vec![unanswered(Request::begin(generation), 0)];
        batch.extend(requests.into_iter().map(|request| {
            let flags = request.flags();
            unanswered(request, flags)
        }));
        // One answer for all of them, so that no number of answers is more than the socket holds: the first refusal, or that there was none.
        if let Some(last) = batch.last_mut() {
            last.header.flags |= NLM_F_ACK;
        }
        batch.push(unanswered(Request::end(), 0));
        let answers = self.socket.exchange(batch, |_| ()).map_err(|failure| failed(failure, tried))?;
        match answers.into_iter().next() {
            Some(Ok(())) => Ok(Sent::Done),
            Some(Err(refusal)) if refusal.errno == libc::ERESTART => Ok(Sent::Late),
            Some(Err(refusal)) => Err(refused(refusal, tried)),
            None => Err(incomplete(tried)),
        }
    }

    /// The generation of the rules of this network namespace.
    fn generation(&mut self) -> Result<u32, Error> {
        let request = netlink::request(Request::generation(), 0);
        let (found, answers) = ask::question(&mut self.socket, LOOK, &[request], |found: &mut Option<u32>, said| {
            if let Said::Generation(generation) = said {
                *found = Some(generation);
            }
        })?;
        match answers.into_iter().next() {
            Some(Err(refusal)) => Err(refused(refusal, LOOK)),
            _ => found.ok_or_else(|| incomplete(LOOK)),
        }
    }

    /// The tables, their sets, chains and rules, and what is in the sets.
    fn look(&mut self) -> Result<Seen, Error> {
        let (objects, mut elements) = (self.objects()?, BTreeSet::new());
        let kept = |set: &Set| is_kept(*set) && self.families.contains(&set.family());
        let sets: Vec<Set> = Set::ALL.into_iter().filter(kept).collect();
        for set in sets {
            elements.extend(self.items(set)?.into_iter().map(|(item, _)| Element { set, item }));
        }
        Ok((objects, elements))
    }

    /// The tables, their sets, chains and rules.
    fn objects(&mut self) -> Result<Vec<Object>, Error> {
        let mut objects = Vec::new();
        for family in self.families.iter().copied() {
            for kind in [Kind::GetTable, Kind::GetSet, Kind::GetChain, Kind::GetRule] {
                let said = self.list(kind, family, Attributes::default())?;
                objects.extend(said.into_iter().filter_map(|said| match said {
                    Said::Object { table, object } if table == self.table => Some(object),
                    _ => None,
                }));
            }
        }
        Ok(objects)
    }

    /// What is in a set.
    fn items(&mut self, set: Set) -> Result<Vec<(Item, Life)>, Error> {
        let table = self.table.clone();
        self.items_of(&table, set.family(), set)
    }

    /// What is in a set of that table.
    fn items_of(&mut self, name: &str, of_family: Family, set: Set) -> Result<Vec<(Item, Life)>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(TABLE, name).text(ELEMENTS_SET, set.name());
        let said = self.list(Kind::GetSetElem, of_family, attributes)?;
        let items = said.into_iter().filter_map(|said| match said {
            Said::Elements { table: (family, table), set: of, items }
                if (family, table.as_str(), of.as_str()) == (of_family, name, set.name()) =>
            {
                Some(items)
            }
            _ => None,
        });
        Ok(items.flatten().collect())
    }

    /// A list; an empty one if what it would be of is not there.
    fn list(&mut self, kind: Kind, family: Family, attributes: Attributes) -> Result<Vec<Said>, Error> {
        let request = Request::new(kind, family, attributes).map_err(|why| unsent(LOOK, why))?;
        let request = netlink::request(request, NLM_F_DUMP);
        let (found, answers) =
            ask::question(&mut self.socket, LOOK, &[request], |found: &mut Vec<Said>, said| found.push(said))?;
        match answers.into_iter().next() {
            Some(Ok(())) => Ok(found),
            Some(Err(refusal)) if refusal.errno == libc::ENOENT => Ok(Vec::new()),
            Some(Err(refusal)) => Err(refused(refusal, LOOK)),
            None => Err(incomplete(LOOK)),
        }
    }
}

impl Reach<'_> {
    fn elements(&self) -> BTreeSet<Element> {
        let bridges = self.interfaces.into_iter().flatten();
        let outside = if self.uplink { outside::of_network(*self) } else { Vec::new() };
        bridges.flat_map(|bridge| routed::elements(*self, bridge)).chain(outside).collect()
    }
}

/// Elements as they are put there, with what was noted before: of each what it has counted; and what rules have put there.
fn with_noted<'a>(
    elements: impl Iterator<Item = &'a Element>,
    noted: &'a [(Element, Life)],
) -> Vec<(&'a Element, &'a Life)> {
    let (counted, flows): (Vec<_>, Vec<_>) =
        noted.iter().map(|(element, life)| (element, life)).partition(|(element, _)| element.set.counts());
    let counted: BTreeMap<&Element, &Life> = counted.into_iter().collect();
    let elements = elements.map(|element| (element, counted.get(element).copied().unwrap_or(&NO_LIFE)));
    elements.chain(flows).collect()
}

/// Whether it limits what is sent to a port.
fn is_rate_to(element: &Element) -> bool {
    element.set == Set::RatesTo
}

/// Whether what is in it is netmgr's, and to be compared.
fn is_kept(set: Set) -> bool {
    !set.has_timeouts() && set.fills_itself().is_none()
}

/// Whether rules note in it what is not to be lost: counts, and what policies go by.
fn notes(set: Set) -> bool {
    set.counts() || set.notes()
}

/// Whether that is not at its end as yet.
fn is_left(set: Set, life: &Life) -> bool {
    set.counts() || life.expiration.iter().any(|byte| *byte != 0)
}

/// The generation that follows: the kernel leaves 0 out.
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// Whether that refusal means that this kernel has no nf_tables, none of these families, or not all that the rules take.
fn lacks_filter(source: &io::Error) -> bool {
    const LACKS: [i32; 5] = [libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ENOENT, libc::EINVAL];
    source.raw_os_error().is_some_and(|errno| LACKS.contains(&errno))
}

fn unsent(tried: &str, why: Malformed) -> Error {
    Error::Answer { tried: tried.to_owned(), why: why.to_string().into() }
}

fn restless() -> Error {
    Error::Answer { tried: CHANGE.to_owned(), why: "something else changes rules each time before it is done".into() }
}
