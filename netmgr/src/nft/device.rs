//! What a guest sends, and is sent, by an interface that is on no bridge: a table of its own for each, in the family `netdev`, of the same chains as a
//! bridge's, where the kernel comes to by itself with all that leaves by that interface, before it is anywhere, and with what comes by it. It holds one
//! port, whose elements therefore have no interface's name in them (what leaves has come by none, and what comes is yet to leave). It goes with the port.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Counts, Filter, LOOK, NO_LIFE, Sender,
    elements::lists_of,
    expression::{
        Field::{Interface, Out, Protocol},
        Test::{In, Is},
        Verdict::{Drop, Goto, Jump},
    },
    policed::TO4,
    rates,
    rules::{self, Element, IPV4, Rule},
    table::{Chain, Family, Set},
    unsent,
    wire::{Attributes, Kind, Life, Object, Said},
};
use schema::policy::METADATA_4;

use crate::{error::Error, rate::Rate};

/// What leaves by the interface.
pub const EGRESS: &[Rule] = &[
    ("beyond its rate", &[In(Interface, Set::RatesFrom)], Goto(Chain::OverFrom)),
    ("what a guest sends", &[], Jump(Chain::Guest)),
    // Of IPv6 it sends none.
    ("the metadata of clouds", &[Is(Protocol, IPV4), Is(TO4, &METADATA_4.octets())], Drop),
];
/// What comes by it.
pub const INGRESS: &[Rule] = &[("beyond its rate", &[In(Out, Set::RatesTo)], Goto(Chain::OverTo))];

const MAKE: &str = "set the rules of what a guest on a macvtap may send";
const CLEAR: &str = "take the rules of what a guest on a macvtap may send away";
/// What the names of those interfaces begin with.
const PORT: &str = "mvt-";

/// What is known of such a table.
pub struct Guard {
    /// Since when it was so.
    generation: u32,
    objects: Vec<Object>,
    elements: BTreeSet<Element>,
}

/// Of whose interface that table is, if it is one of those beside `own`.
fn interface<'a>(table: &'a str, own: &str) -> Option<&'a str> {
    table.strip_prefix(own)?.strip_prefix('-').filter(|interface| interface.starts_with(PORT))
}

/// Whether a table is one of those beside that of that name.
pub fn is_beside(table: &str, own: &str) -> bool {
    interface(table, own).is_some()
}

impl Filter {
    fn beside(&self, interface: &str) -> String {
        format!("{}-{interface}", self.table)
    }

    /// Has what leaves by an interface be what its port's guest may send, before that is up: one batch, in the place of what there was.
    pub fn guard(&mut self, port: Sender<'_>) -> Result<(), Error> {
        let (table, elements) = (self.beside(port.interface), elements_of(port));
        // What was counted goes on.
        let counted = self.elements_beside(&table, Set::counts)?;
        let counted: BTreeMap<&Element, &Life> = counted.iter().map(|(element, life)| (element, life)).collect();
        let lives = elements.iter().map(|element| (element, counted.get(element).copied().unwrap_or(&NO_LIFE)));
        let requests = rules::make_at(&table, port.interface).and_then(|mut requests| {
            requests.extend(lists_of(&table, Kind::NewSetElem, |_| Family::Netdev, lives.collect())?);
            Ok(requests)
        });
        self.guards.remove(port.interface);
        match self.send(MAKE, None, requests.map_err(|why| unsent(MAKE, why))?) {
            Err(Error::Kernel { source, .. }) if super::lacks_filter(&source) => return Err(Error::NoEgress(source)),
            sent => _ = sent?,
        }
        let generation = self.generation()?;
        let (objects, found) = self.look_beside(&table)?;
        if found == elements {
            self.guards.insert(port.interface.to_owned(), Guard { generation, objects, elements });
        }
        Ok(())
    }

    /// Takes the rules for what leaves by an interface away.
    pub fn unguard(&mut self, interface: &str) -> Result<(), Error> {
        self.guards.remove(interface);
        let requests = rules::clear(&self.beside(interface), Family::Netdev).map_err(|why| unsent(CLEAR, why))?;
        self.send(CLEAR, None, requests).map(drop)
    }

    /// Sees to it that there are such rules for these ports, as they should be, and for no others: whether somebody had changed them.
    pub fn mend_guards<'a>(&mut self, ports: impl Iterator<Item = Sender<'a>>) -> Result<bool, Error> {
        let ports: BTreeMap<&str, Sender<'a>> = ports.map(|port| (port.interface, port)).collect();
        let gone: Vec<String> = self.guards.keys().filter(|name| !ports.contains_key(name.as_str())).cloned().collect();
        gone.iter().try_for_each(|interface| self.unguard(interface))?;
        let mut changed = false;
        for port in ports.into_values() {
            let known = self.guards.contains_key(port.interface);
            if !self.is_guarded(port)? {
                self.guard(port)?;
                changed |= known;
            }
        }
        Ok(changed)
    }

    fn is_guarded(&mut self, port: Sender<'_>) -> Result<bool, Error> {
        let generation = self.generation()?;
        let Some(guard) = self.guards.get(port.interface) else { return Ok(false) };
        if guard.elements != elements_of(port) {
            return Ok(false);
        }
        if guard.generation != generation {
            let (objects, elements) = self.look_beside(&self.beside(port.interface))?;
            let Some(guard) = self.guards.get_mut(port.interface) else { return Ok(false) };
            if guard.objects != objects || guard.elements != elements {
                return Ok(false);
            }
            guard.generation = generation;
        }
        Ok(true)
    }

    /// Takes away what an earlier netmgr has left for interfaces that are not `kept`.
    pub fn sweep_guards(&mut self, kept: impl Fn(&str) -> bool) -> Result<(), Error> {
        let said = self.list(Kind::GetTable, Family::Netdev, Attributes::default())?;
        let left: Vec<String> = said
            .into_iter()
            .filter_map(|said| match said {
                Said::Object { table, .. } => {
                    interface(&table, &self.table).filter(|name| !kept(name)).map(str::to_owned)
                }
                _ => None,
            })
            .collect();
        left.iter().try_for_each(|interface| self.unguard(interface))
    }

    fn look_beside(&mut self, name: &str) -> Result<(Vec<Object>, BTreeSet<Element>), Error> {
        let (mut objects, mut elements) = (Vec::new(), BTreeSet::new());
        for kind in [Kind::GetTable, Kind::GetSet, Kind::GetChain, Kind::GetRule] {
            let said = self.list(kind, Family::Netdev, Attributes::default())?;
            objects.extend(said.into_iter().filter_map(|said| match said {
                Said::Object { table, object } if table == name => Some(object),
                _ => None,
            }));
        }
        elements.extend(self.elements_beside(name, |_| true)?.into_iter().map(|(element, _)| element));
        Ok((objects, elements))
    }

    fn elements_beside(&mut self, table: &str, chosen: impl Fn(Set) -> bool) -> Result<Vec<(Element, Life)>, Error> {
        let mut elements = Vec::new();
        for set in Family::Netdev.sets().filter(|set| chosen(*set)) {
            let items = self.items_of(table, Family::Netdev, set)?;
            elements.extend(items.into_iter().map(|(item, life)| (Element { set, item }, life)));
        }
        Ok(elements)
    }

    /// What there is counted of the port of an interface.
    pub fn counts_at(&mut self, interface: &str) -> Result<Counts, Error> {
        let mut counts = Counts::default();
        for (element, life) in self.elements_beside(&self.beside(interface), Set::counts)? {
            counts.read(element.set, &life).map_err(|why| unsent(LOOK, why))?;
        }
        Ok(counts)
    }

    /// How much the port of an interface carries, as an earlier netmgr has left it.
    pub fn rate_at(&mut self, interface: &str) -> Result<Rate, Error> {
        let mut rate = Rate::default();
        let elements = self.elements_beside(&self.beside(interface), Set::limits)?;
        elements.iter().for_each(|(element, _)| rates::read(element, &mut rate));
        Ok(rate)
    }
}

fn elements_of(port: Sender<'_>) -> BTreeSet<Element> {
    let own = rules::elements("", port.mac, port.sources.iter());
    let sets: Vec<Set> = Family::Netdev.sets().collect();
    let own = own.into_iter().chain(rates::elements("", port.rate));
    own.chain(rules::constants()).filter(|element| sets.contains(&element.set)).collect()
}
