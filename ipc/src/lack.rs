//! What the kernel lacks for a moment: a call that fails for want of it is tried again, for a bounded time, and is not taken for the end of
//! whatever it was made on. Touches nothing but the clock.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::io::Errno;
use tokio::time::{Instant, Sleep};

/// How long until it is tried again.
pub(crate) const REST: Duration = Duration::from_millis(10);

/// Whether a call on a socket that failed so may succeed a moment later: memory and buffers come back, and so does the room for descriptors
/// that are on their way (unix(7), ETOOMANYREFS), once somebody receives some.
pub fn passes(errno: Errno) -> bool {
    matches!(errno, Errno::NOBUFS | Errno::NOMEM | Errno::TOOMANYREFS)
}

/// The same of a call that makes a descriptor, or has one watched (epoll_ctl(2), ENOSPC): others are closed.
pub(crate) fn is_crowd(errno: Errno) -> bool {
    passes(errno) || matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOSPC)
}

/// Tries of one call that follow one another.
pub(crate) struct Lack {
    /// How long they may go on.
    limit: Duration,
    since: Option<Instant>,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Lack {
    pub(crate) fn new(limit: Duration) -> Lack {
        Lack { limit, since: None, rest: None }
    }

    /// Whether to try once more, after a [`rest`](Lack::rest).
    pub(crate) fn again(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        let again = since.elapsed() < self.limit;
        self.rest = again.then(|| Box::pin(tokio::time::sleep(REST)));
        again
    }

    /// It has succeeded, or failed for another reason.
    pub(crate) fn over(&mut self) {
        self.since = None;
    }

    /// Ready at once where nothing was lacking.
    pub(crate) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        Poll::Ready(())
    }

    pub(crate) async fn rest(&mut self) {
        poll_fn(|cx| self.poll_rest(cx)).await;
    }
}
