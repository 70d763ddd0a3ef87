//! A thread that owns a state, and what the control thread asks of it.
//!
//! What takes a moment is a *job*: once asked, it runs, whether or not anybody still waits. What may take long is *work*: a step that is bounded
//! whatever a stranger's bytes say, called again until it is done. The thread gives each user a step in turn, with it each of the user's processes,
//! and with that each thing that the process asked for; a job that waits goes in front of the next step. So nobody waits for another's work, but for one step of it. Work ends early
//! when its caller has gone, and when it has taken more of the thread's time than it may.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ipc::{ClientId, Code, Fault, Receiver, Refused, Room, Sender};
use tokio::sync::oneshot;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;
/// Called until it says that it is done.
type Steps<S> = Box<dyn FnMut(&mut S) -> bool + Send>;

/// What may wait to be begun at one time.
const ROOM: Room = Room { per_client: 128, total: 1024 };

enum Message<S> {
    Job(Job<S>),
    Work(ClientId, Steps<S>),
}

/// A handle on the thread for one client.
pub struct Worker<S> {
    messages: Sender<Message<S>>,
    client: ClientId,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        self.of(self.client)
    }
}

/// The thread's end of it.
pub struct Mailbox<S>(Receiver<Message<S>>);

/// A handle of this process's own, and what [`Mailbox::serve`] needs.
pub fn worker<S>() -> (Worker<S>, Mailbox<S>) {
    let (messages, mailbox) = ipc::mailbox(ROOM);
    (Worker { messages, client: ClientId::OWN }, Mailbox(mailbox))
}

impl<S> Worker<S> {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Worker<S> {
        Worker { messages: self.messages.clone(), client: client.into() }
    }
}

/// Why work has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stopped<E> {
    /// A step failed.
    Failed(E),
    /// It took more of the thread's time than it may.
    Late,
    /// A step panicked.
    Panicked,
    /// The thread has too much to do, or is no more.
    Refused(Fault),
}

fn panicked() -> Fault {
    Fault::new(Code::Internal, "serve a request", "its handler panicked", "Report this as a defect")
}

impl<S: 'static> Worker<S> {
    fn send(&self, message: Message<S>) -> Result<(), Fault> {
        self.messages.ask(self.client, message).map_err(|refused| match refused {
            Refused::Gone => panicked(),
            Refused::Full(fault) => fault,
        })
    }

    /// Has `f` run on the state.
    ///
    /// # Errors
    /// Its own, `internal` if it panicked, `exhausted` if too much of this client waits.
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut S) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let (sender, receiver) = oneshot::channel();
        self.send(Message::Job(Box::new(move |state| {
            // Nobody waits any more if this fails, and the answer's own Drop sees to what it holds.
            let _ = sender.send(f(state));
        })))?;
        receiver.await.map_err(|_| panicked())?
    }

    /// How much waits to be begun, of all clients.
    #[cfg(test)]
    pub fn asked(&self) -> usize {
        self.messages.asked()
    }

    /// Has `f` run on the state, without an answer and without a limit: for `Drop`.
    pub fn tell(&self, f: impl FnOnce(&mut S) + Send + 'static) {
        // Fails only where the thread has ended, and the process with it.
        let _ = self.messages.send(Message::Job(Box::new(f)));
    }

    /// Has `step` called on the state until it has an answer, for at most `limit` of the thread's time; not again once this is dropped.
    ///
    /// # Errors
    /// Why it [`Stopped`].
    pub async fn work<T: Send + 'static, E: Send + 'static>(
        &self,
        limit: Duration,
        mut step: impl FnMut(&mut S) -> Result<Option<T>, E> + Send + 'static,
    ) -> Result<T, Stopped<E>> {
        let (sender, receiver) = oneshot::channel();
        let (mut sender, mut spent) = (Some(sender), Duration::ZERO);
        let steps = move |state: &mut S| {
            if sender.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return true;
            }
            let begun = Instant::now();
            let answer = match step(state) {
                Ok(None) => {
                    spent = spent.saturating_add(begun.elapsed());
                    if spent < limit {
                        return false;
                    }
                    Err(Stopped::Late)
                }
                Ok(Some(answer)) => Ok(answer),
                Err(error) => Err(Stopped::Failed(error)),
            };
            let _ = sender.take().map(|sender| sender.send(answer));
            true
        };
        self.send(Message::Work(self.client, Box::new(steps))).map_err(Stopped::Refused)?;
        receiver.await.map_err(|_| Stopped::Panicked)?
    }
}

impl<S> Mailbox<S> {
    /// Does what is asked on `state` until the last handle is gone and nothing is left to do. A panic fails its own caller.
    pub fn serve(self, mut state: S) {
        let mut turns = Turns(VecDeque::new());
        loop {
            let message = match self.0.receive_now() {
                None if turns.0.is_empty() => match self.0.receive() {
                    Ok(message) => Some(message),
                    Err(ipc::Gone) => return,
                },
                message => message,
            };
            match message {
                Some(Message::Job(job)) => drop(catch_unwind(AssertUnwindSafe(|| job(&mut state)))),
                Some(Message::Work(client, steps)) => turns.add(client, steps),
                None => {}
            }
            // A step after each message: whoever sends without end does not keep others' work from going on.
            turns.step(&mut state);
        }
    }
}

/// Work by user, and of each by process; the next to have a step in front.
struct Turns<S>(Ring<u32, Ring<i32, VecDeque<Steps<S>>>>);

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
    fn add(&mut self, client: ClientId, steps: Steps<S>) {
        let (user, process) = client.process();
        if let Some(work) = of(&mut self.0, user).and_then(|processes| of(processes, process)) {
            work.push_back(steps);
        }
    }

    /// One step for the user that has waited for one the longest, of its process that has, of that one's work that has.
    fn step(&mut self, state: &mut S) {
        let Some((user, mut processes)) = self.0.pop_front() else { return };
        if let Some((process, mut work)) = processes.pop_front() {
            if let Some(mut steps) = work.pop_front()
                && !catch_unwind(AssertUnwindSafe(|| steps(state))).unwrap_or(true)
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

/// What may only be dropped on one thread: dropped elsewhere, it is sent there.
pub struct Homing<T: Send + 'static, S: 'static> {
    value: Option<T>,
    home: Worker<S>,
}

impl<T: Send, S> Homing<T, S> {
    /// A value that belongs to the thread of `home`.
    pub fn new(value: T, home: Worker<S>) -> Homing<T, S> {
        Homing { value: Some(value), home }
    }

    /// The value.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.value.as_mut()
    }

    /// Another value made of it, with the same home.
    pub fn map<U: Send>(mut self, f: impl FnOnce(T) -> U) -> Homing<U, S> {
        Homing { value: self.value.take().map(f), home: self.home.clone() }
    }

    /// The value, for good.
    pub fn take(mut self) -> Option<T> {
        self.value.take()
    }
}

impl<T: Send, S> Drop for Homing<T, S> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.home.tell(move |_| drop(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(pid: i32) -> ipc::Peer {
        ipc::Peer { pid, ..ipc::Peer::this_process() }
    }

    type Never = std::convert::Infallible;
    const LONG: Duration = Duration::from_secs(3600);

    /// Notes `name` at each of `steps` steps.
    fn steps(name: char, mut steps: usize) -> impl FnMut(&mut String) -> Result<Option<()>, Never> + Send {
        move |state| {
            state.push(name);
            steps -= 1;
            Ok((steps == 0).then_some(()))
        }
    }

    #[test]
    fn a_panic_fails_its_own_caller_only() {
        let (worker, mailbox) = worker::<u32>();
        let thread = std::thread::spawn(move || mailbox.serve(5));
        ipc::run(async {
            let job = worker.ask(|_| -> Result<(), Fault> { panic!("on purpose") });
            assert_eq!(job.await.unwrap_err().code, Code::Internal);
            let work = worker.work(LONG, |_| -> Result<Option<()>, Never> { panic!("on purpose") });
            assert_eq!(work.await, Err(Stopped::Panicked));
            assert_eq!(worker.ask(|state| Ok(*state)).await.unwrap(), 5);
        })
        .unwrap();
        drop(worker);
        thread.join().unwrap();
    }

    #[test]
    fn a_job_is_done_although_nobody_waits_and_work_is_not() {
        let (worker, mailbox) = worker::<u32>();
        ipc::run(async {
            let add = |state: &mut u32| {
                *state += 1;
                *state
            };
            let mut asked = Box::pin(worker.ask(move |state| Ok(add(state))));
            let mut left =
                Box::pin(worker.work(LONG, move |state| Ok::<Option<()>, Never>((add(state) == 0).then_some(()))));
            assert!(futures::poll!(&mut asked).is_pending() && futures::poll!(&mut left).is_pending());
            drop((asked, left));
            let thread = std::thread::spawn(move || mailbox.serve(5));
            assert_eq!(worker.ask(|state| Ok(*state)).await.unwrap(), 6);
            drop(worker);
            thread.join().unwrap();
        })
        .unwrap();
    }

    #[test]
    fn clients_and_what_each_asks_for_have_a_step_in_turn_and_a_job_goes_in_front_of_the_next() {
        let (worker, mailbox) = worker::<String>();
        ipc::run(async {
            let (ours, theirs) = (worker.of(client(1)), worker.of(client(2)));
            let all = async move {
                let first = ours.work(LONG, steps('a', 4));
                let second = ours.work(LONG, steps('b', 2));
                let other = theirs.work(LONG, steps('x', 2));
                let job = theirs.ask(|state| {
                    state.push('J');
                    Ok(())
                });
                futures::join!(first, second, other, job)
            };
            let mut all = Box::pin(all);
            assert!(futures::poll!(&mut all).is_pending());
            let thread = std::thread::spawn(move || {
                let mut state = String::new();
                // By hand, to see the order.
                let mut turns = Turns(VecDeque::new());
                while let Some(message) = mailbox.0.receive_now() {
                    match message {
                        Message::Job(job) => job(&mut state),
                        Message::Work(client, steps) => turns.add(client, steps),
                    }
                }
                while !turns.0.is_empty() {
                    turns.step(&mut state);
                }
                state
            });
            let done = all.await;
            assert!(done.0.is_ok() && done.1.is_ok() && done.2.is_ok() && done.3.is_ok());
            assert_eq!(thread.join().unwrap(), "Jaxbxabaa");
        })
        .unwrap();
    }

    #[test]
    fn a_user_with_many_processes_and_connections_has_no_more_steps_than_another() {
        let peer = |uid, pid, connection| ipc::Peer { uid, pid, connection, ..ipc::Peer::this_process() };
        let mut turns = Turns(VecDeque::new());
        let mut add = |peer: ipc::Peer, name: char, mut left: usize| {
            let steps = move |state: &mut String| {
                state.push(name);
                left -= 1;
                left == 0
            };
            turns.add(peer.into(), Box::new(steps));
        };
        for (pid, link, name) in [(1, 1, 'a'), (1, 2, 'b'), (2, 3, 'c')] {
            add(peer(1000, pid, link), name, 2);
        }
        add(peer(0, 3, 9), 'x', 4);
        let mut state = String::new();
        while !turns.0.is_empty() {
            turns.step(&mut state);
        }
        // The two connections of one process share its steps.
        assert_eq!(state, "axcxbxcxab");
    }

    #[test]
    fn work_without_end_lets_jobs_and_others_work_pass_and_ends_with_its_caller() {
        let (worker, mailbox) = worker::<String>();
        let thread = std::thread::spawn(move || mailbox.serve(String::new()));
        ipc::run(async {
            let endless = worker.work(LONG, |_| Ok::<Option<()>, Never>(None));
            let mut endless = Box::pin(endless);
            let other = worker.of(client(2));
            assert!(futures::poll!(&mut endless).is_pending());
            for _ in 0..3 {
                other.work(LONG, steps('x', 3)).await.unwrap();
                worker.ask(|_| Ok(())).await.unwrap();
            }
            assert!(futures::poll!(&mut endless).is_pending());
        })
        .unwrap();
        // Its caller has gone, and so have all handles: the thread has nothing left to do.
        drop(worker);
        thread.join().unwrap();
    }

    #[test]
    fn work_that_takes_more_time_than_it_may_is_stopped() {
        let (worker, mailbox) = worker::<u32>();
        let thread = std::thread::spawn(move || mailbox.serve(0));
        ipc::run(async {
            let endless = |_: &mut u32| Ok::<Option<()>, Never>(None);
            assert_eq!(worker.work(Duration::from_millis(5), endless).await, Err(Stopped::Late));
        })
        .unwrap();
        drop(worker);
        thread.join().unwrap();
    }

    #[test]
    fn a_client_has_so_many_jobs_waiting_and_no_more_and_is_in_front_of_no_other() {
        let (worker, mailbox) = worker::<usize>();
        ipc::run(async {
            let count = |state: &mut usize| {
                *state += 1;
                Ok(*state)
            };
            let mut waiting: Vec<_> = (0..ROOM.per_client).map(|_| Box::pin(worker.ask(count))).collect();
            for one in &mut waiting {
                assert!(futures::poll!(one).is_pending());
            }
            assert_eq!(worker.ask(count).await.unwrap_err().code, Code::Overloaded);
            let of_other = worker.of(client(1));
            let mut other = Box::pin(of_other.ask(count));
            assert!(futures::poll!(&mut other).is_pending());
            let thread = std::thread::spawn(move || mailbox.serve(0));
            assert_eq!(other.await.unwrap(), 2);
            drop(waiting);
            drop((worker, of_other));
            thread.join().unwrap();
        })
        .unwrap();
    }

    #[test]
    fn what_belongs_to_a_thread_is_dropped_there() {
        struct Where(std::sync::mpsc::Sender<std::thread::ThreadId>);
        impl Drop for Where {
            fn drop(&mut self) {
                let _ = self.0.send(std::thread::current().id());
            }
        }
        let (worker, mailbox) = worker::<()>();
        let thread = std::thread::spawn(move || mailbox.serve(()));
        let (sender, dropped) = std::sync::mpsc::channel();
        drop(Homing::new(Where(sender), worker.clone()));
        assert_eq!(dropped.recv().unwrap(), thread.thread().id());
        drop(worker);
        thread.join().unwrap();
    }
}
