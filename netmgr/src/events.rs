//! What becomes of a network's ports, for those who watch. One queue for all of them, of so many places: who is slow misses the oldest, is told so, and
//! costs nobody anything. Pure; touches nothing.

use schema::network_capnp::MAX_WAITING_EVENTS;
use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

/// What has become of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there.
    Attached,
    /// It is off the host.
    Gone,
    /// It has another policy or rate, or was brought back to what it should be.
    Changed,
}

/// That it has become that of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub what: Change,
    /// Whose it is.
    pub workload: String,
    /// Its interface.
    pub interface: String,
}

/// Those of one network.
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::Sender::new(MAX_WAITING_EVENTS as usize))
    }
}

impl Events {
    /// Tells all who watch.
    pub fn tell(&self, what: Change, workload: &str, interface: &str) {
        if self.0.receiver_count() > 0 {
            let (workload, interface) = (workload.to_owned(), interface.to_owned());
            // Whoever has just gone needs no telling.
            let _ = self.0.send(Event { what, workload, interface });
        }
    }

    /// Watches from now on.
    pub fn watch(&self) -> Watching {
        Watching(self.0.subscribe())
    }
}

/// One who watches.
pub struct Watching(broadcast::Receiver<Event>);

impl Watching {
    /// What there is, as soon as there is something, and whether older ones are missing; `None` once the network is gone, and nothing is left to tell.
    pub async fn next(&mut self) -> Option<(Vec<Event>, bool)> {
        let (mut events, mut missed) = (Vec::new(), false);
        while events.is_empty() {
            match self.0.recv().await {
                Ok(event) => events.push(event),
                Err(RecvError::Lagged(_)) => missed = true,
                Err(RecvError::Closed) => return None,
            }
        }
        // No more than wait at one time, however fast more come.
        while events.len() < MAX_WAITING_EVENTS as usize {
            match self.0.try_recv() {
                Ok(event) => events.push(event),
                // Those before are older than what is missing.
                Err(TryRecvError::Lagged(_)) => {
                    events.clear();
                    missed = true;
                }
                // An end is told by the next.
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Some((events, missed))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    fn tell(events: &Events, count: u32) {
        (0..count).for_each(|n| events.tell(Change::Changed, &format!("vm-{n}"), "tap"));
    }

    #[tokio::test]
    async fn as_many_events_wait_as_there_is_room_for_and_of_one_more_the_oldest_is_missed() {
        let events = Events::default();
        for (more, missed) in [(0, false), (1, true)] {
            let (mut slow, mut quick) = (events.watch(), events.watch());
            for n in 0..MAX_WAITING_EVENTS + more {
                events.tell(Change::Attached, &format!("vm-{n}"), "tap");
                let (told, missed) = quick.next().await.unwrap();
                assert_eq!((told.len(), missed), (1, false), "another one's slowness is nothing to it");
            }
            let (told, has_missed) = slow.next().await.unwrap();
            assert_eq!((told.len(), has_missed), (MAX_WAITING_EVENTS as usize, missed));
            assert_eq!((told[0].workload.as_str(), told[0].what), (&*format!("vm-{more}"), Change::Attached));
            tell(&events, 1);
            assert!(!slow.next().await.unwrap().1, "that was told once");
        }
    }

    #[tokio::test]
    async fn who_watches_waits_hears_of_nothing_before_and_is_told_of_the_end() {
        let events = Events::default();
        tell(&events, 3);
        let mut watching = events.watch();
        {
            let mut waits = pin!(watching.next());
            assert!(futures::poll!(&mut waits).is_pending());
            tell(&events, 1);
            let (told, missed) = waits.await.unwrap();
            assert_eq!((told[0].workload.as_str(), told.len(), missed), ("vm-0", 1, false));
        }
        tell(&events, 2);
        drop(events);
        assert_eq!(watching.next().await.unwrap().0.len(), 2);
        assert!(watching.next().await.is_none());
    }
}
