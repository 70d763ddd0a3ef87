//! Who is connected, and whether one more may be. Decided by what the kernel says of the peer, before a byte of the peer's is read.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use tokio::sync::{Notify, futures::Notified};

use crate::{Code, Fault, Limits, Peer, count};

/// A user, and its process.
type Process = (u32, i32);

/// The connections of one listener.
pub(crate) struct Places {
    limits: Limits,
    taken: Cell<usize>,
    of_process: RefCell<BTreeMap<Process, usize>>,
    changed: Notify,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Rc<Places>,
    process: Process,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Places").field(&self.taken).finish()
    }
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Rc<Places> {
        let limits = limits.clone();
        Rc::new(Places { limits, taken: Cell::default(), of_process: RefCell::default(), changed: Notify::new() })
    }

    /// How many are connected.
    pub(crate) fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Done when somebody has come or gone.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// A place for one more connection of `peer`, or the fault that says who has them all.
    pub(crate) fn take(self: &Rc<Places>, peer: Peer) -> Result<Place, Fault> {
        let process = (peer.uid, peer.pid);
        let own = self.of_process.borrow().get(&process).copied().unwrap_or_default();
        self.check(peer, own)?;
        self.of_process.borrow_mut().insert(process, own.saturating_add(1));
        self.taken.set(self.taken.get().saturating_add(1));
        self.changed.notify_waiters();
        Ok(Place { places: self.clone(), process })
    }

    fn check(&self, peer: Peer, own: usize) -> Result<(), Fault> {
        let limits = &self.limits;
        let refused = |why: String, remedy: &str| Err(Fault::new(Code::Exhausted, "connect", why, remedy));
        // A process of another pid namespace cannot be told from others there.
        if peer.pid != 0 && own >= limits.connections_per_process {
            return refused(
                format!("process {} has {}", peer.pid, count(own, "connection")),
                "Close one of them, or use them for more",
            );
        }
        if peer.uid != 0 || peer.pid == 0 {
            let of_user = self.of_user(peer.uid);
            if of_user >= limits.connections_per_user {
                let why =
                    format!("user {} has {}{}", peer.uid, count(of_user, "connection"), self.most(Some(peer.uid)));
                return refused(why, "Close some of them");
            }
        }
        let kept = if own == 0 { 0 } else { limits.connections_reserved };
        if self.taken.get().saturating_add(kept) >= limits.connections {
            let why = format!("there are {} connections{}", self.taken.get(), self.most(None));
            return refused(why, "Close some of them, or ask again later");
        }
        Ok(())
    }

    fn of_user(&self, uid: u32) -> usize {
        self.of_process.borrow().iter().filter(|((user, _), _)| *user == uid).map(|(_, count)| count).sum()
    }

    /// Who has the most of them.
    fn most(&self, of: Option<u32>) -> String {
        let of_process = self.of_process.borrow();
        let counted = of_process.iter().filter(|((user, _), _)| of.is_none_or(|uid| *user == uid));
        counted.max_by_key(|(_, count)| **count).map_or_else(String::new, |((user, process), count)| {
            format!(", of which process {process} of user {user} has {count}")
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_process = self.places.of_process.borrow_mut();
        if let Some(count) = of_process.get_mut(&self.process) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                of_process.remove(&self.process);
            }
        }
        drop(of_process);
        self.places.taken.set(self.places.taken.get().saturating_sub(1));
        self.places.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Rc<Places> {
        Places::new(&Limits {
            connections: 20,
            connections_reserved: 5,
            connections_per_user: 10,
            connections_per_process: 4,
            ..Limits::default()
        })
    }

    fn fill(places: &Rc<Places>, uid: u32, pid: i32) -> (Vec<Place>, Fault) {
        let mut held = Vec::new();
        loop {
            match places.take(Peer { uid, gid: 0, pid, connection: 0 }) {
                Ok(place) => held.push(place),
                Err(fault) => return (held, fault),
            }
        }
    }

    #[test]
    fn a_process_has_so_many_connections_and_no_more_root_s_too() {
        for uid in [0, 1000] {
            let places = places();
            let (mut held, fault) = fill(&places, uid, 7);
            assert_eq!((held.len(), fault.code), (4, Code::Exhausted));
            assert_eq!(fault.why, "process 7 has 4 connections");
            held.pop();
            assert_eq!(fill(&places, uid, 7).0.len(), 1);
            assert_eq!(fill(&places, uid, 8).0.len(), 4);
        }
    }

    #[test]
    fn a_user_has_so_many_over_its_processes_and_root_as_many_as_there_are() {
        let places = places();
        let held: Vec<_> = (1..=3).map(|pid| fill(&places, 1000, pid)).collect();
        assert_eq!(held.iter().map(|(held, _)| held.len()).collect::<Vec<_>>(), [4, 4, 2]);
        assert!(held[2].1.why.starts_with("user 1000 has 10 connections, of which process"), "{}", held[2].1);
        let places = self::places();
        let held: Vec<_> = (1..=3).map(|pid| fill(&places, 0, pid)).collect();
        assert_eq!(held.iter().map(|(held, _)| held.len()).collect::<Vec<_>>(), [4, 4, 4]);
        // Of those that cannot be told apart.
        let places = self::places();
        assert_eq!(fill(&places, 0, 0).0.len(), 10);
    }

    #[test]
    fn the_last_places_are_for_those_who_have_none() {
        let places = places();
        let held: Vec<_> = (1..=4).map(|pid| fill(&places, 0, pid)).collect();
        // Of fifteen that are for anybody; the fourth process had none when it took its first.
        assert_eq!(held.iter().map(|(held, _)| held.len()).collect::<Vec<_>>(), [4, 4, 4, 3]);
        assert!(held[3].1.why.starts_with("there are 15 connections, of which process"), "{}", held[3].1);
        let more: Vec<_> = (5..=9).map(|pid| fill(&places, 0, pid)).collect();
        assert!(more.iter().all(|(held, _)| held.len() == 1));
        let (none, fault) = fill(&places, 0, 10);
        assert_eq!((none.len(), places.taken()), (0, 20));
        assert!(fault.why.starts_with("there are 20 connections"), "{fault}");
        drop((held, more));
        assert_eq!((places.taken(), places.of_process.borrow().len()), (0, 0));
    }
}
