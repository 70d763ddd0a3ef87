//! A thread that owns a state, and what is asked of it. Touches nothing but its mailbox.
//!
//! A thread rather than a task of the main one: what it does may take the kernel, or a disk, as long as they like, and the main thread's deadlines
//! hold all the same. What takes a moment is a *job*: once asked, it runs, whether or not anybody still waits; what it made for a caller who has
//! gone is given back by the answer's `Drop`. What may take long is *work*: a step that is bounded whatever a stranger's bytes say, called again
//! until it is done. The thread gives each user a step in turn, with it each of the user's processes, and with that each thing that the process
//! asked for; a job that waits goes in front of the next step. So nobody waits for another's work, but for one step of it. Work ends early when its
//! caller has gone, and when it has taken more of the thread's time than it may.
//!
//! What a `Drop` tells is done without a limit, as there is no more of it than there are objects, and before any request that was made after it:
//! the workload of a port that went may have it anew.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipc::{ClientId, Code, Fault, Gone, Receiver, Refused, Room, Sender};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    Lost,
    steps::{Steps, Turns},
};

/// What a thread owns.
pub trait State: Sized + 'static {
    /// The most requests that wait at one time.
    const ROOM: Room = Room { per_client: 128, total: 1024 };
    /// The longest that a caller waits for a job.
    const DEADLINE: Option<Duration> = None;
    /// Jobs that are done before a piece of what can wait ([`tidy`](State::tidy)), where more jobs wait.
    const JOBS: usize = 16;
    /// How long the process's end waits for this thread's; as long as it takes, if `None`.
    const FAREWELL: Option<Duration> = None;

    /// Called after a panic, before anything else is done: makes the state anew from where it is kept, with nothing of what is in memory taken
    /// for true. Work that had been begun goes on with the new one.
    ///
    /// # Errors
    /// Where that cannot be. The thread ends, and the process with it.
    fn renew(&mut self) -> Result<(), Lost>;

    /// Does a piece of what was left for later, as much as others may be kept waiting for: whether there is more to be done at once. Called when
    /// no job waits, and after each [`JOBS`](State::JOBS) of those that did.
    ///
    /// # Errors
    /// Where the state is lost. The thread ends, and the process with it.
    fn tidy(&mut self) -> Result<bool, Lost> {
        Ok(false)
    }

    /// When to tidy next, although nobody asks for anything.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Called when nobody is left who could ask, as the last: does what was put off.
    fn end(&mut self) {}
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

enum Message<S> {
    Told(Job<S>),
    Asked(Job<S>),
    Work(ClientId, Steps<S>),
}

/// Whom a job's outcome goes to.
pub type Answer<T, E> = oneshot::Sender<Result<T, E>>;

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    /// Too much of this client waits already: `overloaded`.
    Full(Fault),
    /// It was not done within so long. It may be done yet.
    Late(Duration),
    /// It panicked, or the thread has ended, and the process ends with it.
    Lost,
}

impl From<Unserved> for Fault {
    fn from(unserved: Unserved) -> Fault {
        const TRIED: &str = "serve a request";
        match unserved {
            Unserved::Full(fault) => fault,
            Unserved::Late(limit) => {
                Fault::new(Code::Unavailable, TRIED, format!("it took more than {} s", limit.as_secs()), "Try again")
            }
            Unserved::Lost => Fault::new(Code::Internal, TRIED, "its handler panicked", "Report this as a defect"),
        }
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

/// How much of threads' time work may take that has several parts, on whichever threads; its clones are the same one.
#[derive(Clone, Debug)]
pub struct Allowance(Arc<Mutex<Duration>>);

impl Allowance {
    /// Whether some is left afterwards.
    fn spend(&self, took: Duration) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = left.saturating_sub(took);
        !left.is_zero()
    }
}

impl From<Duration> for Allowance {
    fn from(all: Duration) -> Allowance {
        Allowance(Arc::new(Mutex::new(all)))
    }
}

/// A handle on the thread that owns an `S`, for one client.
pub struct Owner<S> {
    messages: Sender<Message<S>>,
    client: ClientId,
    deadline: Option<Duration>,
}

impl<S> Clone for Owner<S> {
    fn clone(&self) -> Self {
        self.of(self.client)
    }
}

/// The thread's end of it.
pub struct Inbox<S>(Receiver<Message<S>>);

/// A handle of this process's own, and what a thread needs to serve it; [`Starting::thread`](crate::Starting::thread) makes both.
pub fn owner<S: State>() -> (Owner<S>, Inbox<S>) {
    let (messages, inbox) = ipc::mailbox(S::ROOM);
    (Owner { messages, client: ClientId::OWN, deadline: S::DEADLINE }, Inbox(inbox))
}

impl<S> Owner<S> {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Owner<S> {
        Owner { messages: self.messages.clone(), client: client.into(), deadline: self.deadline }
    }

    /// How much waits to be begun, of all clients.
    pub fn asked(&self) -> usize {
        self.messages.asked()
    }
}

impl<S: 'static> Owner<S> {
    /// Has `job` done, and waits for its answer. Dropping the future does not undo the request.
    ///
    /// # Errors
    /// Its own, and why it was not [served](Unserved).
    pub async fn ask<T: Send + 'static, E: From<Unserved> + Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.ask_later(|state, answer| {
            // Nobody waits: the answer is dropped here, and what it holds is given back.
            let _ = answer.send(job(state));
        })
        .await
    }

    /// [`ask`](Self::ask), for a job whose outcome is known later: who has the answer then gives it.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn ask_later<T: Send + 'static, E: From<Unserved> + Send + 'static>(
        &self,
        job: impl FnOnce(&mut S, Answer<T, E>) + Send + 'static,
    ) -> Result<T, E> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Asked(Box::new(move |state: &mut S| job(state, answer))))?;
        let answered = match self.deadline {
            Some(limit) => timeout(limit, answered).await.map_err(|_| Unserved::Late(limit))?,
            None => answered.await,
        };
        answered.map_err(|_| Unserved::Lost)?
    }

    /// Has `job` done, without an answer and without a limit: for `Drop`. Never waits.
    pub fn tell(&self, job: impl FnOnce(&mut S) + Send + 'static) {
        // Fails only where the thread has ended, and the process with it.
        let _ = self.messages.send(Message::Told(Box::new(job)));
    }

    /// Has `step` called on the state until it has an answer, for at most `limit` of the thread's time (a [`Duration`], or what is left of an
    /// [`Allowance`]); not again once this is dropped.
    ///
    /// # Errors
    /// Why it [`Stopped`].
    pub async fn work<T: Send + 'static, E: Send + 'static>(
        &self,
        limit: impl Into<Allowance>,
        mut step: impl FnMut(&mut S) -> Result<Option<T>, E> + Send + 'static,
    ) -> Result<T, Stopped<E>> {
        let (sender, receiver) = oneshot::channel();
        let (mut sender, allowance) = (Some(sender), limit.into());
        let steps = move |state: &mut S| {
            if sender.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return true;
            }
            let begun = Instant::now();
            let done = step(state);
            let some_is_left = allowance.spend(begun.elapsed());
            let answer = match done {
                Ok(None) if some_is_left => return false,
                Ok(None) => Err(Stopped::Late),
                Ok(Some(answer)) => Ok(answer),
                Err(error) => Err(Stopped::Failed(error)),
            };
            let _ = sender.take().map(|sender| sender.send(answer));
            true
        };
        self.send(Message::Work(self.client, Box::new(steps))).map_err(|unserved| Stopped::Refused(unserved.into()))?;
        receiver.await.map_err(|_| Stopped::Panicked)?
    }

    fn send(&self, message: Message<S>) -> Result<(), Unserved> {
        self.messages.ask(self.client, message).map_err(|refused| match refused {
            Refused::Gone => Unserved::Lost,
            Refused::Full(fault) => Unserved::Full(fault),
        })
    }
}

impl<S: State> Inbox<S> {
    /// Does what is asked on `state` until the last handle is gone and nothing is left to do.
    ///
    /// # Errors
    /// The state is lost: the process had better end, and start over.
    pub fn run(self, mut state: S) -> Result<(), Lost> {
        let (mut turns, mut jobs, mut tidied) = (Turns::new(), 0, true);
        loop {
            let message = match self.0.receive_now() {
                None if turns.is_empty() && tidied => {
                    let waited = match state.due() {
                        None => self.0.receive().map(Some),
                        Some(at) => self.0.receive_until(at),
                    };
                    match waited {
                        Ok(message) => message,
                        Err(Gone) => return guard(&mut state, S::end).map(drop),
                    }
                }
                message => message,
            };
            let idle = message.is_none();
            // What was told before a request came is done before that request.
            let told = std::iter::from_fn(|| match message {
                Some(Message::Asked(_) | Message::Work(..)) => self.0.sent_now(),
                Some(Message::Told(_)) | None => None,
            });
            for message in told.collect::<Vec<_>>().into_iter().chain(message) {
                match message {
                    Message::Told(job) | Message::Asked(job) => {
                        guard(&mut state, job)?;
                        tidied = false;
                    }
                    Message::Work(client, steps) => turns.add(client, steps),
                }
            }
            jobs += usize::from(!idle);
            // A step after each message: whoever sends without end does not keep others' work from going on.
            let mut kept = Ok(());
            turns.step(|steps| match guard(&mut state, |state| steps(state)) {
                Ok(done) => done.unwrap_or(true),
                Err(lost) => {
                    kept = Err(lost);
                    true
                }
            });
            kept?;
            if idle || jobs >= S::JOBS {
                tidied = !guard(&mut state, S::tidy)?.transpose()?.unwrap_or(false);
                jobs = 0;
            }
        }
    }
}

/// Does something with the state. `None` if that panicked and the state was made anew.
fn guard<S: State, T>(state: &mut S, f: impl FnOnce(&mut S) -> T) -> Result<Option<T>, Lost> {
    match catch_unwind(AssertUnwindSafe(|| f(state))) {
        Ok(done) => Ok(Some(done)),
        Err(_) => state.renew().map(|()| None),
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
