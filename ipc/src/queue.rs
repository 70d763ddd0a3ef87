//! A queue from one thread to another, for threads with small seccomp filters: it waits on a lock and on nothing else.
//! (The channels of std and of tokio yield the CPU where two threads meet in the wrong moment, which is a system call.)
//! A [`mailbox`] is one that many clients ask by: each has its turn, and its own room.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::{ClientId, Fault, Room, turns::Turns};

/// Makes a queue. It has no limit: whoever sends sees to that.
pub fn queue<T>() -> (Sender<T>, Receiver<T>) {
    mailbox(Room::ENDLESS)
}

/// Makes a queue that clients [`ask`](Sender::ask) by, in fair turns and within `room`, and that things without a limit are
/// [`told`](Sender::send) by, such as what a `Drop` has to say.
pub fn mailbox<T>(room: Room) -> (Sender<T>, Receiver<T>) {
    let state = State { waiting: Turns::new(room), senders: 1, receiver: true };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

struct State<T> {
    waiting: Turns<T>,
    senders: usize,
    receiver: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The other end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The other end is gone.
    Gone,
    /// Its client has as many waiting as it may: `overloaded`.
    Full(Fault),
}

/// Where things go in.
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Puts something in that comes out behind what was asked. Never waits.
    ///
    /// # Errors
    /// The receiver is gone, and what was to be sent is dropped.
    pub fn send(&self, value: T) -> Result<(), Gone> {
        let mut state = self.0.lock();
        if !state.receiver {
            return Err(Gone);
        }
        state.waiting.tell(value);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }

    /// Puts a client's request in, which comes out when it is its client's turn. Never waits.
    ///
    /// # Errors
    /// The receiver is gone, or the client has as many requests waiting as it may. What was to be sent is dropped.
    pub fn ask(&self, client: ClientId, value: T) -> Result<(), Refused> {
        let mut state = self.0.lock();
        if !state.receiver {
            return Err(Refused::Gone);
        }
        let taken = state.waiting.ask(client, value);
        // What was refused may do anything when it is dropped, also send.
        drop(state);
        taken.map_err(|(fault, _)| Refused::Full(fault))?;
        self.0.changed.notify_one();
        Ok(())
    }

    /// How many requests wait, of all clients.
    pub fn asked(&self) -> usize {
        self.0.lock().waiting.asked()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        let mut state = self.0.lock();
        state.senders = state.senders.saturating_add(1);
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.senders = state.senders.saturating_sub(1);
        drop(state);
        self.0.changed.notify_one();
    }
}

/// Where things come out: what was sent in the order in which it went in, requests in their clients' turns and before what was sent, but
/// for one thing sent after every eighth request. Dropped, it drops what waits.
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// Waits for the next.
    ///
    /// # Errors
    /// There is none, and no sender any more.
    pub fn receive(&self) -> Result<T, Gone> {
        let more = |state: &mut State<T>| state.waiting.is_empty() && state.senders > 0;
        let state = self.0.changed.wait_while(self.0.lock(), more);
        state.unwrap_or_else(PoisonError::into_inner).waiting.next().ok_or(Gone)
    }

    /// Waits for the next, until `limit`; `None` if there was none in time.
    ///
    /// # Errors
    /// There is none, and no sender any more.
    pub fn receive_until(&self, limit: Instant) -> Result<Option<T>, Gone> {
        let more = |state: &mut State<T>| state.waiting.is_empty() && state.senders > 0;
        let left = limit.saturating_duration_since(Instant::now());
        let waited = self.0.changed.wait_timeout_while(self.0.lock(), left, more);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.waiting.next() {
            None if !waited.timed_out() => Err(Gone),
            next => Ok(next),
        }
    }

    /// The next, if it waits already.
    pub fn receive_now(&self) -> Option<T> {
        self.0.lock().waiting.next()
    }

    /// The next thing sent, if one waits already: for whoever has to know of all of them before it serves a request.
    pub fn sent_now(&self) -> Option<T> {
        self.0.lock().waiting.next_told()
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver = false;
        let waiting = std::mem::replace(&mut state.waiting, Turns::new(Room::ENDLESS));
        // What waits may do anything when it is dropped, also send.
        drop(state);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_went_in_comes_out_in_order_and_then_the_end() {
        let (sender, receiver) = queue();
        let thread = std::thread::spawn(move || {
            let second = sender.clone();
            for n in 0..1000 {
                if n % 2 == 0 { &sender } else { &second }.send(n).unwrap();
            }
        });
        for n in 0..1000 {
            assert_eq!(receiver.receive(), Ok(n));
        }
        assert_eq!(receiver.receive(), Err(Gone));
        thread.join().unwrap();
    }

    #[test]
    fn a_wait_ends_by_its_limit_and_by_the_last_senders_end() {
        let (sender, receiver) = queue::<u8>();
        assert_eq!(receiver.receive_now(), None);
        let begin = Instant::now();
        assert_eq!(receiver.receive_until(begin + Duration::from_millis(30)), Ok(None));
        assert!(begin.elapsed() >= Duration::from_millis(30));
        let late = Instant::now() + Duration::from_secs(60);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            sender.send(7).unwrap();
        });
        assert_eq!(receiver.receive_until(late), Ok(Some(7)));
        assert_eq!(receiver.receive_until(late), Err(Gone));
        thread.join().unwrap();
    }

    #[test]
    fn a_request_wakes_its_receiver_and_one_past_its_clients_room_is_refused_at_once() {
        let (sender, receiver) = mailbox(Room { per_client: 1, total: 10 });
        sender.ask(ClientId::OWN, 1).unwrap();
        assert!(
            matches!(sender.ask(ClientId::OWN, 2), Err(Refused::Full(fault)) if fault.code == crate::Code::Overloaded)
        );
        sender.send(3).unwrap();
        assert_eq!(sender.asked(), 1);
        assert_eq!((receiver.receive(), receiver.sent_now()), (Ok(1), Some(3)));
        let thread = std::thread::spawn(move || receiver.receive());
        sender.ask(ClientId::OWN, 4).unwrap();
        assert_eq!(thread.join().unwrap(), Ok(4));
        assert_eq!(sender.ask(ClientId::OWN, 5), Err(Refused::Gone));
    }

    #[test]
    fn what_is_refused_may_send_when_it_is_dropped() {
        struct Last(Sender<Option<Last>>);

        impl Drop for Last {
            fn drop(&mut self) {
                let _ = self.0.send(None);
            }
        }

        let (sender, receiver) = mailbox(Room { per_client: 1, total: 10 });
        sender.ask(ClientId::OWN, None).unwrap();
        assert!(matches!(sender.ask(ClientId::OWN, Some(Last(sender.clone()))), Err(Refused::Full(_))));
        drop(sender);
        assert_eq!(std::iter::from_fn(|| receiver.receive_now()).count(), 2);
    }

    #[test]
    fn what_waits_is_dropped_with_the_receiver_and_nothing_goes_in_after() {
        let (sender, receiver) = queue();
        let thing = Arc::new(());
        sender.send(thing.clone()).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&thing), 1);
        assert_eq!(sender.send(thing), Err(Gone));
    }
}
