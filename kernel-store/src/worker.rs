//! A thread that owns a state, and what the control thread asks of it. Once asked, a job runs to its end, whether or not anybody still waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ipc::{Code, Fault, Receiver, Sender};
use tokio::sync::{Semaphore, oneshot};

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Jobs that may wait at one time.
const MAILBOX: usize = 1024;

/// A handle on the thread.
pub struct Worker<S> {
    jobs: Sender<Job<S>>,
    mailbox: Arc<Semaphore>,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Worker { jobs: self.jobs.clone(), mailbox: self.mailbox.clone() }
    }
}

/// The thread's end of it.
pub struct Mailbox<S>(Receiver<Job<S>>);

/// A handle, and what [`Mailbox::serve`] needs.
pub fn worker<S>() -> (Worker<S>, Mailbox<S>) {
    let (jobs, mailbox) = ipc::queue();
    (Worker { jobs, mailbox: Arc::new(Semaphore::new(MAILBOX)) }, Mailbox(mailbox))
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
    /// `exhausted` if too many jobs wait.
    pub async fn try_ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<Result<T, Panicked>, Fault> {
        let Ok(place) = self.mailbox.clone().try_acquire_owned() else {
            return Err(Fault::new(
                Code::Exhausted,
                "queue a request",
                format!("{MAILBOX} requests wait already"),
                "Ask again later",
            ));
        };
        let (sender, receiver) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _place = place;
            // Nobody waits any more if this fails, and the answer's own Drop sees to what it holds.
            let _ = sender.send(f(state));
        });
        self.jobs.send(job).map_err(|_| Fault::from(Panicked))?;
        Ok(receiver.await.map_err(|_| Panicked))
    }

    /// Has `f` run on the state.
    ///
    /// # Errors
    /// Its own, `internal` if it panicked, `exhausted` if too many jobs wait.
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
    fn the_mailbox_holds_so_many_jobs_and_no_more() {
        let (worker, _mailbox) = worker::<()>();
        ipc::run(async {
            let mut waiting: Vec<_> = (0..MAILBOX).map(|_| Box::pin(worker.ask(|_| Ok(())))).collect();
            for one in &mut waiting {
                assert!(futures::poll!(one).is_pending());
            }
            assert_eq!(worker.ask(|_| Ok(())).await.unwrap_err().code, Code::Exhausted);
        })
        .unwrap();
    }
}
