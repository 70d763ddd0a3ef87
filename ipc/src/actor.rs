//! The actor: one task that owns a state, so that a change to it never stops half-way. A call that is cancelled takes down only
//! the wait for the answer. Touches nothing but the state it is given.

use std::{cell::Cell, future::Future, panic::AssertUnwindSafe, pin::Pin, rc::Rc};

use futures::{FutureExt, channel::oneshot};
use tokio::sync::mpsc;

use crate::{Code, Fault};

type Running<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A closure that was asked for, and where its answer goes.
trait Job<S> {
    fn run<'a>(self: Box<Self>, state: &'a mut S) -> Running<'a>;
}

struct Asked<F, T> {
    work: F,
    answer: oneshot::Sender<T>,
    queued: Rc<Cell<usize>>,
}

impl<S, T: 'static, F: AsyncFnOnce(&mut S) -> T + 'static> Job<S> for Asked<F, T> {
    fn run<'a>(self: Box<Self>, state: &'a mut S) -> Running<'a> {
        self.queued.set(self.queued.get().saturating_sub(1));
        Box::pin(async move {
            // The caller may have gone: the answer is dropped then, and what it held is released by its `Drop`.
            let _ = self.answer.send((self.work)(state).await);
        })
    }
}

struct Told<F>(F);

impl<S, F: AsyncFnOnce(&mut S) + 'static> Job<S> for Told<F> {
    fn run<'a>(self: Box<Self>, state: &'a mut S) -> Running<'a> {
        Box::pin((self.0)(state))
    }
}

/// A handle on a task that owns a state `S` and runs what it is asked one after the other, in the order of asking. The task
/// and the state end when the last handle is gone and all that was asked is done.
///
/// A closure that panics fails its own caller with `internal`; the state stays as the panic left it, and the next one runs.
pub struct Actor<S> {
    jobs: mpsc::UnboundedSender<Box<dyn Job<S>>>,
    queued: Rc<Cell<usize>>,
    mailbox: usize,
}

impl<S> Clone for Actor<S> {
    fn clone(&self) -> Self {
        Actor { jobs: self.jobs.clone(), queued: self.queued.clone(), mailbox: self.mailbox }
    }
}

impl<S: 'static> Actor<S> {
    /// Starts the task on the current [`crate::run`]. At most `mailbox` asked closures wait at one time.
    pub fn spawn(state: S, mailbox: usize) -> Actor<S> {
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Box<dyn Job<S>>>();
        tokio::task::spawn_local(async move {
            let mut state = state;
            while let Some(job) = inbox.recv().await {
                // Making the future counts too: nothing a job does may end this task.
                let _ = AssertUnwindSafe(async { job.run(&mut state).await }).catch_unwind().await;
            }
        });
        Actor { jobs, queued: Rc::default(), mailbox }
    }

    /// Runs `f` on the state and gives its answer. Once asked, `f` runs to its end, even if this future is dropped.
    /// Fails with `overloaded` if the mailbox is full (then `f` does not run), and with `internal` if `f` panicked.
    pub async fn ask<T: 'static>(&self, f: impl AsyncFnOnce(&mut S) -> T + 'static) -> Result<T, Fault> {
        if self.queued.get() >= self.mailbox {
            let why = format!("{} requests wait already", self.mailbox);
            return Err(Fault::new(Code::Overloaded, "queue a request", why, "Ask again later"));
        }
        self.queued.set(self.queued.get().saturating_add(1));
        let (answer, answered) = oneshot::channel();
        let lost = |_| {
            Fault::new(
                Code::Internal,
                "serve a request",
                "its handler panicked or the service is ending",
                "Report this as a defect",
            )
        };
        if self.jobs.send(Box::new(Asked { work: f, answer, queued: self.queued.clone() })).is_err() {
            self.queued.set(self.queued.get().saturating_sub(1));
            return Err(lost(oneshot::Canceled));
        }
        answered.await.map_err(lost)
    }

    /// Has `f` run on the state, without an answer and without a limit: for `Drop`, which can neither wait nor fail. What is
    /// queued this way is bounded by the objects that are alive. Nothing told is lost while the [`crate::run`] lasts; to wait
    /// for it, `ask` something after it.
    pub fn tell(&self, f: impl AsyncFnOnce(&mut S) + 'static) {
        // Fails only when the runtime is ending and has dropped the task and the state.
        let _ = self.jobs.send(Box::new(Told(f)));
    }
}
