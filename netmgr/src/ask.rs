//! How the kernel is asked, whatever part of it: a question again until its answer is whole, a change again where it was short of memory; and what
//! its refusals mean. Touches the socket that it is given.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::{
    error::Error,
    netlink::{self, Answer, DEADLINE, Failure, Question, Refusal, Request, Socket},
};

/// How often a question is asked whose answer was interrupted by a change, or lost, before that is an error.
const QUESTIONS: usize = 32;
/// How often a change is tried that the kernel is short of memory for.
const CHANGES: usize = 3;
/// How long is waited each time, for memory or for what the kernel does a little later.
pub const MOMENT: Duration = Duration::from_millis(5);

/// Asks, and asks again where what the kernel says is not whole: it was changed meanwhile (`NLM_F_DUMP_INTR`), some of it was lost, the
/// kernel was short of memory, or still busy with an earlier list that was not heard to its end.
pub fn question<Q: Question + Clone, T: Default>(
    socket: &mut Socket<Q>,
    tried: &str,
    requests: &[Request<Q>],
    each: impl Fn(&mut T, Q::Said),
) -> Result<(T, Vec<Answer>), Error> {
    const PASSING: [i32; 6] =
        [netlink::INTERRUPTED, libc::EBUSY, libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
    let end = Instant::now() + DEADLINE;
    let mut error = None;
    for _ in 0..QUESTIONS {
        let mut found = T::default();
        let answers = socket.exchange(requests.to_vec(), |said| each(&mut found, said));
        let mut answers = match answers {
            Ok(answers) => answers,
            Err(lost @ Failure::Lost) => {
                error = Some(failed(lost, tried));
                continue;
            }
            Err(failure) => return Err(failed(failure, tried)),
        };
        let passing = |answer: &Answer| answer.as_ref().is_err_and(|refusal| PASSING.contains(&refusal.errno));
        let Some(at) = answers.iter().position(passing) else { return Ok((found, answers)) };
        if let Err(refusal) = answers.swap_remove(at) {
            if matches!(refusal.errno, libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) {
                thread::park_timeout(MOMENT);
            }
            error = Some(refused(refusal, tried));
        }
        if Instant::now() >= end {
            break;
        }
    }
    Err(error.unwrap_or_else(|| incomplete(tried)))
}

/// Changes something, and tries again where the kernel was short of memory. What is tried leaves nothing behind where it fails, or nothing
/// that is in its own way.
pub fn retried_if_passing<T>(change: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    retried(Error::passes, change)
}

/// The same of a change that begins with a look: tried again also where an interface has gone between the two, which the next look then tells. A
/// container's may at any moment, with its namespace.
pub fn retried_from_look<T>(change: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    retried(|error| error.passes() || error.is_gone(), change)
}

fn retried<T>(again: impl Fn(&Error) -> bool, mut change: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    let mut tries = 1;
    loop {
        match change() {
            Err(error) if again(&error) && tries < CHANGES => {
                thread::park_timeout(MOMENT);
                tries += 1;
            }
            outcome => return outcome,
        }
    }
}

/// An answer that lacks what it must have.
pub fn incomplete(tried: &str) -> Error {
    Error::Answer { tried: tried.to_owned(), why: "it lacks a field".into() }
}

/// What a refusal of the kernel's means. `tried` completes "the kernel refused to ...".
pub fn refused(refusal: Refusal, tried: &str) -> Error {
    if refusal.errno == netlink::INTERRUPTED {
        let why = "what there is changed each time while it was listed".into();
        return Error::Answer { tried: tried.to_owned(), why };
    }
    if refusal.errno == libc::EPERM {
        return Error::NoRight(tried.to_owned());
    }
    let detail =
        if refusal.text.is_empty() { String::new() } else { format!(" ({})", refusal.text.trim_end_matches('.')) };
    Error::Kernel { tried: tried.to_owned(), source: io::Error::from_raw_os_error(refusal.errno), detail }
}

/// What it means that an exchange as a whole failed.
pub fn failed(failure: Failure, tried: &str) -> Error {
    match failure {
        Failure::Io(source) => Error::Kernel { tried: tried.to_owned(), source, detail: String::new() },
        Failure::Deadline => Error::Deadline { seconds: DEADLINE.as_secs() },
        Failure::Unheard => Error::Unheard("no answer is there".into()),
        Failure::Lost => failed(Failure::Io(io::Error::from_raw_os_error(libc::ENOBUFS)), tried),
        Failure::Malformed(why) => Error::Answer { tried: tried.to_owned(), why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_that_fails_for_want_of_memory_is_tried_again_a_few_times_and_no_other() {
        let error = |errno| Error::Kernel {
            tried: "change it".into(),
            source: io::Error::from_raw_os_error(errno),
            detail: String::new(),
        };
        for (errno, expected) in
            [(libc::ENOMEM, CHANGES), (libc::ENOBUFS, CHANGES), (libc::EBUSY, 1), (libc::EINVAL, 1)]
        {
            let mut tries = 0;
            let refused = retried_if_passing(|| {
                tries += 1;
                Err::<(), _>(error(errno))
            });
            assert_eq!((refused.is_err(), tries), (true, expected), "{errno}");
        }
        for (errno, expected) in [(libc::ENODEV, CHANGES), (libc::ENOMEM, CHANGES), (libc::EINVAL, 1)] {
            let mut tries = 0;
            let refused = retried_from_look(|| {
                tries += 1;
                Err::<(), _>(error(errno))
            });
            assert_eq!((refused.is_err(), tries), (true, expected), "{errno}");
        }
        let mut tries = 0;
        retried_if_passing(|| {
            tries += 1;
            if tries == CHANGES { Ok(()) } else { Err(error(libc::EAGAIN)) }
        })
        .unwrap();
    }
}
