//! What a guest sends, and is sent, by an interface that is on no bridge: a table of its own for each, in the family `netdev`, of the same chains as a
//! bridge's, where the kernel comes to by itself with all that leaves by that interface, before it is anywhere, and with what comes by it. It holds one
//! port, whose elements therefore have no interface's name or number in them (what leaves has come by none, and what comes is yet to leave), and the one
//! policy that the port has. It goes with the port. What each policy says is in the bridges' table.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    CHANGE, Counts, Filter, LOOK, LOOKS, MOST_NOTED, Owner, Sender, Sent, after,
    elements::lists_of,
    is_kept, is_left, notes, policed,
    rules::{self, Element, Rule},
    table::{Family, Set},
    unsent,
    wire::{Attributes, Kind, Life, Object, Request, Said},
    with_noted,
};
use crate::error::Error;

/// What leaves by the interface.
pub const EGRESS: &[Rule] = rules::PORT_RULES;
/// What comes by it.
pub const INGRESS: &[Rule] = policed::TOWARDS_RULES;

const MAKE: &str = "set the rules of what a guest on a macvtap may send";
const CLEAR: &str = "take the rules of what a guest on a macvtap may send away";
/// What the names of those interfaces begin with.
const PORT: &str = "mvt-";

/// What is known of such a table.
pub struct Guard {
    /// Since when it was so.
    pub generation: u32,
    objects: Vec<Object>,
    /// What is in it.
    elements: BTreeSet<Element>,
    /// What of that is the port's alone.
    own: BTreeSet<Element>,
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
    /// The name of the table of an interface.
    pub fn beside(&self, interface: &str) -> String {
        format!("{}-{interface}", self.table)
    }

    /// Has what leaves by an interface be what its port's guest may send, before that is up, or from the next packet on. Nothing has changed where it fails
    /// because the port's policy is too much.
    pub fn guard(&mut self, port: Sender<'_>) -> Result<(), Error> {
        self.has_room(port.network, port.policy)?;
        let own = self.own(port, "");
        self.hold(port.interface, own)?;
        self.settle()
    }

    /// Has the tables beside it follow the policies whose elements are others now.
    pub fn follow(&mut self) -> Result<(), Error> {
        let is_touched = |interface: &str| self.policies.of(interface).is_some_and(|one| self.touched.contains(&one));
        let touched = self.guards.iter().filter(|(interface, _)| is_touched(interface));
        let touched: Vec<_> = touched.map(|(interface, guard)| (interface.clone(), guard.own.clone())).collect();
        touched.into_iter().try_for_each(|(interface, own)| self.hold(&interface, own))
    }

    /// Has a port have these elements, and those of its policy: of what is there, what is another's; or all, in one batch, in the place of what there was.
    fn hold(&mut self, interface: &str, own: BTreeSet<Element>) -> Result<(), Error> {
        let (table, elements) = (self.beside(interface), self.all_at(interface, &own));
        if self.is_guarded(interface)?
            && let Some(guard) = self.guards.remove(interface)
        {
            if guard.elements == elements {
                self.guards.insert(interface.to_owned(), Guard { own, ..guard });
                return Ok(());
            }
            let lists = [
                (Kind::DelSetElem, guard.elements.difference(&elements)),
                (Kind::NewSetElem, elements.difference(&guard.elements)),
            ];
            let lists = lists.map(|(kind, of)| lists_of(&table, kind, |_| Family::Netdev, with_noted(of, &[])));
            let requests = lists.into_iter().collect::<Result<Vec<_>, _>>().map_err(|why| unsent(CHANGE, why))?;
            match self.send(CHANGE, Some(guard.generation), requests.concat()) {
                Ok(Sent::Done) => {
                    let generation = self.passed(guard.generation);
                    self.guards.insert(interface.to_owned(), Guard { generation, elements, own, ..guard });
                    return Ok(());
                }
                Err(error @ (Error::NoRight(_) | Error::Deadline { .. })) => return Err(error),
                Ok(Sent::Late) | Err(_) => {}
            }
        }
        self.guards.remove(interface);
        // What was counted, and begun, goes on.
        let mut noted = self.elements_beside(&table, notes).unwrap_or_default();
        noted.retain(|(element, life)| is_left(element.set, life));
        noted.truncate(MOST_NOTED);
        for _ in 0..LOOKS {
            let generation = self.generation()?;
            match self.send(MAKE, Some(generation), anew(&table, interface, &elements, &noted)?) {
                Ok(Sent::Done) => {
                    self.passed(generation);
                    // Only who reads what it has made knows by which numbers to tell it from another's.
                    let (objects, found) = self.look_beside(&table)?;
                    if found == elements && self.generation()? == after(generation) {
                        let guard = Guard { generation: after(generation), objects, elements, own };
                        self.guards.insert(interface.to_owned(), guard);
                    }
                    return Ok(());
                }
                Ok(Sent::Late) => {}
                // Whatever somebody may have made of that.
                Err(Error::Kernel { .. }) if !noted.is_empty() => noted.clear(),
                Err(Error::Kernel { source, .. }) if super::lacks_filter(&source) => {
                    return Err(Error::NoEgress(source));
                }
                Err(error) => return Err(error),
            }
        }
        self.send(MAKE, None, anew(&table, interface, &elements, &noted)?).map(drop)
    }

    /// What is in the table of an interface whose port has those.
    fn all_at(&mut self, interface: &str, own: &BTreeSet<Element>) -> BTreeSet<Element> {
        let policy = self.policies.of(interface);
        let of_policy = policy.map(|policy| self.policies.elements(policy)).unwrap_or_default();
        let host = policy.and_then(|_| self.elements.get(&Owner::Host)).into_iter().flatten().cloned();
        let all = own.iter().cloned().chain(of_policy).chain(host).chain(rules::constants());
        let sets: BTreeSet<Set> = Family::Netdev.sets().collect();
        all.filter(|element| sets.contains(&element.set)).collect()
    }

    /// Takes the rules for what leaves by an interface away.
    pub fn unguard(&mut self, interface: &str) -> Result<(), Error> {
        self.guards.remove(interface);
        self.policies.remove(interface, &mut self.touched);
        let requests = rules::clear(&self.beside(interface), Family::Netdev).map_err(|why| unsent(CLEAR, why))?;
        self.send(CLEAR, None, requests)?;
        self.settle()
    }

    /// Sees to it that there are such rules for these ports, as they should be, and for no others: whether somebody had changed them.
    pub fn mend_guards<'a>(&mut self, ports: impl Iterator<Item = Sender<'a>>) -> Result<bool, Error> {
        let ports: BTreeMap<&str, Sender<'a>> = ports.map(|port| (port.interface, port)).collect();
        let gone: Vec<String> = self.guards.keys().filter(|name| !ports.contains_key(name.as_str())).cloned().collect();
        gone.iter().try_for_each(|interface| self.unguard(interface))?;
        let mut changed = false;
        for port in ports.into_values() {
            let is_changed = self.guards.contains_key(port.interface) && !self.is_guarded(port.interface)?;
            self.guard(port)?;
            changed |= is_changed;
        }
        Ok(changed)
    }

    /// Whether the table for an interface is there as this netmgr has put it there.
    fn is_guarded(&mut self, interface: &str) -> Result<bool, Error> {
        let generation = self.generation()?;
        let Some(guard) = self.guards.get(interface) else { return Ok(false) };
        if guard.generation != generation {
            let (objects, elements) = self.look_beside(&self.beside(interface))?;
            let Some(guard) = self.guards.get_mut(interface) else { return Ok(false) };
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
            let said = self.list(kind, Family::Netdev, rules::named(name))?;
            objects.extend(said.into_iter().filter_map(|said| match said {
                Said::Object { table, object } if table == name => Some(object),
                _ => None,
            }));
        }
        elements.extend(self.elements_beside(name, is_kept)?.into_iter().map(|(element, _)| element));
        Ok((objects, elements))
    }

    /// What is in those sets of such a table that are chosen.
    pub fn elements_beside(
        &mut self,
        table: &str,
        chosen: impl Fn(Set) -> bool,
    ) -> Result<Vec<(Element, Life)>, Error> {
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
}

/// The requests that put all of it there, with what was noted before.
fn anew(
    table: &str,
    interface: &str,
    elements: &BTreeSet<Element>,
    noted: &[(Element, Life)],
) -> Result<Vec<Request>, Error> {
    let requests = rules::make_at(table, interface).and_then(|mut requests| {
        let elements = with_noted(elements.iter(), noted);
        requests.extend(lists_of(table, Kind::NewSetElem, |_| Family::Netdev, elements)?);
        Ok(requests)
    });
    requests.map_err(|why| unsent(MAKE, why))
}
