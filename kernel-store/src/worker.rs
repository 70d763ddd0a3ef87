//! A thread that owns a state, and what the control thread asks of it. Once asked, a job runs to its end, whether or not anybody still waits.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ipc::{ClientId, Code, Fault, Receiver, Refused, Room, Sender};
use tokio::sync::oneshot;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Jobs that may wait at one time.
const ROOM: Room = Room { per_client: 128, total: 1024 };

/// A handle on the thread for one client.
pub struct Worker<S> {
    jobs: Sender<Job<S>>,
    client: ClientId,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        self.of(self.client)
    }
}

/// The thread's end of it.
pub struct Mailbox<S>(Receiver<Job<S>>);

/// A handle of this process's own, and what [`Mailbox::serve`] needs.
pub fn worker<S>() -> (Worker<S>, Mailbox<S>) {
    let (jobs, mailbox) = ipc::mailbox(ROOM);
    (Worker { jobs, client: ClientId::OWN }, Mailbox(mailbox))
}

impl<S> Worker<S> {
    /// A handle for that client, whose turns are fair with the others'.
    pub fn of(&self, client: impl Into<ClientId>) -> Worker<S> {
        Worker { jobs: self.jobs.clone(), client: client.into() }
    }
}

/// The job panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panicked;

impl From<Panicked> for Fault {
    fn from(_: Panicked) -> Fault {
        Fault::new(Code::Internal, "serve a request", "its handler panicked", "Report this as a defect")
    }
}

impl<S: 'static> Worker<S> {
    /// Has `f` run on the state; `Err(Panicked)` inside if it panicked.
    ///
    /// # Errors
    /// `exhausted` if too many jobs of this client wait.
    pub async fn try_ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<Result<T, Panicked>, Fault> {
        let (sender, receiver) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            // Nobody waits any more if this fails, and the answer's own Drop sees to what it holds.
            let _ = sender.send(f(state));
        });
        self.jobs.ask(self.client, job).map_err(|refused| match refused {
            Refused::Gone => Fault::from(Panicked),
            Refused::Full(fault) => fault,
        })?;
        Ok(receiver.await.map_err(|_| Panicked))
    }

    /// Has `f` run on the state.
    ///
    /// # Errors
    /// Its own, `internal` if it panicked, `exhausted` if too many jobs of this client wait.
    pub async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut S) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        self.try_ask(f).await??
    }
}

impl<S> Mailbox<S> {
    /// Runs jobs on `state` until the last handle is gone. A panic fails its own caller.
    pub fn serve(self, mut state: S) {
        while let Ok(job) = self.0.receive() {
            let _ = catch_unwind(AssertUnwindSafe(|| job(&mut state)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_fails_its_own_caller_only() {
        let (worker, mailbox) = worker::<u32>();
        let thread = std::thread::spawn(move || mailbox.serve(5));
        ipc::run(async {
            assert_eq!(worker.try_ask(|_| -> u32 { panic!("on purpose") }).await.unwrap(), Err(Panicked));
            assert_eq!(worker.ask(|state| Ok(*state)).await.unwrap(), 5);
        })
        .unwrap();
        drop(worker);
        thread.join().unwrap();
    }

    #[test]
    fn what_was_asked_is_done_although_nobody_waits() {
        let (worker, mailbox) = worker::<u32>();
        ipc::run(async {
            let mut asked = Box::pin(worker.ask(|state| {
                *state += 1;
                Ok(())
            }));
            assert!(futures::poll!(&mut asked).is_pending());
            drop(asked);
            let thread = std::thread::spawn(move || mailbox.serve(5));
            assert_eq!(worker.ask(|state| Ok(*state)).await.unwrap(), 6);
            drop(worker);
            thread.join().unwrap();
        })
        .unwrap();
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
            assert_eq!(worker.ask(count).await.unwrap_err().code, Code::Exhausted);
            let of_other = worker.of(ipc::Peer::this_process());
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
}
