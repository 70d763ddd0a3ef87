//! What waits for one thread, and whose turn is next: fair turns by client, a limit for each, and what nobody waits for behind all that.
//! Touches nothing but what it is given.

use std::collections::{BTreeMap, VecDeque};

use crate::{Code, Fault, Peer};

/// Requests that are served for one thing told, while requests wait.
const ASKED_PER_TOLD: u32 = 8;

/// Whose turns are fair with whose: a connection, and the process behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId {
    process: (u32, i32),
    connection: u64,
}

impl ClientId {
    /// Not a peer, but this process.
    pub const OWN: ClientId = ClientId { process: (0, -1), connection: 0 };

    /// Its user, and its process.
    pub fn process(self) -> (u32, i32) {
        self.process
    }
}

impl From<Peer> for ClientId {
    fn from(peer: Peer) -> ClientId {
        ClientId { process: (peer.uid, peer.pid), connection: peer.connection }
    }
}

/// How many requests may wait at one time.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Of one client. A connection has 64 calls in flight at most ([`crate::Limits`]), so only with calls that were cancelled it comes to
    /// more than that.
    pub per_client: usize,
    /// Of all clients. One process's connections, those that have ended included, have half of them. Where that many wait, whoever has its
    /// equal share of them or more is refused, and nobody else. So more than these may wait, but never twice as many.
    pub total: usize,
}

impl Room {
    /// No limits: for what is told, and for whoever sees to limits itself.
    pub(crate) const ENDLESS: Room = Room { per_client: usize::MAX, total: usize::MAX };
}

/// A client that has requests waiting.
struct Waiting {
    count: usize,
    /// The turn in which its last request is served.
    last: u64,
}

/// What waits. Each turn serves one request of each client that has any.
pub(crate) struct Turns<T> {
    room: Room,
    /// By turn, and by when it came.
    asked: BTreeMap<(u64, u64), (ClientId, T)>,
    clients: BTreeMap<ClientId, Waiting>,
    /// How many requests of each process wait.
    processes: BTreeMap<(u32, i32), usize>,
    turn: u64,
    serial: u64,
    told: VecDeque<T>,
    asked_since_told: u32,
}

impl<T> Turns<T> {
    pub(crate) fn new(room: Room) -> Turns<T> {
        Turns {
            room,
            asked: BTreeMap::new(),
            clients: BTreeMap::new(),
            processes: BTreeMap::new(),
            turn: 0,
            serial: 0,
            told: VecDeque::new(),
            asked_since_told: 0,
        }
    }

    /// Fails with `overloaded` if the client has as many requests waiting as it may, and gives back what it asked.
    pub(crate) fn ask(&mut self, client: ClientId, value: T) -> Result<(), (Fault, T)> {
        let own = self.clients.get(&client).map_or(0, |waiting| waiting.count);
        let sharing = self.clients.len().saturating_add((own == 0).into());
        let full = self.asked.len() >= self.room.total;
        let share = self.room.total.checked_div(sharing).unwrap_or_default().max(1);
        let overfull = self.asked.len() >= self.room.total.saturating_mul(2);
        let of_process = self.processes.get(&client.process).copied().unwrap_or_default();
        let hoards = of_process >= (self.room.total / 2).max(1);
        if own >= self.room.per_client || (full && own >= share) || hoards || overfull {
            let why = format!("{own} requests of this connection wait already, and {of_process} of its process");
            let remedy = "Wait for answers before asking for more";
            return Err((Fault::new(Code::Overloaded, "queue a request", why, remedy), value));
        }
        let waiting = self.clients.entry(client).or_insert(Waiting { count: 0, last: self.turn });
        waiting.count = waiting.count.saturating_add(1);
        waiting.last = waiting.last.max(self.turn).saturating_add(1);
        self.processes.insert(client.process, of_process.saturating_add(1));
        self.serial = self.serial.saturating_add(1);
        self.asked.insert((waiting.last, self.serial), (client, value));
        Ok(())
    }

    pub(crate) fn tell(&mut self, value: T) {
        self.told.push_back(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty() && self.told.is_empty()
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// What is to be done next: a request if one waits, but now and then something told.
    pub(crate) fn next(&mut self) -> Option<T> {
        if self.asked.is_empty() || self.asked_since_told >= ASKED_PER_TOLD {
            self.next_told().or_else(|| self.next_asked())
        } else {
            self.next_asked()
        }
    }

    fn next_asked(&mut self) -> Option<T> {
        let ((turn, _), (client, value)) = self.asked.pop_first()?;
        self.turn = turn;
        if let Some(waiting) = self.clients.get_mut(&client) {
            waiting.count = waiting.count.saturating_sub(1);
            if waiting.count == 0 {
                self.clients.remove(&client);
            }
        }
        if let Some(count) = self.processes.get_mut(&client.process) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.processes.remove(&client.process);
            }
        }
        self.asked_since_told = self.asked_since_told.saturating_add(1);
        Some(value)
    }

    pub(crate) fn next_told(&mut self) -> Option<T> {
        let value = self.told.pop_front()?;
        self.asked_since_told = 0;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(pid: i32) -> ClientId {
        ClientId { process: (0, pid), connection: 0 }
    }

    fn turns(per_client: usize, total: usize) -> Turns<(i32, u32)> {
        Turns::new(Room { per_client, total })
    }

    fn ask(turns: &mut Turns<(i32, u32)>, pid: i32, n: u32) -> bool {
        turns.ask(client(pid), (pid, n)).is_ok()
    }

    #[test]
    fn a_client_that_has_filled_its_room_is_in_front_of_nobody() {
        let mut turns = turns(100, 1000);
        (0..100).for_each(|n| assert!(ask(&mut turns, 1, n)));
        (0..2).for_each(|n| assert!(ask(&mut turns, 2, n)));
        assert!(ask(&mut turns, 3, 0));
        let served: Vec<_> = std::iter::from_fn(|| turns.next()).map(|(pid, _)| pid).take(6).collect();
        assert_eq!(served, [1, 2, 3, 1, 2, 1]);
    }

    #[test]
    fn one_that_asks_again_at_once_is_not_served_again_before_the_others() {
        let mut turns = turns(100, 1000);
        (0..3).for_each(|n| assert!(ask(&mut turns, 1, n)));
        assert!(ask(&mut turns, 2, 0));
        let mut served = Vec::new();
        while let Some((pid, _)) = turns.next() {
            served.push(pid);
            if pid == 2 && served.len() < 6 {
                assert!(ask(&mut turns, 2, 0));
            }
        }
        assert_eq!(served, [1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn a_client_is_refused_past_its_own_room_and_others_are_not() {
        let mut turns = turns(3, 1000);
        assert!((0..3).all(|n| ask(&mut turns, 1, n)));
        let (fault, _) = turns.ask(client(1), (1, 3)).unwrap_err();
        assert_eq!(fault.code, Code::Overloaded);
        assert!(fault.why.contains("3 requests of this connection"), "{fault}");
        assert!(ask(&mut turns, 2, 0));
        assert_eq!(turns.next(), Some((1, 0)));
        assert!(ask(&mut turns, 1, 4));
    }

    #[test]
    fn where_all_is_full_whoever_filled_it_is_refused_and_whoever_comes_is_not() {
        let mut turns = turns(100, 100);
        assert!((0..45).all(|n| ask(&mut turns, 1, n)));
        assert!((0..10).all(|n| ask(&mut turns, 2, n)));
        assert!((0..45).all(|n| ask(&mut turns, 5, n)));
        assert!(!ask(&mut turns, 1, 45));
        assert!((0..25).all(|n| ask(&mut turns, 3, n)));
        assert!(!ask(&mut turns, 3, 25));
        assert!(ask(&mut turns, 2, 10));
        assert!(ask(&mut turns, 4, 0));
    }

    #[test]
    fn a_process_has_half_of_the_room_however_many_connections_it_makes() {
        let mut turns = turns(10, 100);
        let of = |connection| ClientId { process: (0, 1), connection };
        for connection in 0..50 {
            assert!(turns.ask(of(connection), (1, 0)).is_ok());
        }
        assert_eq!(turns.ask(of(50), (1, 0)).unwrap_err().0.code, Code::Overloaded);
        assert!(ask(&mut turns, 2, 0));
        assert!(turns.next().is_some());
        assert!(turns.ask(of(50), (1, 0)).is_ok());
    }

    #[test]
    fn what_is_told_comes_behind_requests_but_is_not_left_for_ever() {
        let mut turns = turns(100, 100);
        (0..3).for_each(|n| turns.tell((0, n)));
        (0..20).for_each(|n| assert!(ask(&mut turns, 1, n)));
        let served: Vec<_> = std::iter::from_fn(|| turns.next()).map(|(pid, _)| pid).collect();
        let at: Vec<_> = served.iter().enumerate().filter(|(_, pid)| **pid == 0).map(|(at, _)| at).collect();
        assert_eq!(at, [8, 17, 22]);
    }

    proptest! {
        /// Whatever comes and goes: nothing is lost or doubled, each client's own order stays, and no more waits than may.
        #[test]
        fn all_that_was_taken_comes_out_once_in_its_clients_order(steps in prop::collection::vec((0..6_i32, 0..4_u8), 0..300)) {
            let mut turns = turns(20, 40);
            let mut sent: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
            let mut got = sent.clone();
            for (n, (pid, step)) in (0..).zip(steps) {
                let taken = match step {
                    0 => {
                        if let Some((pid, n)) = turns.next() {
                            got.entry(pid).or_default().push(n);
                        }
                        false
                    }
                    _ if pid == 0 => {
                        turns.tell((pid, n));
                        true
                    }
                    _ => ask(&mut turns, pid, n),
                };
                if taken {
                    sent.entry(pid).or_default().push(n);
                }
                prop_assert!(turns.asked() <= 2 * 40);
                prop_assert!(turns.clients.values().all(|waiting| (1..=20).contains(&waiting.count)));
                prop_assert_eq!(turns.clients.values().map(|waiting| waiting.count).sum::<usize>(), turns.asked());
            }
            while let Some((pid, n)) = turns.next() {
                got.entry(pid).or_default().push(n);
            }
            prop_assert_eq!(sent, got);
            prop_assert!(turns.clients.is_empty() && turns.processes.is_empty());
        }
    }
}
