//! Who may do now what takes much memory: so many at one time, by turns of the users and of their processes, and each thing once for all who wait
//! for it. Touches nothing but what it is given.
//!
//! A user has one place more only while another stays free: so one user never waits for another's, and whoever floods waits behind itself. Which of
//! a user's processes is next goes by turns: one that asked a hundred times is in front of another once. What several wait to do is done by the first
//! who has a place, and all have it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipc::{Code, Fault, Peer};
use tokio::sync::oneshot;

use crate::digest::Digest;

/// How many places there are. Root and the user that a store serves are two users, and each finds one.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all.
    pub places: usize,
    /// Of one user; less than all.
    pub per_user: usize,
    /// Of one process; less than of one user.
    pub per_process: usize,
}

/// Whose turns are fair with whose. Processes of other pid namespaces cannot be told apart, and count as one of their user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The user.
    pub user: u32,
    /// Its process.
    pub process: i32,
}

impl Requester {
    /// Not a peer, but this process.
    pub const OWN: Requester = Requester { user: 0, process: -1 };
}

impl From<Peer> for Requester {
    fn from(peer: Peer) -> Requester {
        Requester { user: peer.uid, process: peer.pid }
    }
}

/// The places, and who waits for one to do what.
pub struct Places<T>(Arc<Mutex<State<T>>>);

impl<T> Clone for Places<T> {
    fn clone(&self) -> Self {
        Places(self.0.clone())
    }
}

struct State<T> {
    limits: Limits,
    taken: Vec<Requester>,
    /// What is being done, by somebody who waits for it.
    doing: Vec<Digest>,
    waiting: Vec<Waiting<T>>,
    turn: u64,
    serial: u64,
}

struct Waiting<T> {
    serial: u64,
    /// The first of a process has the next turn, its second the one after that, and so on.
    turn: u64,
    who: Requester,
    what: Digest,
    wake: oneshot::Sender<Woken<T>>,
}

enum Woken<T> {
    /// It is to be done.
    Place(Place<T>, Doing<T>),
    /// Somebody else did it.
    Done(T),
}

/// A place, until this is dropped, which may be on any thread.
pub struct Place<T> {
    places: Places<T>,
    who: Requester,
}

/// What is being done, until this is dropped.
struct Doing<T> {
    places: Places<T>,
    what: Digest,
}

/// One who waits, until this is dropped.
struct Waits<T> {
    places: Places<T>,
    serial: u64,
}

impl<T> State<T> {
    fn of_user(&self, user: u32) -> usize {
        self.taken.iter().filter(|taken| taken.user == user).count()
    }

    fn has_room_for(&self, who: Requester) -> bool {
        let Limits { places, per_user, per_process } = self.limits;
        let free = places.saturating_sub(self.taken.len());
        let enough = match self.of_user(who.user) {
            0 => free > 0,
            some => some < per_user && free > 1,
        };
        enough && self.taken.iter().filter(|taken| **taken == who).count() < per_process
    }

    /// Takes out who is next, if there is room for one.
    fn next(&mut self) -> Option<Waiting<T>> {
        let may = |(_, next): &(usize, &Waiting<T>)| self.has_room_for(next.who) && !self.doing.contains(&next.what);
        let rank = |(_, next): &(usize, &Waiting<T>)| (self.of_user(next.who.user), next.turn, next.serial);
        let (at, _) = self.waiting.iter().enumerate().filter(may).min_by_key(rank)?;
        Some(self.waiting.remove(at))
    }
}

impl<T: Clone> Places<T> {
    /// Has one of those who wait for `what` at the same time do it, once it has a place. Where that one goes, or fails, the next does it.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn once(
        &self,
        who: Requester,
        what: Digest,
        work: impl AsyncFnOnce(Arc<Place<T>>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (wake, woken) = oneshot::channel();
        let waits = self.wait(who, what, wake);
        self.grant();
        let woken = woken.await;
        drop(waits);
        match woken {
            Ok(Woken::Place(place, doing)) => {
                let answer = work(Arc::new(place)).await;
                if let Ok(value) = &answer {
                    doing.done(value);
                }
                answer
            }
            Ok(Woken::Done(value)) => Ok(value),
            Err(_) => Err(Fault::new(Code::Internal, "wait for a turn", "it was lost", "Report this as a defect")),
        }
    }
}

impl<T> Places<T> {
    /// All of them free.
    pub fn new(limits: Limits) -> Places<T> {
        let (taken, doing, waiting) = (Vec::new(), Vec::new(), Vec::new());
        Places(Arc::new(Mutex::new(State { limits, taken, doing, waiting, turn: 0, serial: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, who: Requester, what: Digest, wake: oneshot::Sender<Woken<T>>) -> Waits<T> {
        let mut state = self.lock();
        state.serial = state.serial.saturating_add(1);
        let own = state.waiting.iter().filter(|waiting| waiting.who == who).map(|waiting| waiting.turn).max();
        let (serial, turn) = (state.serial, own.unwrap_or(0).max(state.turn).saturating_add(1));
        state.waiting.push(Waiting { serial, turn, who, what, wake });
        Waits { places: self.clone(), serial }
    }

    /// Gives places to those who are next, while there are any.
    fn grant(&self) {
        loop {
            let mut state = self.lock();
            let Some(Waiting { who, what, wake, turn, .. }) = state.next() else { return };
            state.turn = state.turn.max(turn);
            state.taken.push(who);
            state.doing.push(what);
            drop(state);
            let (place, doing) = (Place { places: self.clone(), who }, Doing { places: self.clone(), what });
            // Where nobody waits any more they are dropped here, which takes the lock.
            drop(wake.send(Woken::Place(place, doing)));
        }
    }

    /// How many are taken, and how many wait.
    #[cfg(test)]
    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.taken.len(), state.waiting.len())
    }
}

impl<T: Clone> Doing<T> {
    /// It is done, for all who wait for it.
    fn done(&self, value: &T) {
        let mut state = self.places.lock();
        let (same, others) = state.waiting.drain(..).partition(|waiting| waiting.what == self.what);
        state.waiting = others;
        drop(state);
        let same: Vec<Waiting<T>> = same;
        same.into_iter().for_each(|waiting| drop(waiting.wake.send(Woken::Done(value.clone()))));
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if let Some(at) = state.taken.iter().position(|taken| *taken == self.who) {
            state.taken.remove(at);
        }
        drop(state);
        self.places.grant();
    }
}

impl<T> Drop for Doing<T> {
    fn drop(&mut self) {
        self.places.lock().doing.retain(|what| *what != self.what);
        self.places.grant();
    }
}

impl<T> Drop for Waits<T> {
    fn drop(&mut self) {
        self.places.lock().waiting.retain(|waiting| waiting.serial != self.serial);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    fn who(user: u32, process: i32) -> Requester {
        Requester { user, process }
    }

    fn what(n: u8) -> Digest {
        Digest::of(&[n])
    }

    const LIMITS: Limits = Limits { places: 3, per_user: 2, per_process: 1 };

    /// What has a place, in the order in which they were given, and how to end it.
    type Given = Rc<RefCell<Vec<(u8, oneshot::Sender<()>)>>>;

    struct Scene {
        places: Places<u8>,
        given: Given,
    }

    impl Scene {
        fn new() -> Scene {
            Scene { places: Places::new(LIMITS), given: Rc::default() }
        }

        fn ask(&self, who: Requester, n: u8) -> tokio::task::JoinHandle<Result<u8, Fault>> {
            let (places, given) = (self.places.clone(), self.given.clone());
            let work = async move |_place: Arc<Place<u8>>| {
                let (end, ended) = oneshot::channel();
                given.borrow_mut().push((n, end));
                ended.await.map_err(|_| Fault::new(Code::Internal, "work", "failed", "-"))?;
                Ok(n)
            };
            tokio::task::spawn_local(async move { places.once(who, what(n), work).await })
        }

        async fn given(&self) -> Vec<u8> {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            self.given.borrow().iter().map(|(n, _)| *n).collect()
        }

        /// Ends one that has a place.
        fn end(&self, n: u8) {
            let mut given = self.given.borrow_mut();
            let at = given.iter().position(|(of, _)| *of == n).unwrap();
            given.remove(at).1.send(()).unwrap();
        }
    }

    #[test]
    fn a_process_has_one_place_a_user_two_and_another_user_one_at_once() {
        ipc::run(async {
            let scene = Scene::new();
            let _all: Vec<_> =
                [(1, 1), (1, 2), (2, 3), (3, 4), (4, 5)].map(|(process, n)| scene.ask(who(1000, process), n)).into();
            // Not 2, which is of the process that has one; not 4, as the last place is for another user.
            assert_eq!(scene.given().await, [1, 3]);
            let _other = scene.ask(who(0, 9), 10);
            let _more = scene.ask(who(0, 8), 11);
            assert_eq!(scene.given().await, [1, 3, 10]);
            // A place is free: the other user's second one would leave none.
            scene.end(1);
            assert_eq!(scene.given().await, [3, 10]);
            scene.end(3);
            assert_eq!(scene.given().await, [10, 2]);
            scene.end(2);
            assert_eq!(scene.given().await, [10, 4]);
        })
        .unwrap();
    }

    #[test]
    fn a_process_that_asked_often_is_in_front_of_another_of_its_user_once() {
        ipc::run(async {
            let scene = Scene::new();
            let _keeps = scene.ask(who(0, 100), 0);
            let _all: Vec<_> = (1..6).map(|n| scene.ask(who(0, 1), n)).collect();
            assert_eq!(scene.given().await, [0, 1]);
            let _late: Vec<_> = (10..12).map(|n| scene.ask(who(0, 2), n)).collect();
            let mut order = Vec::new();
            for _ in 0..6 {
                let now = scene.given().await[1];
                order.push(now);
                scene.end(now);
            }
            assert_eq!(order, [1, 2, 10, 3, 11, 4]);
        })
        .unwrap();
    }

    #[test]
    fn what_waits_in_a_flood_of_one_is_done_by_another_whose_turn_it_is_and_both_have_it() {
        ipc::run(async {
            let scene = Scene::new();
            let flood: Vec<_> = (1..6).map(|n| scene.ask(who(1000, 1), n)).collect();
            let other = scene.ask(who(0, 2), 5);
            assert_eq!(scene.given().await, [1, 5]);
            scene.end(5);
            assert_eq!(other.await.unwrap().unwrap(), 5);
            assert_eq!(flood.into_iter().next_back().unwrap().await.unwrap().unwrap(), 5);
            assert_eq!(scene.places.count(), (1, 3));
        })
        .unwrap();
    }

    #[test]
    fn what_several_wait_for_is_done_once_and_by_another_where_the_first_goes_or_fails() {
        ipc::run(async {
            let scene = Scene::new();
            let first = scene.ask(who(0, 1), 7);
            let (second, third) = (scene.ask(who(1, 2), 7), scene.ask(who(2, 3), 7));
            assert_eq!(scene.given().await, [7]);
            first.abort();
            assert!(first.await.is_err());
            // The one that went is still in the list; the second has it now.
            assert_eq!(scene.given().await, [7, 7]);
            drop(scene.given.borrow_mut().remove(1));
            assert_eq!(second.await.unwrap().unwrap_err().code, Code::Internal);
            assert_eq!(scene.given().await, [7, 7]);
            scene.given.borrow_mut().remove(0);
            scene.end(7);
            assert_eq!(third.await.unwrap().unwrap(), 7);
            // Nobody waits any more: it is done anew.
            let _again = scene.ask(who(0, 1), 7);
            assert_eq!(scene.given().await, [7]);
        })
        .unwrap();
    }

    #[test]
    fn a_place_is_taken_until_its_last_holder_drops_it_and_who_left_waits_no_more() {
        ipc::run(async {
            let places = Places::<u8>::new(LIMITS);
            let kept = Cell::new(None);
            let keep = async |place| {
                kept.set(Some(place));
                Ok(1)
            };
            assert_eq!(places.once(who(0, 1), what(1), keep).await.unwrap(), 1);
            let mut next = Box::pin(places.once(who(0, 1), what(2), async |_| Ok(2)));
            let mut left = Box::pin(places.once(who(0, 1), what(3), async |_| Ok(3)));
            assert!(futures::poll!(&mut next).is_pending() && futures::poll!(&mut left).is_pending());
            assert_eq!(places.count(), (1, 2));
            drop(left);
            assert_eq!(places.count(), (1, 1));
            // As a thread does that ends with it.
            let place = kept.take();
            std::thread::spawn(move || drop(place)).join().unwrap();
            assert_eq!(next.await.unwrap(), 2);
            assert_eq!(places.count(), (0, 0));
        })
        .unwrap();
    }
}
