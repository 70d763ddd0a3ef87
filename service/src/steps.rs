//! Whose turn it is to have a step of its work done. Touches nothing but what it is given.

use std::collections::VecDeque;

use ipc::ClientId;

/// Work in steps: called until it says that it is done.
pub(crate) type Steps<S> = Box<dyn FnMut(&mut S) -> bool + Send>;

/// Work by user, and of each by process; the next to have a step in front.
pub(crate) struct Turns<S>(Ring<u32, Ring<i32, VecDeque<Steps<S>>>>);

type Ring<K, T> = VecDeque<(K, T)>;

/// What a ring has for `key`; a new one comes last.
fn of<K: PartialEq, T: Default>(ring: &mut Ring<K, T>, key: K) -> Option<&mut T> {
    if !ring.iter().any(|(known, _)| *known == key) {
        ring.push_back((key, T::default()));
        return ring.back_mut().map(|(_, of)| of);
    }
    ring.iter_mut().find(|(known, _)| *known == key).map(|(_, of)| of)
}

impl<S> Turns<S> {
    pub(crate) fn new() -> Turns<S> {
        Turns(VecDeque::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn add(&mut self, client: ClientId, steps: Steps<S>) {
        let (user, process) = client.process();
        if let Some(work) = of(&mut self.0, user).and_then(|processes| of(processes, process)) {
            work.push_back(steps);
        }
    }

    /// Has `step` do one for the user that has waited for one the longest, of its process that has, of that one's work that has; `step`
    /// says whether that work is done.
    pub(crate) fn step(&mut self, step: impl FnOnce(&mut Steps<S>) -> bool) {
        let Some((user, mut processes)) = self.0.pop_front() else { return };
        if let Some((process, mut work)) = processes.pop_front() {
            if let Some(mut steps) = work.pop_front()
                && !step(&mut steps)
            {
                work.push_back(steps);
            }
            if !work.is_empty() {
                processes.push_back((process, work));
            }
        }
        if !processes.is_empty() {
            self.0.push_back((user, processes));
        }
    }
}
