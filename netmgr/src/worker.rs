//! The thread that owns the state (the [`Manager`]) and does all that concerns the kernel. A job that was handed over runs to its end, whether or
//! not the call that asked for it is still there; what it made for a caller who has gone is released by the answer's `Drop`.
//! Touches nothing but its queue.
//!
//! A thread rather than a task of the RPC thread: the kernel carries out rtnetlink requests while it holds its network lock, and a
//! process waits for that lock without a way to give up. So the RPC thread never enters the kernel's network code, and its deadlines hold.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use ipc::{ClientId, Receiver, Refused, Room, Sender};
use tokio::{sync::oneshot, time::timeout};

use crate::{error::Error, manager::Manager};

/// The longest that a call waits for its job.
const DEADLINE: Duration = Duration::from_secs(10);
/// The most calls that wait at one time. What a `Drop` hands over does not count: it is bounded by what there is to release.
const ROOM: Room = Room { per_client: 128, total: 1024 };

/// Jobs that are done before a piece of what can wait, where some of it waits.
const JOBS: usize = 16;

/// Whom a job's outcome goes to.
pub type Answer<T> = oneshot::Sender<Result<T, Error>>;

/// State that leaves some of its work for later.
pub trait Tidy {
    /// Does a piece of the work that was left, as much as others may be kept waiting for; `false` if there is none. Called when no job
    /// waits, and after some jobs that did.
    fn tidy(&mut self) -> bool;
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A handle on the thread for one client; any number of them.
pub struct Worker<S = Manager> {
    jobs: Sender<Job<S>>,
    client: ClientId,
    deadline: Duration,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Worker<S> {
        self.of(self.client)
    }
}

/// The thread's end.
pub struct Inbox<S = Manager>(Receiver<Job<S>>);

/// Makes the queue; the handle is this process's own.
pub fn queue<S>() -> (Worker<S>, Inbox<S>) {
    let (jobs, inbox) = ipc::mailbox(ROOM);
    (Worker { jobs, client: ClientId::OWN, deadline: DEADLINE }, Inbox(inbox))
}

impl<S> Worker<S> {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Worker<S> {
        Worker { jobs: self.jobs.clone(), client: client.into(), deadline: self.deadline }
    }
}

impl<S: 'static> Worker<S> {
    /// Has `job` done, and waits for its answer. Dropping the future does not undo the request.
    pub async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.ask_later(|state, answer| {
            // Nobody waits: the answer is dropped here, and what it holds is released.
            let _ = answer.send(job(state));
        })
        .await
    }

    /// [`ask`](Self::ask), for a job whose outcome is known later: who has the answer then gives it.
    pub async fn ask_later<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S, Answer<T>) + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let job = move |state: &mut S| job(state, answer);
        self.jobs.ask(self.client, Box::new(job)).map_err(|refused| match refused {
            Refused::Gone => Error::Ending,
            Refused::Full(fault) => Error::Busy(fault.why),
        })?;
        match timeout(self.deadline, answered).await {
            Ok(answer) => answer.map_err(|_| Error::Ending)?,
            Err(_) => Err(Error::Deadline { seconds: self.deadline.as_secs() }),
        }
    }

    /// Has `job` done some time. Never waits.
    pub fn tell(&self, job: impl FnOnce(&mut S) + Send + 'static) {
        // The queue is gone only when the process ends; all TAPs end with it.
        let _ = self.jobs.send(Box::new(job));
    }
}

impl<S: Tidy> Inbox<S> {
    /// Does what comes, until the last [`Worker`] is dropped, and what was left for later. A job that panics leaves a state that nobody knows,
    /// so it is the last: the process had better end, TAPs that nobody else has open go with it, and a new netmgr reads from the kernel what
    /// is there.
    pub fn run(self, mut state: S) {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            while let Ok(job) = self.0.receive() {
                self.serve(job, &mut state);
                loop {
                    let jobs = std::iter::from_fn(|| self.0.receive_now()).take(JOBS);
                    let served = jobs.map(|job| self.serve(job, &mut state)).count();
                    if !state.tidy() && served == 0 {
                        break;
                    }
                }
            }
        }));
    }

    fn serve(&self, job: Job<S>, state: &mut S) {
        // What was handed over before a request came is done before that request: the workload of a port that went may have it anew.
        let told = std::iter::from_fn(|| self.0.sent_now()).collect::<Vec<_>>();
        told.into_iter().chain([job]).for_each(|job| job(state));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
    };

    use super::*;

    impl Tidy for Vec<u32> {
        fn tidy(&mut self) -> bool {
            // A hundred is left for later, in pieces.
            let left = self.iter_mut().find(|n| **n >= 100);
            left.map(|n| *n -= 100).is_some()
        }
    }

    fn start() -> (Worker<Vec<u32>>, thread::JoinHandle<()>) {
        let (worker, inbox) = queue();
        (worker, thread::spawn(move || inbox.run(Vec::new())))
    }

    fn block_on<T>(f: impl Future<Output = T>) -> T {
        ipc::run(f).unwrap()
    }

    #[test]
    fn job_of_a_cancelled_call_runs_and_its_answer_is_dropped() {
        struct Made(Arc<AtomicBool>);
        impl Drop for Made {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let (worker, _thread) = start();
        let released = Arc::new(AtomicBool::new(false));
        block_on(async {
            let made = Made(released.clone());
            let (go, gone) = mpsc::channel();
            let call = worker.ask(move |state| {
                let _ = gone.recv();
                state.push(1);
                Ok(made)
            });
            assert!(timeout(Duration::from_millis(5), call).await.is_err());
            assert!(!released.load(Ordering::Relaxed));
            go.send(()).unwrap();
            assert_eq!(worker.ask(|state| Ok(state.clone())).await.unwrap(), [1]);
            assert!(released.load(Ordering::Relaxed));
        });
    }

    #[test]
    fn call_whose_job_hangs_ends_by_the_deadline() {
        let (mut worker, _thread) = start();
        worker.deadline = Duration::from_millis(20);
        let hanging = |_: &mut Vec<u32>| {
            thread::sleep(Duration::from_millis(200));
            Ok(())
        };
        let error = block_on(worker.ask(hanging)).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }

    #[test]
    fn calls_of_a_client_past_its_limit_are_refused_and_others_and_releases_are_not() {
        let (worker, inbox) = queue::<Vec<u32>>();
        let one = |state: &mut Vec<u32>| {
            state.push(1);
            Ok(state.len())
        };
        block_on(async {
            let mut calls: Vec<_> = (0..ROOM.per_client).map(|_| Box::pin(worker.ask(one))).collect();
            for call in &mut calls {
                assert!(futures_poll(call).await.is_none());
            }
            assert!(matches!(worker.ask(|_| Ok(())).await, Err(Error::Busy(_))));
            worker.tell(|state| state.push(2));
            let of_other = worker.of(ipc::Peer::this_process());
            let mut other = Box::pin(of_other.ask(one));
            assert!(futures_poll(&mut other).await.is_none());
            let thread = thread::spawn(move || inbox.run(Vec::new()));
            // Behind the release and one call of the client that has filled its room.
            assert_eq!(other.await.unwrap(), 3);
            for call in calls {
                call.await.unwrap();
            }
            assert_eq!(worker.ask(|state| Ok(state.len())).await.unwrap(), ROOM.per_client + 2);
            drop((worker, of_other));
            thread.join().unwrap();
        });
    }

    #[test]
    fn what_can_wait_is_behind_jobs_and_is_done_in_pieces_between_many() {
        let (worker, inbox) = queue::<Vec<u32>>();
        block_on(async {
            // Three pieces, and then what they have left when each of many jobs is done.
            worker.tell(|state| state.push(300));
            let seen = |state: &mut Vec<u32>| Ok(state[0]);
            let mut calls: Vec<_> = (0..3 * JOBS).map(|_| Box::pin(worker.ask(seen))).collect();
            for call in &mut calls {
                assert!(futures_poll(call).await.is_none());
            }
            let thread = thread::spawn(move || inbox.run(Vec::new()));
            let mut all = Vec::new();
            for call in calls {
                all.push(call.await.unwrap());
            }
            let expected = [(300, JOBS + 1), (200, JOBS), (100, JOBS - 1)].map(|(left, jobs)| vec![left; jobs]);
            assert_eq!(all, expected.concat());
            drop(worker);
            thread.join().unwrap();
        });
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
